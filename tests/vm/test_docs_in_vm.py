# SPDX-License-Identifier: MIT
"""Code blocks of README.md and of the documentation work in a machine; tests/doc_blocks.py says which."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import doc_blocks
import pytest
from doc_blocks import Block
from nymph_vm import build
from nymph_vm.host import CHECKOUT
from nymph_vm.machine import Machine


def nymph_vm(line: str, folder: Path = CHECKOUT) -> str:
    """Run one command line of the documentation. Returns what it printed."""
    program, *arguments = shlex.split(line)
    assert program == ".venv/bin/nymph-vm"
    installed = Path(sys.executable).parent / "nymph-vm"
    done = subprocess.run(
        [installed, *arguments], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


def by_page(test: str) -> list[object]:
    return [pytest.param(block, id=block.page) for block in doc_blocks.run_by(test)]


@pytest.mark.parametrize("block", by_page(doc_blocks.GUEST))
def test_python_blocks_run(vm: Machine, block: Block) -> None:
    assert block.language == "python"
    assert vm.run(["python3", "-c", block.text], user="nymph-user").stdout


@pytest.mark.parametrize("block", by_page(doc_blocks.NYMPH_VM))
def test_nymph_vm_blocks_run(block: Block) -> None:
    """The lines of one block in their order."""
    assert block.language == "sh"
    for line in block.text.splitlines():
        nymph_vm(line)


@pytest.mark.parametrize("block", by_page(doc_blocks.HEADER))
def test_c_blocks_compile(tmp_path: Path, block: Block) -> None:
    (tmp_path / "block.c").write_text(block.text)
    command = ["gcc", "-std=gnu11", "-Wall", "-Werror", "-fsyntax-only", f"-I{CHECKOUT}/kernel", "block.c"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_module_of_the_page_passes_its_test(vm: Machine, tmp_path: Path) -> None:
    """The page's files, as it names them, and the test that it has."""
    page = (CHECKOUT / "docs/how-to/kernel-module.md").read_text()
    kbuild, source, test = doc_blocks.run_by(doc_blocks.MODULE)
    for name in ("hello_module", "Kbuild", "hello_module.c", "test_hello_module.py"):
        assert f"`{name}`" in page
    folder = tmp_path / "hello_module"
    folder.mkdir()
    (folder / "Kbuild").write_text(kbuild.text)
    (folder / "hello_module.c").write_text(source.text)
    found: dict[str, object] = {"__file__": str(tmp_path / "test_hello_module.py")}
    exec(compile(test.text, "test_hello_module.py", "exec"), found)
    tests = [each for name, each in found.items() if name.startswith("test_")]
    assert len(tests) == 1 and callable(tests[0])
    tests[0](vm)
    assert build.modules(folder, vm.state.kernel)[0].name == "hello_module.ko"


def test_tutorial_prints_what_it_shows(tmp_path: Path) -> None:
    """Its program and its commands, in their order; what they print has the lines that it shows."""
    program, *commands = doc_blocks.run_by(doc_blocks.TUTORIAL)
    (tmp_path / "first.py").write_text(program.text)
    page = [block for block in doc_blocks.blocks() if block.page == program.page]
    shown = [block.text for block in page if block.language == "text"]
    good, bad, look = ([nymph_vm(line, tmp_path) for line in each.text.splitlines()] for each in commands)
    for printed, says in zip((*good, *bad), shown, strict=True):
        pattern = re.sub(r"[0-9a-f]{4}…", "[0-9a-f]{64}", says)
        pattern = pattern.replace("verified: 5 of", "verified: [1-6] of")  # as many runs of pages
        assert re.fullmatch(pattern, printed), printed
    assert len(set(re.findall("[0-9a-f]{64}", *good))) == 1
    assert len(set(re.findall("[0-9a-f]{64}", *bad))) == 2
    assert "dma0chan0" in look[1] and "nymph_endpoint" in look[2]
    assert look[-2] == "cpu\n"
