# SPDX-License-Identifier: MIT
"""Builds `pynymph._nymph`, the compiled face of kernel/pcie_nymph.h, and `pynymph._tree`. Run by setup.py.

Every struct and constant is taken out of the header at build time, so there is no second copy to drift.
Request numbers are left out: `pynymph.abi` makes them, with ioctl-opt.
"""

import re
from pathlib import Path

from cffi import FFI

# setuptools wants it relative to setup.py; as a dependency it also gets into the sdist.
HEADER = "kernel/pcie_nymph.h"

# As <asm-generic/int-ll64.h> has them. <stdint.h>'s would be other types of the same size on some machines.
TYPES = """
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef __u16 __le16;
typedef __u32 __le32;
typedef __u64 __le64;
"""


def cdef(header: str) -> str:
    """What of `header`, the text of a C header, cffi is to know: all its structs, and all its constants."""
    code = re.sub(r"/\*.*?\*/", " ", header, flags=re.DOTALL).replace("\\\n", " ")
    # What these have is in the macros, too.
    code = re.sub(r"^__extension__ enum\b.*?\};", "", code, flags=re.DOTALL | re.MULTILINE)
    constants = re.findall(r"^#define[ \t]+(NYMPH_\w+)[ \t]+(?!_IO|\")\S", code, flags=re.MULTILINE)
    structs = re.sub(r"^[ \t]*#.*$", "", code, flags=re.MULTILINE)
    # cffi leaves it to the compiler how long an array is whose length has a name.
    structs = re.sub(r"\[NYMPH_\w+\]", "[...]", structs)
    return TYPES + structs + "".join(f"#define {name} ...\n" for name in constants)


ffibuilder = FFI()
ffibuilder.cdef(cdef((Path(__file__).parent.parent / HEADER).read_text()))
ffibuilder.set_source(
    "pynymph._nymph",
    '#include "pcie_nymph.h"',
    include_dirs=[str(Path(HEADER).parent)],
    depends=[HEADER],
)

TREE = """
    struct nymph_arrival {
        const uint8_t *data;
        uint64_t nbytes;
        uint8_t *nodes;
        const uint32_t *arrived;
        uint64_t chunk, next;
        uint32_t key[8], flags, level, stop;
    };
    void nymph_tree_nodes(const uint8_t *p, uint64_t nbytes, uint64_t first, const uint32_t *key,
                          uint32_t flags, unsigned int level, uint8_t *out);
    void nymph_tree_arriving(struct nymph_arrival *a, unsigned int threads);
    void nymph_tree_root(uint8_t *nodes, uint64_t n, const uint32_t *key, uint32_t flags);
    void nymph_tree_above(uint8_t *nodes, uint64_t n, const uint32_t *key, uint32_t flags);
"""

tree = FFI()
tree.cdef(TREE)
tree.set_source(
    "pynymph._tree",
    f"#include <stdint.h>\n{TREE}",
    sources=["pynymph/_tree.c"],
    extra_compile_args=["-std=gnu11", "-O3", "-pthread"],
    extra_link_args=["-pthread"],
)
