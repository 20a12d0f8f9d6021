# SPDX-License-Identifier: MIT
"""The site of the documentation and its manual pages: `make docs`."""

import re
from pathlib import Path

from sphinx.application import Sphinx

import pynymph

project = "pynymph"
author = "The pynymph authors"
copyright = "The pynymph authors"  # what Sphinx calls it
version = release = pynymph.__version__

extensions = [
    "linuxdoc.rstKernelDoc",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
needs_sphinx = "7"
nitpicky = False
smartquotes = False  # options start with two hyphens
exclude_patterns = ["build"]
templates_path: list[str] = []

myst_enable_extensions = ["deflist"]  # options of manual pages
# Links to headings of other pages, as in [the endpoint](endpoint.md#rings).
myst_heading_anchors = 3

# Python's docstrings write `name` for what stands in code.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
autodoc_mock_imports = ["cuda"]

kernel_doc_mode = "reST"
kernel_doc_raise_error = True

html_theme = "furo"
html_title = "pynymph"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"top_of_page_buttons": []}

man_show_urls = False
man_pages = [
    ("man/pynymph", "pynymph", "copies, digests and the machine, by DMA rings", "", 1),
    ("man/nymph-vm", "nymph-vm", "build a kernel module and try it in a virtual machine", "", 1),
    ("man/nymphd", "nymphd", "serve DMA rings, and proof of what they did, over HTTPS", "", 8),
    ("man/pcie_nymph", "pcie_nymph", "DMA rings for user space", "", 4),
]


def setup(app: Sphinx) -> None:
    app.connect("build-finished", set_tables_ragged)


def set_tables_ragged(app: Sphinx, failed: Exception | None) -> None:
    """Let no column of a manual page's table be justified, and tables be as wide as the page.

    Sphinx makes narrow columns, in which groff finds words that it can neither spread nor break: it warns.
    """
    if app.builder.name != "man" or failed:
        return
    for page in Path(app.outdir).glob("*.[1-8]"):
        text = re.sub(r"^\.TS\n(.*;\n)?(l(\|l)*\.)$", _wide, page.read_text(), flags=re.MULTILINE)
        page.write_text(text.replace("\n.TE\n", "\n.TE\n.ad\n"))


def _wide(table: re.Match[str]) -> str:
    return f".na\n.TS\n{table[1] or ''}{table[2].replace('l', 'lx')}"
