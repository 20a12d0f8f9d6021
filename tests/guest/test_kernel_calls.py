# SPDX-License-Identifier: MIT
"""What the module asks of the rest of the kernel, and with what: seen by kprobes."""

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import abi
import pytest
from abi import CHUNK, DIGEST_ONLY, MIB, PAGE, RECORD, VERIFY_HASH, ZERO_COPY, Context, Memory, in_buffers

import pynymph

pytestmark = pytest.mark.emulated
TRACING = Path("/sys/kernel/tracing")
CHANNELS = [engine.encode() for engine in pynymph.query().engines.values() if engine != "cpu"]
CAP_IPC_LOCK = 14

Probe = Callable[[str, str], contextlib.AbstractContextManager[list[int]]]


@pytest.fixture
def probe() -> Iterator[Probe]:
    """probe(function, value) collects `value` of every call of `function` by this process, until its end."""
    if os.geteuid():
        pytest.skip("needs root")
    if not (TRACING / "events").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACING], capture_output=True)
    events = TRACING / "kprobe_events"
    if not events.exists():
        pytest.skip("this kernel has no kprobe events")
    # Names of tasks are recorded by probes in the scheduler, whose code would be patched for each of ours.
    names = TRACING / "options/record-cmd"
    records_names = names.read_text()
    names.write_text("0")
    number = 0

    def tell(line: str) -> None:
        file = os.open(events, os.O_WRONLY | os.O_APPEND)  # and without a seek, as open() does
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    @contextlib.contextmanager
    def collect(function: str, value: str) -> Iterator[list[int]]:
        nonlocal number
        number += 1
        event = f"call{number}"
        tell(f"p:nymph_test/{event} {function} value={value}:u64\n")
        enable = TRACING / f"events/nymph_test/{event}/enable"
        (TRACING / "trace").write_text("")
        values: list[int] = []
        enable.write_text("1")
        try:
            yield values
        finally:
            enable.write_text("0")
            found = re.findall(rf"-(\d+) .* {event}: .* value=(\d+)", (TRACING / "trace").read_text())
            ours = {str(os.getpid()), *os.listdir("/proc/self/task")}
            values += [int(value) for task, value in found if task in ours]
            tell(f"-:nymph_test/{event}\n")

    yield collect
    names.write_text(records_names)


@pytest.fixture
def addresses() -> Iterator[None]:
    """Root sees the kernel's addresses."""
    restrict = Path("/proc/sys/kernel/kptr_restrict")
    before = restrict.read_text()
    restrict.write_text("1")
    yield
    restrict.write_text(before)


def io_ranges() -> list[range]:
    """Where the kernel has memory of devices."""
    lines = Path("/proc/vmallocinfo").read_text().splitlines()
    found = [re.match(r"0x(\w+)-0x(\w+) .* phys=", line) for line in lines]
    return [range(int(each[1], 16), int(each[2], 16)) for each in found if each]


@pytest.mark.skipif(not CHANNELS, reason="there is no engine but the CPU")
@pytest.mark.parametrize("flags", [0, ZERO_COPY])
@pytest.mark.parametrize("digest", [VERIFY_HASH, DIGEST_ONLY])
def test_card_memory_is_never_hashed_in_place(probe: Probe, addresses: None, flags: int, digest: int) -> None:
    """SIMD code reads no slow memory: during it nothing else runs on that CPU."""
    ranges = io_ranges()
    assert ranges
    data, back = Memory(CHUNK + 7).randomize(), Memory(CHUNK + 7)
    with Context() as context:
        context.setup(8, engine=CHANNELS[0])
        card = context.buffer(abi.BUFFER_CARD, length=CHUNK + 7).handle
        flags |= RECORD | abi.COMPLETE_SYNC
        with probe("pcie_nymph:nymph_blake3_update", "$arg2") as hashed:
            there = in_buffers(abi.copy(data.address, 0, CHUNK + 7, flags | digest), dst=card)
            assert context.run(there).status == 0
            again = in_buffers(abi.copy(0, back.address, CHUNK + 7, flags | digest), src=card)
            assert context.run(again).status == 0
            only = in_buffers(abi.hash_only(0, CHUNK + 7, flags), src=card)
            assert context.run(only).status == 0
    assert back.equals(data, CHUNK + 7)
    assert hashed
    assert [address for address in hashed if any(address in each for each in ranges)] == []


def test_many_pages_are_unpinned_in_steps(probe: Probe) -> None:
    """So that others have their turn: where the kernel does not preempt, one call is one turn."""
    memory = abi.small_pages(8 * MIB)
    with Context() as context:
        context.setup(4)
        handle = context.register(memory)
        with probe("unpin_user_pages_dirty_lock", "$arg2") as steps:
            context.free(handle)
        assert sum(steps) == 8 * MIB // PAGE
        assert max(steps) <= 512


def test_no_capability_is_checked_below_the_limit(probe: Probe) -> None:
    """What is asked can end in the audit log; and root has the same limit, and may exceed it."""
    memory = [Memory(PAGE).randomize(), Memory(PAGE)]
    with Context() as context:
        context.setup(4)
        with probe("capable", "$arg1") as asked:
            for _ in range(8):
                entry = abi.copy(memory[0].address, memory[1].address, PAGE, ZERO_COPY | RECORD)
                assert context.run(entry).status == 0
            context.free(context.alloc(PAGE).handle)
            context.free(context.register(memory[0]))
        assert CAP_IPC_LOCK not in asked
        with probe("capable", "$arg1") as asked:
            context.free(context.alloc(16 * MIB).handle)
        assert CAP_IPC_LOCK in asked


def test_query_does_not_search_channels_each_time(probe: Probe) -> None:
    """dmaengine can only be asked for a channel, under its own lock: once for many queries."""
    with probe("__dma_request_channel", "$arg1") as looked, Context() as context:
        for _ in range(50):
            context.query()
    assert len(looked) <= 2
