# SPDX-License-Identifier: MIT
"""What pynymph needs: the packages that pyproject.toml depends on, and no more until somebody asks for it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
# cffi's compiled part, and what rich needs itself.
OF_THESE = {"_cffi_backend", "markdown_it", "mdurl", "pygments"}
# Everything else, numpy say, is missing.
ONLY = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in sys.stdlib_module_names | ALLOWED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    names = {each.split(">")[0].replace("-", "_") for each in project["dependencies"]} | OF_THESE
    program = f"ALLOWED = {names | {'pynymph'}}\n{ONLY}\n{program}"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    "program",
    [
        "import pynymph, pynymph.aio, pynymph.signatures, pynymph.weights",
        "from pynymph.command import main; sys.argv = ['pynymph', '--help']; main()",
        "from pynymph.command import main; sys.argv = ['pynymph', 'weights', 'load', '--help']; main()",
    ],
)
def test_packages_of_extras_are_needed_by_no_import(program: str) -> None:
    done = run(program)
    assert done.returncode == 0, done.stderr


def test_other_packages_are_missing_here() -> None:
    assert "No module named 'numpy'" in run("import numpy").stderr
