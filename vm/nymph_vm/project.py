# SPDX-License-Identifier: MIT
"""nymph-vm.toml: the module that nymph-vm builds and loads, and how it is tested.

The project is the folder of that file: the nearest one from the working directory upwards. Guests see it,
read-only, at /nymph/repo; what is built for them is in its build/.
"""

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nymph_vm import kernels
from nymph_vm.arch import AMD64
from nymph_vm.host import CHECKOUT, HarnessError

NAME = "nymph-vm.toml"
IN_GUEST = "/nymph/repo"

# The keys, and what each has to be.
TYPES: dict[str, type] = {"source": str, "modules": list, "kernels": list, "test": str, "endpoints": int}


@dataclass(frozen=True)
class Project:
    """A folder with a nymph-vm.toml, and what that says."""

    folder: Path
    source: Path  # the folder with the Kbuild
    modules: tuple[str, ...]  # their names, in the order in which they are loaded
    kernels: tuple[str, ...] = (kernels.DEFAULT,)  # those that `nymph-vm test` takes, of kernels.NAMES
    test: str | None = None  # a shell command, for root in the guest
    endpoints: int = 0  # how many PCI functions with DMA channels a guest has if nobody says

    @property
    def is_pynymph(self) -> bool:
        return self.folder == CHECKOUT

    @property
    def build(self) -> Path:
        """What is built for guests."""
        return self.folder / "build"

    def in_guest(self, path: Path) -> str:
        """Where guests have a file or folder of the project."""
        return f"{IN_GUEST}/{path.relative_to(self.folder)}"


def here() -> Project:
    """The project of the working directory; outside of any, pynymph, if nymph-vm runs from its checkout.

    Raises HarnessError: there is none, or its file is wrong.
    """
    folder = Path.cwd()
    for each in (folder, *folder.parents, CHECKOUT):
        if (each / NAME).is_file():
            return read(each / NAME)
    raise HarnessError(f"there is no {NAME} in {folder} or above: write one with the keys source and modules")


def pynymph() -> Project:
    """The project, if it is pynymph: for commands that are about nothing else. Raises HarnessError."""
    project = here()
    if not project.is_pynymph:
        raise HarnessError(f"this command is for a checkout of pynymph, and {project.folder} is none")
    return project


@functools.cache
def read(path: Path) -> Project:
    """The project of a nymph-vm.toml. Raises HarnessError, which names the file and the key."""

    def wrong(what: str) -> HarnessError:
        return HarnessError(f"{path}: {what}")

    try:
        said: dict[str, Any] = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise wrong(str(error)) from None
    for key, value in said.items():
        if key not in TYPES:
            raise wrong(f"there is no key {key}: there are {', '.join(TYPES)}")
        if type(value) is not TYPES[key] or (
            isinstance(value, list) and not (value and all(type(each) is str for each in value))
        ):
            kind = {str: "a string", list: "a list of strings", int: "a number"}[TYPES[key]]
            raise wrong(f"{key} is {kind}, and not {value!r}")
    for key in ("source", "modules"):
        if key not in said:
            raise wrong(f"{key} is missing")
    for name in said.get("kernels", ()):
        try:
            kernels.named(name, AMD64.name)
        except HarnessError as error:
            raise wrong(str(error)) from None
    if not 0 <= said.get("endpoints", 0) <= 8:
        raise wrong(f"endpoints is 0 to 8, and not {said['endpoints']}")
    folder = path.resolve().parent
    source = (folder / said["source"]).resolve()
    if not source.is_relative_to(folder):
        raise wrong(f"source is a folder of the project, and not {said['source']}")
    if not any((source / name).is_file() for name in ("Kbuild", "Makefile")):
        raise wrong(f"the folder {said['source']}, its source, has no Kbuild and no Makefile")
    lists = {key: tuple(value) for key, value in said.items() if isinstance(value, list)}
    return Project(folder, **said | {"source": source} | lists)
