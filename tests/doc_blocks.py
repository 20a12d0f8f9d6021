# SPDX-License-Identifier: MIT
"""The code blocks of README.md and of the documentation, and who runs each.

tests/unit/docs/test_docs.py checks that each block has a test that runs it, or a reason why none does.
tests/vm/test_docs_in_vm.py runs blocks in a virtual machine.
"""

from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "vm").glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PLAIN = ("text", "json")
"""Languages of blocks with nothing to run."""

GUEST = "tests/vm/test_docs_in_vm.py::test_python_blocks_run"
NYMPH_VM = "tests/vm/test_docs_in_vm.py::test_nymph_vm_blocks_run"
MODULE = "tests/vm/test_docs_in_vm.py::test_module_of_the_page_passes_its_test"
TUTORIAL = "tests/vm/test_docs_in_vm.py::test_tutorial_prints_what_it_shows"
HEADER = "tests/vm/test_docs_in_vm.py::test_c_blocks_compile"
SERVICE = "tests/unit/nymphd/test_attacks.py::test_documented_commands_work"
INSTALL = "tests/packages/test_debian.py::test_packages_install_as_documented"
BY_HAND = "tests/packages/test_debian.py::test_install_by_hand_as_documented"
WHEELS = "tests/packages/test_wheels.py::test_wheels_are_built_as_documented_and_work_on_arm64"
UPGRADE = "tests/packages/test_booted.py::test_upgrade_with_a_ring_open_leaves_the_old_module_to_it"
COPY = "tests/unit/pynymph/test_command_copy.py::test_the_guide_works"
PROJECT = "tests/unit/nymph_vm/test_project.py::test_the_guide_shows_the_file_of_the_example"
SWITCHTEC = "tests/vm/test_switchtec.py::test_the_guide_works"
SIGN = "tests/unit/pynymph/test_signatures.py::test_the_guide_works"
EVIDENCE = "tests/unit/pynymph/test_command_evidence.py::test_the_guide_works"
SIGNED = "tests/unit/pynymph/test_command_evidence.py::test_the_guide_has_the_driver_sign"
QUOTE = "tests/unit/pynymph/test_command_evidence.py::test_the_guide_quotes_with_a_tpm"
MODEL = "tests/unit/docs/test_docs.py::test_python_blocks_run_on_the_model"

RUN = {
    ("README.md", "import pynymph"): GUEST,
    ("vm/README.md", ".venv/bin/nymph-vm run"): NYMPH_VM,
    ("vm/README.md", ".venv/bin/nymph-vm up"): NYMPH_VM,
    ("docs/explanation/digests.md", "import pynymph"): GUEST,
    ("docs/explanation/memory.md", "import numpy as np"): GUEST,
    ("docs/how-to/board.md", "import pynymph"): GUEST,
    ("docs/how-to/copy.md", "pynymph copy film.mkv"): COPY,
    ("docs/how-to/copy.md", "pynymph hash film.mkv"): COPY,
    ("docs/how-to/copy.md", "tar -c photos"): COPY,
    ("docs/how-to/engine.md", "import pynymph"): GUEST,
    ("docs/how-to/evidence.md", "pynymph copy --evidence evidence.cbor film.mkv"): EVIDENCE,
    ("docs/how-to/evidence.md", "pynymph evidence slice"): EVIDENCE,
    ("docs/how-to/evidence.md", "openssl ecparam"): EVIDENCE,
    ("docs/how-to/evidence.md", "head -c 32"): EVIDENCE,
    ("docs/how-to/evidence.md", "pynymph copy --evidence evidence.cbor --nonce"): EVIDENCE,
    ("docs/how-to/evidence.md", "openssl genpkey"): SIGNED,
    ("docs/how-to/evidence.md", "pynymph verify evidence.cbor --nonce"): SIGNED,
    ("docs/how-to/evidence.md", "tpm2_quote"): QUOTE,
    ("docs/how-to/evidence.md", "import pynymph"): MODEL,
    ("docs/how-to/hand-off.md", "from pynymph.fabric"): GUEST,
    ("docs/how-to/install.md", "sudo apt-get install -y build-essential"): INSTALL,
    ("docs/how-to/install.md", "sudo apt-get install -y linux-headers"): INSTALL,
    ("docs/how-to/install.md", "sudo apt-get install -y ../nymphd"): INSTALL,
    ("docs/how-to/install.md", "sudo systemctl stop nymphd"): UPGRADE,
    ("docs/how-to/install.md", "sudo apt-get purge"): INSTALL,
    ("docs/how-to/install.md", "sudo make install"): BY_HAND,
    ("docs/how-to/install.md", "cd /lib/modules"): BY_HAND,
    ("docs/how-to/install.md", "sudo make uninstall"): BY_HAND,
    ("docs/how-to/install.md", "sudo dkms add"): BY_HAND,
    ("docs/how-to/install.md", "python3 -m venv ~/pynymph"): BY_HAND,
    ("docs/how-to/install.md", "sudo dpkg --add-architecture"): WHEELS,
    ("docs/how-to/kernel-module.md", "source ="): PROJECT,
    ("docs/how-to/kernel-module.md", "# SPDX-License-Identifier"): MODULE,
    ("docs/how-to/kernel-module.md", "// SPDX-License-Identifier"): MODULE,
    ("docs/how-to/kernel-module.md", "from pathlib"): MODULE,
    ("docs/how-to/nymphd.md", ".venv/bin/nymphd serve &"): SERVICE,
    ("docs/how-to/switchtec.md", ".venv/bin/nymph-vm run"): SWITCHTEC,
    ("docs/how-to/switchtec.md", "from nymph_vm import kernels"): SWITCHTEC,
    ("docs/how-to/without-root.md", ".venv/bin/nymph-vm run"): NYMPH_VM,
    ("docs/how-to/without-root.md", "import pynymph"): MODEL,
    ("docs/how-to/weights.md", "pip install 'pynymph[signatures]'"): SIGN,
    ("docs/how-to/weights.md", "pynymph weights sign"): SIGN,
    ("docs/man/pcie_nymph.md", "#include"): HEADER,
    ("docs/reference/nymphd.md", "printf"): SERVICE,
    ("docs/tutorial.md", ".venv/bin/nymph-vm run --copy"): TUTORIAL,
    ("docs/tutorial.md", ".venv/bin/nymph-vm run --fault"): TUTORIAL,
    ("docs/tutorial.md", ".venv/bin/nymph-vm up"): TUTORIAL,
    ("docs/tutorial.md", "import pynymph"): TUTORIAL,
}
"""The test that runs a block, by page and the start of the block's first line."""

_MAKE = "it runs for long, or runs these tests; tests/unit/docs/test_docs.py looks the target up"
_TESTS = "it runs other tests"
_ROOT = "it changes the machine as root"
_GPU = "it needs an NVIDIA GPU and a model; tests/gpu/test_weights.py makes the same calls"
_LIVE = "it needs a model of yours; tests/unit/pynymph/test_weights_live.py makes the same calls"
_ACTORS = "it needs actors of yours; tests/unit/pynymph/test_weights_actors.py makes the same calls"
_MATCH = "it needs a model of yours; tests/unit/pynymph/test_weights_match.py makes the same calls"
_FILES = "it needs a model; tests/unit/pynymph/test_weights.py runs the same command on a small one"
_COMMAND = "it needs a model of yours; tests/unit/pynymph/test_command_weights.py runs the same command"
_UNIT = "tests/service runs a machine that vm/nymph_vm/guest/install made so"
_NATIVE = "it needs a native guest's kernel; make native runs the like"

NOT_RUN = {
    ("CONTRIBUTING.md", "make setup"): _MAKE,
    ("CONTRIBUTING.md", "make lint"): _MAKE,
    ("CONTRIBUTING.md", ".venv/bin/pytest --model"): _TESTS,
    ("README.md", "sudo apt-get"): _ROOT,
    ("vm/README.md", "tools/setup"): _ROOT,
    ("docs/how-to/benchmarks.md", "make bench"): _MAKE,
    ("docs/how-to/benchmarks.md", ".venv/bin/python -m bench"): "tests/unit/bench/test_figures.py compares",
    ("docs/how-to/board.md", "make module KDIR="): _ROOT,
    ("docs/how-to/board.md", "sudo install"): _ROOT,
    ("docs/how-to/board.md", ".venv/bin/pip install ."): "it would replace the binding under test",
    ("docs/how-to/board.md", ".venv/bin/python tools/dma_vs_copy.py"): "make demo runs it in a machine",
    ("docs/how-to/ci.md", "make test"): _MAKE,
    ("docs/how-to/ci.md", "jobs:"): "it needs GitHub Actions",
    ("docs/how-to/copy.md", "pynymph info"): "tests/unit/pynymph/test_command_machine.py has its output",
    ("docs/how-to/engine.md", "ls /sys/class/dma"): "a machine without channels has no such folder",
    ("docs/how-to/engine.md", ".venv/bin/pynymph topology"): "tests/unit/pynymph/test_topology.py runs it",
    ("docs/how-to/engine.md", "sudo modprobe"): _ROOT,
    ("docs/how-to/install.md", "sudo mokutil"): "tests/packages/test_booted.py has the key enrolled",
    ("docs/how-to/ci.md", "      - run: sudo apt-get"): "it needs GitHub Actions",
    ("docs/how-to/kernel-module.md", "sudo apt-get"): _ROOT,
    ("docs/how-to/kernel-module.md", "cd examples/tally"): "tests/vm/test_other_module.py runs it",
    ("docs/how-to/kernel-module.md", ".venv/bin/pytest"): "tests/vm/test_docs_in_vm.py runs the test itself",
    ("docs/how-to/native.md", ".venv/bin/nymph-vm run --arch um -- python3"): _NATIVE,
    ("docs/how-to/native.md", "from nymph_vm.pci import Device"): "tests/vm/test_pci.py boots it",
    ("docs/how-to/native.md", ".venv/bin/nymph-vm run --arch um --pci"): _NATIVE,
    ("docs/how-to/nymphd.md", "install -D"): _UNIT,
    ("docs/how-to/nymphd.md", "systemctl reload"): _UNIT,
    ("docs/how-to/weights.md", "pip install 'pynymph[cuda]'"): _FILES,
    ("docs/how-to/weights.md", "pynymph weights verify"): _FILES,
    ("docs/how-to/weights.md", "pynymph weights load Meta-Llama-3-8B/ llama"): _GPU,
    ("docs/how-to/weights.md", "pynymph weights load Meta-Llama-3-8B/ --signature"): _GPU,
    ("docs/how-to/weights.md", "from pynymph import weights"): _GPU,
    ("docs/how-to/weights.md", "from pynymph import signatures"): _GPU,
    ("docs/how-to/weights.md", "report = weights.verify("): _MATCH,
    ("docs/how-to/weights.md", "found = weights.match("): _MATCH,
    ("docs/how-to/weights.md", "pynymph weights match"): _COMMAND,
    ("docs/how-to/weights.md", "checker = weights.Checker("): _LIVE,
    ("docs/how-to/weights.md", "report = weights.compare_ranks("): _LIVE,
    ("docs/how-to/weights.md", "report = weights.compare_actors("): _ACTORS,
    ("docs/how-to/weights.md", "with weights.watch("): _LIVE,
    ("docs/how-to/weights.md", "class Check:"): "it needs vLLM and a model",
    ("docs/tutorial.md", "make setup"): _MAKE,
    ("docs/reference/nymphd.md", "client = tritonclient"): "tests/unit/nymphd/test_clients.py has its calls",
    ("docs/reference/requests.md", "head -c 32"): "tests/guest/test_abi_attest.py adds such a key as root",
    ("docs/reference/tracepoints.md", "sudo trace-cmd"): _ROOT,
}
"""Why no test runs a block."""


@dataclass(frozen=True)
class Block:
    page: str
    language: str
    text: str

    @property
    def keys(self) -> list[tuple[str, str]]:
        """The keys of RUN and NOT_RUN that are about this block."""
        return [key for key in (*RUN, *NOT_RUN) if key[0] == self.page and self.text.startswith(key[1])]


def blocks() -> list[Block]:
    """All code blocks of all pages. Directives, such as {toctree}, are none."""
    found = []
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
            if token.type == "code_block":
                found.append(Block(name, "", token.content))
            elif token.type == "fence" and not token.info.startswith("{"):
                found.append(Block(name, token.info, token.content))
    return found


def run_by(test: str, page: str | None = None) -> list[Block]:
    """The blocks that `test` runs: of all pages, or of one."""
    return [
        block
        for block in blocks()
        if page in (None, block.page) and test in [RUN.get(key) for key in block.keys]
    ]
