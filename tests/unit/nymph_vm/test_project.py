# SPDX-License-Identifier: MIT
"""nymph-vm.toml: where it is looked for, what it says, and what is said of a wrong one."""

import tomllib
from pathlib import Path

import doc_blocks
import pytest
from nymph_vm import project, root
from nymph_vm.host import CHECKOUT, HarnessError

WHOLE = """
source = "module"
modules = ["first", "second"]
kernels = ["debian-6.1", "debug-6.1"]
test = "true"
endpoints = 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "module/deep").mkdir(parents=True)
    (tmp_path / "module/Kbuild").touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_the_project_is_found_from_below(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / project.NAME).write_text(WHOLE)
    monkeypatch.chdir(folder / "module/deep")
    found = project.here()
    assert found == project.Project(
        folder.resolve(),
        folder.resolve() / "module",
        ("first", "second"),
        ("debian-6.1", "debug-6.1"),
        "true",
        2,
    )
    assert found.in_guest(found.source) == "/nymph/repo/module"
    with pytest.raises(HarnessError, match="this command is for a checkout of pynymph"):
        project.pynymph()


def test_outside_of_any_project_it_is_the_checkout_of_nymph_vm(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert project.here() == project.pynymph()
    assert project.here().folder == CHECKOUT
    monkeypatch.setattr(project, "CHECKOUT", folder / "no-checkout")
    with pytest.raises(HarnessError, match=r"there is no nymph-vm.toml in .* or above"):
        project.here()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("source = ", "Invalid value"),
        ('modules = ["a"]', "source is missing"),
        ('source = "module"', "modules is missing"),
        ('source = "module"\nmodules = "a"', "modules is a list of strings, and not 'a'"),
        ('source = "module"\nmodules = []', r"modules is a list of strings, and not \[\]"),
        ('source = "module"\nmodules = ["a", 1]', "modules is a list of strings"),
        ('source = 1\nmodules = ["a"]', "source is a string, and not 1"),
        ('source = "empty"\nmodules = ["a"]', "the folder empty, its source, has no Kbuild and no Makefile"),
        ('source = "none"\nmodules = ["a"]', "the folder none, its source, has no Kbuild"),
        ('source = "/usr"\nmodules = ["a"]', "source is a folder of the project, and not /usr"),
        ('source = "module"\nmodules = ["a"]\nkernels = ["linux-0"]', "there is no kernel linux-0 for amd64"),
        ('source = "module"\nmodules = ["a"]\nendpoints = true', "endpoints is a number, and not True"),
        ('source = "module"\nmodules = ["a"]\nendpoints = 9', "endpoints is 0 to 8, and not 9"),
        ('source = "module"\nmodules = ["a"]\nkernel = "x"', "there is no key kernel: there are source, "),
    ],
)
def test_a_wrong_file_is_named_with_its_key(folder: Path, text: str, said: str) -> None:
    path = folder / project.NAME
    path.write_text(text)
    with pytest.raises(HarnessError, match=said) as error:
        project.read(path)
    assert str(error.value).startswith(f"{path}: ")


def test_the_disk_of_guests_has_what_pynymph_depends_on() -> None:
    """The list is in the harness: other projects' guests have the same disk."""
    needs = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(needs) <= set(root.WHEELS)


def test_the_guide_shows_the_file_of_the_example() -> None:
    (block,) = doc_blocks.run_by(doc_blocks.PROJECT)
    assert (CHECKOUT / "examples/tally/nymph-vm.toml").read_text().endswith(f"\n{block.text}")
