# SPDX-License-Identifier: MIT
"""The header means the same to a 32-bit program: checked by its compiler."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from nymph_vm import build
from nymph_vm.host import HarnessError

from pynymph import abi
from pynymph.abi import ffi


def contract() -> Iterator[tuple[str, int]]:
    """Expressions in C, and their values in a 64-bit program."""
    for struct in ffi.list_types()[1]:
        yield f"sizeof(struct {struct})", ffi.sizeof(f"struct {struct}")
        for name, field in ffi.typeof(f"struct {struct}").fields:
            yield f"__builtin_offsetof(struct {struct}, {name})", field.offset
            yield f"sizeof(((struct {struct} *)0)->{name})", ffi.sizeof(field.type)
    yield from ((name, number) for name, number in vars(abi).items() if name.startswith("NYMPH_IOC_"))


def program(path: Path, expected: list[tuple[str, int]]) -> None:
    lines = [f'_Static_assert({what} == {value}, "{what}");' for what, value in expected]
    path.write_text('#include "pcie_nymph.h"\n' + "\n".join(lines) + "\nint main(void) { return 0; }\n")
    build.program(path, bits=32)


def test_layouts_and_request_numbers_are_the_same(tmp_path: Path) -> None:
    expected = list(contract())
    assert ("sizeof(struct nymph_entry)", 64) in expected
    program(tmp_path / "contract.c", expected)


def test_difference_is_detected(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="static assertion failed"):
        program(tmp_path / "contract.c", [("sizeof(struct nymph_entry)", 65)])
