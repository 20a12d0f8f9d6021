# SPDX-License-Identifier: MIT
"""Large copies on the engine that the driver chose: several channels share them, also when some fail."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from nymph_vm import build, kernels, slots
from nymph_vm.arch import UM
from nymph_vm.endpoint import CHANNELS, EndpointError
from nymph_vm.faults import Fault
from nymph_vm.host import CHECKOUT
from nymph_vm.machine import Machine

COUNTERS = "/sys/class/misc/pcie_nymph/counters"
IN_USE = "cat /sys/class/dma/dma*/in_use"

# Large copies, one after the other, on the engine that it is told, until its input has a line. Says how they
# ended, and whether all that ended well was right.
COPY_ON = """
import collections, errno, json, select, sys, pynymph
MIB, ended, engines, wrong, number = 1 << 20, collections.Counter(), collections.Counter(), 0, 0
ring = pynymph.Ring(8, engine=sys.argv[1])
memory = bytearray(9 * MIB)
src, dst = ring.allocate(9 * MIB), ring.register(memory)
print("copying", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    number += 1
    src.view[:] = number.to_bytes(8, "little") * (len(src) // 8)
    try:
        done = ring.copy(src=src[3:], dst=dst[: len(dst) - 3], zero_copy=True)
    except pynymph.NymphError as error:
        ended[errno.errorcode[error.errno]] += 1
    else:
        ended["ok"] += 1
        engines[done.engine] += 1
        wrong += memory[:-3] != src.view[3:]
print(json.dumps({"ended": ended, "engines": engines, "wrong": wrong}), flush=True)
"""
# One, and which MiB of it have arrived.
PARTS = """
import os, subprocess, sys, pynymph
MIB = 1 << 20
with pynymph.Ring(8, engine=sys.argv[1]) as ring:
    src, dst = ring.allocate(8 * MIB), ring.allocate(8 * MIB)
    src.view[:] = os.urandom(8 * MIB)
    ring.copy(src=src, dst=dst, zero_copy=True)
    for at in range(0, 8 * MIB, MIB):
        print(int(dst.view[at : at + MIB] == src.view[at : at + MIB]), end="")
    print("", subprocess.run(["sh", "-c", sys.argv[2]], capture_output=True, text=True).stdout.count("1"))
"""
# A ring with one channel of each of two devices, and the second does not answer any more.
FROZEN = """
import errno, sys, time, pynymph
MIB, counters = 1 << 20, "/sys/class/misc/pcie_nymph/counters/"
ring = pynymph.Ring(8)
src, dst, other = (ring.allocate(2 * MIB) for _ in range(3))
src.view[:] = bytes(range(256)) * (2 * MIB // 256)
print(ring.copy(src=src[:MIB], dst=dst[:MIB], zero_copy=True).engine, flush=True)  # too small for two
ring.copy(src=src, dst=dst, zero_copy=True)
sys.stdin.readline()
try:
    ring.copy(src=src, dst=dst, zero_copy=True)
except pynymph.NymphError as error:
    print(errno.errorcode[error.errno], end=" ")
print(ring.copy(src=src, dst=other, zero_copy=True).engine, other.view == src.view, end=" ")
start = time.monotonic()
ring.close()
print(time.monotonic() - start < 1, end=" ")
print(*(int(open(counters + name).read()) > 0 for name in ("quarantined", "allocated_pages", "mappings")))
"""


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine with two endpoints."""
    name, arch, more = map(request.config.getoption, ("kernel", "arch", "append"))
    two = slots.native(2) if arch == UM.name else slots.root_ports(2)
    kernel = kernels.named(name, arch)
    with Machine(f"spread-{os.getpid()}", kernel=kernel, append=more, slots=two) as machine:
        yield machine


@pytest.fixture(autouse=True)
def clean(pair: Machine) -> Iterator[None]:
    yield
    for endpoint in pair.endpoints.values():
        endpoint.set_faults()
    assert counts(pair) == [0, 0, 0]
    assert (pair.complaints(), pair.taint()) == ([], 0)


def counts(vm: Machine) -> list[int]:
    names = ("quarantined", "allocated_pages", "mappings")
    return [int(vm.run(["cat", f"{COUNTERS}/{name}"]).stdout) for name in names]


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextlib.contextmanager
def copying(vm: Machine, engine: str = "auto") -> Iterator[Callable[[], Any]]:
    """What it yields ends the copies, and returns what came of them."""
    command = vm.command(["python3", "-c", COPY_ON, engine])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert running.stdout.readline() == "copying\n"

        def end() -> Any:
            said, _ = running.communicate("\n", timeout=120)
            assert running.returncode == 0
            return json.loads(said)

        yield end
        running.kill()


def parts(vm: Machine, engine: str) -> tuple[str, int]:
    """Of 8 MiB, a 1 for each that arrived, and how many channels were taken."""
    arrived, taken = vm.run(["python3", "-c", PARTS, engine, IN_USE]).stdout.split()
    return arrived, int(taken)


def test_each_channel_of_the_device_copies_a_part(pair: Machine) -> None:
    assert parts(pair, "auto") == ("1" * 8, CHANNELS)
    missing = set()
    for channel in range(CHANNELS):
        pair.endpoints["ep0"].set_faults(Fault("skipped", channel=channel))
        arrived, _ = parts(pair, "auto")
        missing |= {number for number, good in enumerate(arrived) if good == "0"}
        assert pair.endpoints["ep0"].injected() == {"skipped": arrived.count("0")}
        assert 0 < arrived.count("0") < 8
    assert missing == set(range(8))


def test_named_channel_copies_alone(pair: Machine) -> None:
    for channel in range(1, CHANNELS):
        pair.endpoints["ep0"].set_faults(Fault("skipped", channel=channel))
        assert parts(pair, "dma0chan0") == ("1" * 8, 1)


def test_busy_channels_take_no_part(pair: Machine) -> None:
    """A channel that is at something else takes no part, and large copies beside each other are right."""
    with copying(pair) as end_one, copying(pair) as end_other, copying(pair, "dma0chan1") as end_third:
        time.sleep(1)
        for end in (end_one, end_other, end_third):
            found = end()
            assert (set(found["ended"]), found["wrong"]) == ({"ok"}, 0)


@pytest.mark.parametrize("engine", ["auto", "dma0chan0"])
def test_copies_survive_dying_channels(pair: Machine, engine: str) -> None:
    with copying(pair, engine) as end:
        for round_ in range(8):
            time.sleep(0.3)
            with contextlib.suppress(EndpointError):  # it is dead still
                pair.endpoints["ep0"].kill_channel(round_ % 2)
        time.sleep(0.5)
        found = end()
    assert found["wrong"] == 0
    assert found["ended"].pop("ok")
    assert set(found["ended"]) <= (set() if engine == "auto" else {"ETIMEDOUT", "EIO"})
    assert parts(pair, "dma0chan0") == ("1" * 8, 1)


def test_cpu_copies_the_parts_of_faulty_channels(pair: Machine) -> None:
    """Of those that the device reports, or the driver finds: the CPU does that part."""
    fallbacks = f"cat {COUNTERS}/fallbacks"
    before = int(pair.run(["sh", "-c", fallbacks]).stdout)
    with copying(pair) as end:
        for kind in ("lost", "unknown", "stall", "garbage-ring"):
            pair.endpoints["ep0"].set_faults(Fault(kind, rate=0.2, seed=2, count=3))
            wait_for(lambda: bool(pair.endpoints["ep0"].injected()))
            time.sleep(1)
        pair.endpoints["ep0"].set_faults()
        found = end()
    assert (set(found["ended"]), found["wrong"]) == ({"ok"}, 0)
    assert int(pair.run(["sh", "-c", fallbacks]).stdout) > before


def test_copies_survive_unplug_and_replug(pair: Machine) -> None:
    with copying(pair) as end:
        for _ in range(2):
            time.sleep(0.5)
            pair.unplug("ep0")
            time.sleep(0.2)
            pair.plug("ep0")
            wait_for(lambda: nr_channels(pair) == 2 * CHANNELS)
        time.sleep(1.5)
        found = end()
    assert (set(found["ended"]), found["wrong"]) == ({"ok"}, 0)


def nr_channels(vm: Machine) -> int:
    return len(vm.run(["ls", "/sys/class/dma"]).stdout.split())


@pytest.fixture
def one_of_each(pair: Machine) -> Iterator[Machine]:
    """Only the first channel of either endpoint may be used."""
    names = pair.run(["sh", "-c", "cd /sys/class/dma; echo *chan0"]).stdout.split()
    (module,) = (path for path in build.prepare(pair.state.kernel).modules if path.stem == "pcie_nymph")
    path = f"/nymph/repo/{module.relative_to(CHECKOUT)}"
    reload = 'rmmod pcie_nymph && insmod "$1" $2 && udevadm settle'
    pair.run(["sh", "-c", reload, "reload", path, f"dma_channels={','.join(names)}"])
    yield pair
    pair.run(["sh", "-c", reload, "reload", path, ""])


def test_part_of_an_unanswering_device_stays_in_quarantine(one_of_each: Machine) -> None:
    """Its part stays in quarantine, mapped, until its driver is gone; nobody else has to wait."""
    command = one_of_each.command(["python3", "-c", FROZEN])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin and running.stdout
        own = running.stdout.readline().strip()
        path = one_of_each.run(["readlink", "-f", f"/sys/class/dma/{own}"]).stdout
        other = "ep1" if "/0000:01:" in path else "ep0"  # the bus behind the first root port is 1
        one_of_each.endpoints[other].freeze()
        said, _ = running.communicate("\n", timeout=120)
    kind, engine, *good = said.split()
    assert (kind, good) == ("ETIMEDOUT", ["True"] * 5)
    assert engine == own
    one_of_each.unplug(other)
    wait_for(lambda: counts(one_of_each) == [0, 0, 0])
    one_of_each.plug(other)
    wait_for(lambda: nr_channels(one_of_each) == 2 * CHANNELS)
