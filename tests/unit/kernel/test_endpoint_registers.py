# SPDX-License-Identifier: MIT
"""docs/reference/endpoint.md, the device model and the driver's header agree on every register and bit."""

import re
import subprocess
from pathlib import Path

import pytest
from nymph_vm import endpoint

ROOT = Path(__file__).parents[3]
MANUAL = (ROOT / "docs/reference/endpoint.md").read_text()
HEADER = ROOT / "kernel/nymph_endpoint/regs.h"

# What begins the text before the manual's table; the model's layout; the driver's struct.
BLOCKS = {
    "## Device registers": (endpoint.DEVICE, "nymph_ep_regs"),
    "## Channel registers": (endpoint.CHANNEL, "nymph_ep_chan_regs"),
    "A descriptor has 32 bytes": (endpoint.DESC, "nymph_ep_desc"),
    "A completion has 16 bytes": (endpoint.DONE, "nymph_ep_done"),
}
CODES = {
    "| error | name |": ("BAD_RING", "BAD_TAIL", "DIED"),
    "| status | name |": ("OK", "BAD_DESC", "BAD_SRC", "BAD_DST"),
}


def rows(heading: str) -> list[list[str]]:
    """The first table behind a heading: its rows, without the head."""
    lines = MANUAL[MANUAL.index(heading) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))])
    return table


def compiled(tmp_path: Path, expressions: list[str]) -> list[int]:
    """What C expressions are with the driver's header, which user space can compile too."""
    source = tmp_path / "values.c"
    prints = "".join(f'printf("%llu\\n", (unsigned long long)({each}));\n' for each in expressions)
    source.write_text(
        f'#include <stdio.h>\n#include <stddef.h>\n#include "{HEADER}"\n'
        f"int main(void)\n{{\n{prints}return 0;\n}}\n"
    )
    subprocess.run(["gcc", "-o", tmp_path / "values", source], check=True)
    said = subprocess.run([tmp_path / "values"], capture_output=True, text=True, check=True).stdout
    return [int(line) for line in said.split()]


@pytest.mark.parametrize("heading", BLOCKS)
def test_manual_model_and_driver_agree_on_layouts(heading: str, tmp_path: Path) -> None:
    layout, struct = BLOCKS[heading]
    manual = {row[1]: (int(row[0], 16), int(row[2])) for row in rows(heading)}
    assert manual == layout
    of_driver = compiled(
        tmp_path,
        [f"offsetof(struct {struct}, {name})" for name in layout]
        + [f"sizeof(((struct {struct} *)0)->{name}) * 8" for name in layout]
        + [f"sizeof(struct {struct})"],
    )
    offsets, bits, size = of_driver[: len(layout)], of_driver[len(layout) : -1], of_driver[-1]
    assert dict(zip(layout, zip(offsets, bits, strict=True), strict=True)) == layout
    assert size == max(offset + width // 8 for offset, width in layout.values())


@pytest.mark.parametrize("heading", CODES)
def test_manual_and_model_agree_on_codes(heading: str) -> None:
    manual = {row[1]: int(row[0]) for row in rows(heading)}
    assert manual == {name: getattr(endpoint, name) for name in CODES[heading]}


def test_driver_and_model_agree_on_values(tmp_path: Path) -> None:
    names = {
        "ID": endpoint.ID, "VERSION": endpoint.VERSION, "CHANNEL_BASE": endpoint.CHANNEL_BASE,
        "CHANNEL_STRIDE": endpoint.CHANNEL_STRIDE, "ENABLE": endpoint.ENABLE,
        "DISABLED": endpoint.DISABLED, "RUNNING": endpoint.RUNNING, "ERROR": endpoint.ERROR,
        "INTERRUPT": endpoint.INTERRUPT, "NOP": endpoint.NOP,
        **{name: getattr(endpoint, name) for name in CODES["| status | name |"]},
    }  # fmt: skip
    assert compiled(tmp_path, [f"NYMPH_EP_{name}" for name in names]) == list(names.values())


def test_manual_and_model_agree_on_values() -> None:
    values = {row[1]: row[4] for row in rows("## Device registers")}
    assert values["id"].startswith(f"{endpoint.ID:#x}")
    assert values["version"] == str(endpoint.VERSION)
    states = re.findall(r"(\d) (DISABLED|RUNNING|ERROR)", MANUAL)
    assert {name: int(number) for number, name in states} == {
        name: getattr(endpoint, name) for name in ("DISABLED", "RUNNING", "ERROR")
    }
    assert f"offset {endpoint.CHANNEL_BASE:#x} + {endpoint.CHANNEL_STRIDE:#x} n of BAR 2" in MANUAL
    assert "bit 0 ENABLE" in MANUAL
    assert "bit 0 INTERRUPT" in MANUAL
    assert "bit 1 NOP" in MANUAL
