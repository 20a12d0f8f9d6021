# SPDX-License-Identifier: MIT
"""What pynymph has of kernel/pcie_nymph.h is what a C compiler makes of it: all of it, and nothing else."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from pynymph import abi
from pynymph.abi import ffi, lib

HEADER = Path(__file__).parents[2] / "kernel" / "pcie_nymph.h"


def in_c(header: Path, folder: Path) -> dict[str, int]:
    """Every size, offset and constant of `header`, by a C program."""
    code = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL)
    lines = [
        f'P("{name}", {name});' for name in re.findall(r"^#define\s+(NYMPH_\w+)[ \t]+\S", code, re.MULTILINE)
    ]
    for struct, body in re.findall(r"^struct\s+(\w+)\s*\{(.*?)^\};", code, re.DOTALL | re.MULTILINE):
        lines.append(f'P("{struct}", sizeof(struct {struct}));')
        for field in re.findall(r"(\w+)(?:\[\w+\])?\s*;", body):
            lines.append(f'P("{struct}.{field}", offsetof(struct {struct}, {field}));')
            lines.append(f'P("{struct}.{field} size", sizeof(((struct {struct} *)0)->{field}));')
    source = folder / "contract.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n"
        f'#include "{header}"\n'
        '#define P(name, value) printf("\\"%s\\": %llu,\\n", name, (unsigned long long)(value))\n'
        'int main(void)\n{\nputs("{");\n' + "\n".join(lines) + '\nputs("\\"\\": 0}");\nreturn 0;\n}\n'
    )
    program = folder / "contract"
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", program, source], check=True)
    found: dict[str, int] = json.loads(subprocess.run([program], check=True, capture_output=True).stdout)
    del found[""]
    return found


def in_python() -> dict[str, int]:
    found = {name: getattr(lib, name) for name in dir(lib)}
    found |= {name: value for name, value in vars(abi).items() if name.startswith("NYMPH_")}
    for struct in ffi.list_types()[1]:
        found[struct] = ffi.sizeof(f"struct {struct}")
        for name, field in ffi.typeof(f"struct {struct}").fields:
            found[f"{struct}.{name}"] = field.offset
            found[f"{struct}.{name} size"] = ffi.sizeof(field.type)
    return found


def test_python_has_what_c_has(tmp_path: Path) -> None:
    compiled = in_c(HEADER, tmp_path)
    assert in_python() == compiled
    # Had the search above missed the header's ways of writing, both sides would be empty.
    assert compiled["nymph_entry"] == 64
    assert compiled["nymph_record"] == 128
    assert compiled["nymph_record.dst_digest size"] == 32
    assert compiled["NYMPH_IOC_SUBMIT_DMA"] == 0xC0204E01
    assert len([name for name in compiled if name.startswith("NYMPH_IOC_")]) == 15


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("#define NYMPH_MAX_ENTRIES\t4096", "#define NYMPH_MAX_ENTRIES\t4095"),
        ("#define NYMPH_OP_COPY\t", "#define NYMPH_OP_MOVE\t5\n#define NYMPH_OP_COPY\t"),
        ("_IO(NYMPH_IOC_MAGIC, 8)", "_IO(NYMPH_IOC_MAGIC, 18)"),
        (
            "#define NYMPH_IOC_ENABLE",
            "#define NYMPH_IOC_DISABLE\t_IO(NYMPH_IOC_MAGIC, 15)\n#define NYMPH_IOC_ENABLE",
        ),
        ("__u32 num_engines;", "__u32 num_engines;\n\t__u64 more;"),
        ("\t__u32 to_submit;\n\t__u32 max_records;", "\t__u32 max_records;\n\t__u32 to_submit;"),
        (
            "struct nymph_engine_info {",
            "struct nymph_extra {\n\t__u32 size;\n};\n\nstruct nymph_engine_info {",
        ),
    ],
)
def test_drift_is_seen(tmp_path: Path, before: str, after: str) -> None:
    text = HEADER.read_text()
    assert text.count(before) == 1
    drifted = tmp_path / "pcie_nymph.h"
    drifted.write_text(text.replace(before, after))
    assert in_c(drifted, tmp_path) != in_python()
