# SPDX-License-Identifier: MIT
"""What pynymph has of kernel/pcie_nymph.h is what a C compiler makes of it: all of it, and nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pynymph import abi
from pynymph.abi import ffi, lib

HEADER = Path(__file__).parents[3] / "kernel" / "pcie_nymph.h"


def in_c(header: Path, folder: Path) -> dict[str, int]:
    """Every size, offset and constant of `header`, by a C program."""
    code = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL)
    constants = re.findall(r"^#define\s+(NYMPH_\w+)[ \t]+[^\s\"]", code, re.MULTILINE)
    lines = [f'P("{name}", {name});' for name in constants]
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


def test_python_agrees_with_c(tmp_path: Path) -> None:
    compiled = in_c(HEADER, tmp_path)
    assert in_python() == compiled
    # Had the search above missed the header's ways of writing, both sides would be empty.
    assert compiled["nymph_entry"] == 64
    assert compiled["nymph_record"] == 128
    assert compiled["nymph_record.dst_digest size"] == 32
    assert compiled["NYMPH_IOC_SUBMIT_DMA"] == 0xC0204E01
    assert len([name for name in compiled if name.startswith("NYMPH_IOC_")]) == 16


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("#define NYMPH_MAX_ENTRIES\t4096", "#define NYMPH_MAX_ENTRIES\t4095"),
        ("#define NYMPH_OP_COPY\t", "#define NYMPH_OP_MOVE\t5\n#define NYMPH_OP_COPY\t"),
        ("_IO(NYMPH_IOC_MAGIC, 8)", "_IO(NYMPH_IOC_MAGIC, 18)"),
        (
            "#define NYMPH_IOC_ENABLE",
            "#define NYMPH_IOC_DISABLE\t_IO(NYMPH_IOC_MAGIC, 16)\n#define NYMPH_IOC_ENABLE",
        ),
        ("__u32 num_engines;", "__u32 num_engines;\n\t__u64 more;"),
        ("\t__u32 to_submit;\n\t__u32 max_records;", "\t__u32 max_records;\n\t__u32 to_submit;"),
        (
            "struct nymph_engine_info {",
            "struct nymph_extra {\n\t__u32 size;\n};\n\nstruct nymph_engine_info {",
        ),
    ],
)
def test_drift_is_detected(tmp_path: Path, before: str, after: str) -> None:
    text = HEADER.read_text()
    assert text.count(before) == 1
    drifted = tmp_path / "pcie_nymph.h"
    drifted.write_text(text.replace(before, after))
    assert in_c(drifted, tmp_path) != in_python()


# What generators of bindings see: NYMPH_NO_DEADLINE, all ones, as a macro and an enumerator; all requests.
TYPED = """
#include <stdio.h>
#include "%s"
#define P(name) printf("%%s %%llu\\n", #name, (unsigned long long)NYMPH_REQUEST_##name)
_Static_assert(NYMPH_NO_DEADLINE == 0xffffffffffffffffULL, "the macro");
_Static_assert(__builtin_types_compatible_p(__typeof__(NYMPH_NO_DEADLINE), __u64), "of the macro");
#undef NYMPH_NO_DEADLINE
_Static_assert(NYMPH_NO_DEADLINE == 0xffffffffffffffffULL, "the enumerator");
_Static_assert(sizeof(NYMPH_NO_DEADLINE) == 8, "of the enumerator");
_Static_assert(sizeof(enum nymph_request) == 4 && (enum nymph_request)-1 > 0, "as ioctl() takes it");
int main(void)
{
	%s
	return 0;
}
"""
REQUESTS = {
    name.removeprefix("NYMPH_IOC_"): value
    for name, value in vars(abi).items()
    if name.startswith("NYMPH_IOC_")
}


def test_constants_have_the_types_of_c(tmp_path: Path) -> None:
    source, program = tmp_path / "typed.c", tmp_path / "typed"
    source.write_text(TYPED % (HEADER, " ".join(f"P({name});" for name in REQUESTS)))
    subprocess.run(["gcc", "-Wall", "-Wextra", "-pedantic", "-Werror", "-o", program, source], check=True)
    said = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert said == "".join(f"{name} {value}\n" for name, value in REQUESTS.items())
    shown = re.findall(r"NYMPH_REQUEST_(\w+) =", HEADER.read_text())
    assert sorted(shown) == sorted(REQUESTS)


def test_header_compiles_without_warnings(tmp_path: Path) -> None:
    source = tmp_path / "strict.c"
    source.write_text(f'#include "{HEADER}"\n__u64 never = NYMPH_NO_DEADLINE;\n')
    for standard in ("c99", "c11", "gnu17"):
        options = ["-Wall", "-Wextra", "-pedantic", "-Werror", f"-std={standard}", "-fsyntax-only"]
        subprocess.run(["gcc", *options, source], check=True)


@pytest.mark.skipif(shutil.which("bindgen") is None, reason="no bindgen here: Debian's package bindgen")
def test_bindgen_translates_the_header(tmp_path: Path) -> None:
    said = subprocess.run(["bindgen", HEADER], check=True, capture_output=True, text=True).stdout
    assert re.findall(r"pub const NYMPH_NO_DEADLINE: \w+ = (\S+);", said) == ["18446744073709551615"]
    for name, value in REQUESTS.items():
        assert f"pub const nymph_request_NYMPH_REQUEST_{name}: nymph_request = {value};" in said


@pytest.mark.skipif(shutil.which("go") is None, reason="no Go here (Debian's package golang-go)")
def test_go_translates_the_header(tmp_path: Path) -> None:
    lines = [f"\t{name} = C.NYMPH_IOC_{name}" for name in REQUESTS]
    code = f'package p\n// #include "{HEADER}"\nimport "C"\nconst (\n\tNoDeadline = C.NYMPH_NO_DEADLINE\n'
    (tmp_path / "p.go").write_text(code + "\n".join(lines) + "\n)\n")
    command = ["go", "tool", "cgo", "-godefs", "p.go"]
    said = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    found = dict(re.findall(r"^\s(\w+)\s+= (0x\w+)$", said, re.MULTILINE))
    assert found == {name: hex(value) for name, value in {"NoDeadline": 2**64 - 1, **REQUESTS}.items()}


def test_zig_translates_the_header(tmp_path: Path) -> None:
    """It translates macros with arguments, too."""
    pytest.importorskip("ziglang")
    zig = [sys.executable, "-m", "ziglang"]
    cache = os.environ | {
        "ZIG_GLOBAL_CACHE_DIR": str(tmp_path / "cache"),
        "ZIG_LOCAL_CACHE_DIR": str(tmp_path / "local"),
    }
    translated = subprocess.run(
        [*zig, "translate-c", "-lc", HEADER], check=True, capture_output=True, text=True, env=cache
    )
    (tmp_path / "nymph.zig").write_text(translated.stdout)
    lines = [
        f"try expectEqual(@as(u64, {value}), @as(u64, c.NYMPH_IOC_{name}));"
        for name, value in REQUESTS.items()
    ]
    (tmp_path / "test.zig").write_text(
        'const c = @import("nymph.zig");\nconst expectEqual = @import("std").testing.expectEqual;\n'
        'test "values" {\n' + "\n".join(lines) + "\ntry expectEqual(~@as(u64, 0), c.NYMPH_NO_DEADLINE);\n}\n"
    )
    subprocess.run([*zig, "test", tmp_path / "test.zig"], check=True, capture_output=True, env=cache)
