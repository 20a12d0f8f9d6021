# SPDX-License-Identifier: MIT
"""The documentation: each code block runs in a test, or says why not; pages agree with what they describe."""

import json
import re
import subprocess
import sys

import doc_blocks
import pytest
from doc_blocks import NOT_RUN, PLAIN, ROOT, RUN, Block, blocks
from nymphd.settings import Settings

import pynymph
from pynymph.command import cli
from pynymph.command.model_weights import weights
from pynymph.command.proofs import evidence_group

DOCS = ROOT / "docs"
CODE = [block for block in blocks() if block.language not in PLAIN]


@pytest.mark.parametrize("block", CODE, ids=lambda block: f"{block.page}:{block.text[:30]!r}")
def test_every_block_has_a_language_and_one_runner(block: Block) -> None:
    assert block.language in ("python", "sh", "c", "make", "toml", "yaml")
    assert len(block.keys) == 1, "name it in tests/doc_blocks.py: who runs it, or why nobody does"


def test_every_key_names_a_block() -> None:
    of_blocks = [key for block in CODE for key in block.keys]
    assert sorted(of_blocks) == sorted((*RUN, *NOT_RUN))


def test_every_runner_is_a_test() -> None:
    for name in set(RUN.values()):
        path, _, test = name.partition("::")
        assert f"def {test}(" in (ROOT / path).read_text()


def test_json_blocks_are_valid_json() -> None:
    found = [block for block in blocks() if block.language == "json"]
    assert found
    for block in found:
        json.loads(block.text)


@pytest.mark.parametrize("block", doc_blocks.run_by(doc_blocks.MODEL), ids=lambda block: block.page)
def test_python_blocks_run_on_the_model(block: Block) -> None:
    done = subprocess.run([sys.executable, "-c", block.text], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "model" in done.stdout


def test_make_knows_every_target() -> None:
    targets = set()
    for page in doc_blocks.PAGES:
        targets |= set(re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", page.read_text(), re.MULTILINE))
    assert {"demo", "test", "docs", "help", "lint", "check", "module"} <= targets
    assert targets <= phony()


def test_make_help_lists_every_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True)
    assert {line.split()[0] for line in done.stdout.splitlines()} == phony()


def phony() -> set[str]:
    found = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found
    return set(found[1].split())


# --- pages against what they describe ---


def test_the_page_of_sysfs_has_every_parameter_with_its_default() -> None:
    page = (DOCS / "reference/sysfs.md").read_text()
    sources = sorted((ROOT / "kernel").rglob("*.c"))
    found = 0
    for source in sources:
        text = source.read_text()
        for name, variable, mode in re.findall(r"module_param_named\((\w+), (\w+), \w+, (\d+)\)", text):
            row = re.search(rf"^\| `{name}` \| (.+?) \| (\w+) \|", page, re.MULTILINE)
            assert row, f"{name} of {source.name}"
            assert row[2] == ("yes" if mode == "0644" else "no")
            default = re.search(rf"\b{variable} = \"?(\w+)\"?;", text)
            if default and not default[1].startswith("NYMPH"):
                assert row[1].strip("`") == default[1]
            found += 1
    assert found == len(re.findall(r"^\| `\w+` \| .+? \| (?:yes|no) \|", page, re.MULTILINE)) >= 7


def test_the_page_of_tracepoints_has_every_event_with_its_fields() -> None:
    page = (DOCS / "reference/tracepoints.md").read_text()
    text = (ROOT / "kernel/pcie_nymph/trace.h").read_text()
    fields: dict[str, list[str]] = {}
    for name, body in re.findall(r"(?:TRACE_EVENT|DECLARE_EVENT_CLASS)\((\w+),(.*?)\)\);", text, re.DOTALL):
        fields[name] = re.findall(r"__field\([^,]+, (\w+)\)", body)
    for of, name in re.findall(r"DEFINE_EVENT\((\w+), (\w+),", text):
        fields[name] = fields[of]
    events = {name: found for name, found in fields.items() if not name.endswith("_class")}
    rows = re.findall(r"^\| `(nymph_\w+)` \|.*\| (.*?) \|$", page, re.MULTILINE)
    assert {name: re.findall(r"`(\w+)`", cell) for name, cell in rows} == events


def test_the_page_of_nymphd_has_every_setting() -> None:
    page = (DOCS / "reference/nymphd.md").read_text()
    for name in Settings.model_fields:
        assert f"`NYMPHD_{name.upper()}`, `--{name.replace('_', '-')}`" in page


def test_the_page_of_python_has_every_public_name() -> None:
    page = (DOCS / "reference/python.rst").read_text()
    named = set(re.findall(r"^\.\. auto\w+:: pynymph\.(\w+)$", page, re.MULTILINE))
    assert named >= set(pynymph.__all__)


def test_the_manual_of_pynymph_has_every_command_and_option() -> None:
    page = (DOCS / "man/pynymph.md").read_text()
    commands = {name: each for name, each in cli.commands.items() if each not in (weights, evidence_group)}
    commands |= {f"weights {name}": each for name, each in weights.commands.items()}
    commands |= {f"evidence {name}": each for name, each in evidence_group.commands.items()}
    assert len(commands) > 10
    for name, each in commands.items():
        assert f"**pynymph {name}**" in page, name
        for option in each.params:
            for spelled in option.opts:
                assert not spelled.startswith("--") or f"{spelled}" in page, f"{name} {spelled}"


def test_the_manual_of_nymph_vm_has_every_command_and_option() -> None:
    from nymph_vm.cli import cli

    page = (DOCS / "man/nymph-vm.md").read_text()
    for name, each in cli.commands.items():
        assert re.search(rf"`{name}\b", page), name
        for option in each.params:
            for spelled in option.opts:
                assert not spelled.startswith("--") or f"`{spelled}" in page, f"{name} {spelled}"
