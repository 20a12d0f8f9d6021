# SPDX-License-Identifier: MIT
"""A debug kernel is one: what is to shout of mistakes is in it, and in the module built for it."""

import pytest
from nymph_vm import build, kernels
from nymph_vm.machine import Machine

OPTIONS = (
    *("KASAN_GENERIC", "PROVE_LOCKING", "DEBUG_ATOMIC_SLEEP", "DEBUG_KMEMLEAK", "DEBUG_OBJECTS"),
    *("FAULT_INJECTION_DEBUG_FS", "FAILSLAB", "FAIL_PAGE_ALLOC", "FAULT_INJECTION_USERCOPY"),
    *("UBSAN", "KCOV", "GCOV_KERNEL", "KUNIT", "DMA_API_DEBUG", "DMATEST"),
    *("UDMABUF", "DMABUF_HEAPS", "DMABUF_HEAPS_SYSTEM"),
)
# What the compiler makes a module call, for KASAN, UBSAN, KCOV and GCOV.
CALLS = (b"__asan_report_load", b"__ubsan_handle_", b"__sanitizer_cov_trace_pc", b"__gcov_init")


@pytest.fixture(autouse=True)
def needs_debug_kernel(vm: Machine) -> None:
    if not kernels.KERNELS[vm.state.kernel].debug:
        pytest.skip("needs a kernel with sanitizers: make check, or pytest --kernel debug-6.1")


def test_debug_kernel_has_every_detector(vm: Machine) -> None:
    lines = vm.run(["zcat", "/proc/config.gz"]).stdout.splitlines()
    on = {line.partition("=")[0] for line in lines if line.endswith(("=y", "=m"))}
    assert {f"CONFIG_{option}" for option in OPTIONS} <= on


def test_modules_are_instrumented(vm: Machine) -> None:
    for module in build.prepare(vm.state.kernel).modules:
        code = module.read_bytes()
        assert [call for call in CALLS if call not in code] == []
