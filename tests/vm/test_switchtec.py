# SPDX-License-Identifier: MIT
"""Linux's own drivers of DMA engines, unmodified, on models of their functions, and rings on their channels.

On native guests. The faults are those of nymph_vm.devices.switchtec; a user of the ring sees them here.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import doc_blocks
import pytest
from nymph_vm import kernels, slots
from nymph_vm.devices import plx
from nymph_vm.devices.plx import PlxFault
from nymph_vm.devices.switchtec import KINDS, STATUSES, SwitchtecFault
from nymph_vm.faults import with_faults
from nymph_vm.host import CHECKOUT
from nymph_vm.machine import Machine
from nymph_vm.pci import Function
from nymph_vm.pytest_plugin import FOLDER
from nymph_vm.uml import Uml

pytestmark = pytest.mark.native

LOAD = Path(__file__).with_name("endpoint_load.py")
SWITCHTEC, PLX = "nymph_vm.devices.switchtec:Switchtec", "nymph_vm.devices.plx:Plx"
DRIVERS = "switchtec_dma", "plx_dma"
TIMEOUT_MS = 2000  # on a busy host a sound channel takes its time
COUNTERS = "/sys/class/misc/pcie_nymph/counters"

# What only hashing finds.
SILENT = ("flip", "short", "skipped")
# What the driver copes with.
HARMLESS = ("doubled", "reordered", "no-interrupt", "slow")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A guest with both functions, their drivers, and rings that may use them."""
    append = f"pcie_nymph.dma_channels={','.join(DRIVERS)} pcie_nymph.dma_timeout_ms={TIMEOUT_MS}"
    name = f"test-switchtec-{os.getpid()}"
    with Machine(
        name, kernel=kernels.NATIVE, memory="4G", slots=slots.native(0), pci=[SWITCHTEC, PLX], append=append
    ) as machine:
        machine.copy_in(str(LOAD))
        for driver in DRIVERS:
            machine.run(["modprobe", driver])
        yield machine


@pytest.fixture
def switchtec(machine: Machine) -> Iterator[Function]:
    """The function, sound before and after; its driver is bound."""
    function = functions(machine)[0]
    yield function
    function.ask(with_faults())


@pytest.fixture
def plx_dma(machine: Machine) -> Iterator[Function]:
    """The other one, in the same way."""
    function = functions(machine)[1]
    yield function
    function.ask(with_faults())


@pytest.fixture(autouse=True)
def _sound_kernel(machine: Machine) -> Iterator[None]:
    """Behind each test: no warning but what a driver says of errors, no refused DMA, and nothing is held."""
    yield
    ours = [each for each in machine.complaints() if not re.match(r"dma dma\d+chan\d+: ", each)]
    assert (ours, machine.taint()) == ([], 0)
    held = [f"{COUNTERS}/{name}" for name in ("quarantined", "mappings", "pinned_pages", "rings")]
    wait_for(lambda: machine.run(["cat", *held]).stdout.split() == ["0"] * len(held))
    assert [function.log() for function in functions(machine)] == ["", ""]


def functions(machine: Machine) -> list[Function]:
    assert isinstance(machine.vmm, Uml)
    return [machine.vmm.functions[f"pci{number}"] for number in range(len(DRIVERS))]


def channels(machine: Machine, driver: str) -> list[str]:
    """The names of a driver's channels."""
    return machine.run(["sh", "-c", f"ls /sys/bus/pci/drivers/{driver}/0*/dma"]).stdout.split()


def load(machine: Machine, *options: str) -> Any:
    return json.loads(machine.run(["python3", LOAD.name, *options], stdout=subprocess.PIPE).stdout)


def is_harmless(found: dict[str, Any]) -> bool:
    """Whether nothing that was reported good is wrong, and nothing else was written to."""
    return all(each["wrong"] == each["stray"] == 0 for each in found.values())


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


DMATEST = """
modprobe dmatest
cd /sys/module/dmatest/parameters
echo $1 > threads_per_chan; echo $2 > test_buf_size; echo 10000 > timeout; echo $3 > iterations
for channel in $4; do echo $channel > channel; done
dmesg --clear
echo 1 > run
until [ "$(dmesg | grep -c 'dmatest: .* summary ')" -eq $5 ]; do sleep 0.1; done
dmesg | grep -o 'summary .*'
rmmod dmatest
"""


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("threads", "size", "times"), [(1, 65536, 30), (8, 16384, 30), (2, 123, 50)])
def test_dmatest_passes(machine: Machine, driver: str, threads: int, size: int, times: int) -> None:
    """The kernel's own test of providers, with its random sizes and offsets: on all channels at once."""
    names = channels(machine, driver)
    total = threads * len(names)
    options = str(threads), str(size), str(times), " ".join(names), str(total)
    said = machine.run(["timeout", "200", "sh", "-c", DMATEST, "dmatest", *options]).stdout.splitlines()
    assert [line.split(" failures")[0] for line in said] == [f"summary {times} tests, 0"] * total


def test_every_channel_is_an_engine(machine: Machine) -> None:
    said = machine.run(["python3", "-c", "import pynymph; print(*pynymph.query().engines.values())"]).stdout
    names = [name for driver in DRIVERS for name in channels(machine, driver)]
    assert sorted(said.split()) == sorted(["cpu", *names])
    assert len(names) == 5


SIZES = """
import os, sys, pynymph
from pynymph import Copy
with pynymph.Ring(256, engine=sys.argv[1]) as ring:
    for size in (1, 7, 8, 63, 4096, 65537, 1 << 20, 3_333_333):
        for offset in (0, 1, 5, 8):
            data = os.urandom(size + offset)
            target = bytearray(size + offset)
            done = ring.copy(src=memoryview(data)[offset:], dst=memoryview(target)[offset:], verify=True)
            assert done.engine == sys.argv[1] and target[offset:] == data[offset:], (size, offset)
    src, dst = ring.allocate(1 << 20), ring.allocate(1 << 20)
    src.view[:] = os.urandom(1 << 20)
    jobs = ring.submit_all(
        Copy(src=src[at : at + 4096], dst=dst[at : at + 4096], zero_copy=True, verify=True)
        for at in range(0, 1 << 20, 4096)
    )
    assert {job.result().engine for job in jobs} == {sys.argv[1]}
    assert src.view == dst.view
    assert ring.digest(src=src) == ring.digest(src=dst)
print("ok")
"""


@pytest.mark.parametrize("driver", DRIVERS)
def test_ring_copies_any_size_and_offset(machine: Machine, driver: str) -> None:
    """Also what one descriptor can't say: more bytes than it has, or addresses off its alignment."""
    name = channels(machine, driver)[0]
    assert machine.run(["python3", "-c", SIZES, name]).stdout == "ok\n"


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_is_an_error_or_a_right_copy(machine: Machine, switchtec: Function, kind: str) -> None:
    """Under VERIFY_HASH: a clear error or a correct copy, never a wrong one; other rings do not notice."""
    first, second, *_ = channels(machine, "switchtec_dma")
    silent = kind in SILENT or kind in HARMLESS
    switchtec.ask(
        with_faults(SwitchtecFault(kind, rate=0.05, seed=1, count=None if silent else 2, channel=0))
    )
    found = load(machine, f"--engine={first}", f"--beside={second}", "--count=200")
    injected = switchtec.ask({})["injected"][kind]
    assert injected
    assert is_harmless(found)
    assert set(found["beside"]["ended"]) == {"ok"}
    ended = found["load"]["ended"]
    failed = {name: number for name, number in ended.items() if name != "ok"}
    if kind in SILENT:
        assert failed == {"EBADMSG": injected}
    elif kind in HARMLESS:
        assert not failed
    elif kind.startswith("status-") and STATUSES[int(kind.removeprefix("status-"))][1] is not None:
        assert failed["EIO"] == injected
        assert set(failed) <= {"EIO", "ETIMEDOUT"}
    else:
        assert set(failed) == {"ETIMEDOUT"}
    # And then all is well again.
    switchtec.ask(with_faults())
    assert load(machine, f"--engine={first}", "--count=64")["load"]["ended"] == {"ok": 64}


@pytest.mark.parametrize("kind", plx.KINDS)
def test_every_fault_of_plx_is_an_error_or_a_right_copy(
    machine: Machine, plx_dma: Function, kind: str
) -> None:
    """The same of the other function, whose one channel stops for good where it stops."""
    (name,) = channels(machine, "plx_dma")
    beside = channels(machine, "switchtec_dma")[0]
    silent = kind in SILENT or kind in HARMLESS
    plx_dma.ask(with_faults(PlxFault(kind, rate=0.05, seed=1, count=None if silent else 2)))
    found = load(machine, f"--engine={name}", f"--beside={beside}", "--count=200")
    injected = plx_dma.ask({})["injected"][kind]
    assert injected
    assert is_harmless(found)
    assert set(found["beside"]["ended"]) == {"ok"}
    failed = {name: number for name, number in found["load"]["ended"].items() if name != "ok"}
    if kind in SILENT:
        assert failed == {"EBADMSG": injected}
    elif kind in HARMLESS:
        assert not failed
    elif kind in plx.OUTCOMES:
        assert failed == {"EIO": injected}
    else:
        assert set(failed) == {"ETIMEDOUT"}
    # And then all is well again.
    plx_dma.ask(with_faults())
    assert load(machine, f"--engine={name}", "--count=64")["load"]["ended"] == {"ok": 64}


def test_every_flip_is_found(request: pytest.FixtureRequest, machine: Machine, switchtec: Function) -> None:
    count = 10_000 if request.config.getoption("long") else 500
    switchtec.ask(with_faults(SwitchtecFault("flip")))
    found = load(machine, f"--engine={channels(machine, 'switchtec_dma')[0]}", f"--count={count}")
    assert switchtec.ask({})["injected"] == {"flip": count}
    assert found["load"]["ended"] == {"EBADMSG": count}
    assert is_harmless(found)


def test_kernel_log_names_engine_and_cause(machine: Machine, switchtec: Function) -> None:
    """The driver says which channel paused and why; the module that the channel failed, and works again."""
    name = channels(machine, "switchtec_dma")[0]
    machine.run(["dmesg", "--clear"])
    switchtec.ask(with_faults(SwitchtecFault("status-20", count=1)))
    load(machine, f"--engine={name}", "--count=64")
    log = machine.run(["dmesg"]).stdout
    assert f"dma {name}: Paused, the ISP_DMAC detected a Completion Time Out" in log
    assert f"pcie_nymph: channel {name} failed: error -5" in log
    assert f"pcie_nymph: channel {name} works again" in log


def rebind(machine: Machine, driver: str) -> None:
    """Unbind a driver from its function, and bind it again."""
    function = machine.run(["sh", "-c", f"cd /sys/bus/pci/drivers/{driver}; echo 0*"]).stdout.strip()
    for verb in ("unbind", "bind"):
        machine.run(["sh", "-c", f"echo {function} > /sys/bus/pci/drivers/{driver}/{verb}"])


REPLUGGED = """
import errno, os, pynymph, select, sys
data, target, seen = os.urandom(1 << 20), bytearray(1 << 20), set()
ring = pynymph.Ring(engine=sys.argv[1])

def attempt():
    try:
        engine = ring.copy(src=data, dst=target, verify=True).engine
        assert (engine, target) == (sys.argv[1], data)
        return "ok"
    except pynymph.NymphError as error:
        return errno.errorcode[error.errno]

def attempts():
    seen = set()
    while not select.select([sys.stdin], [], [], 0)[0]:
        seen.add(attempt())
    sys.stdin.readline()
    return seen

print(attempt(), flush=True)
print(*attempts(), flush=True)
attempts()
print(ring.copy(src=data, dst=target, verify=True).engine)
"""

REFUSED = """
import errno, sys, time, pynymph
ring = pynymph.Ring(engine=sys.argv[1])

def free_kib():
    lines = open("/proc/meminfo").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))

def attempt():
    try:
        return ring.copy(src=b"x" * 4096, dst=bytearray(4096), verify=True).engine
    except pynymph.NymphError as error:
        return errno.errorcode[error.errno]

print(attempt(), flush=True)
sys.stdin.readline()
print(attempt(), flush=True)
before, seen = free_kib(), {attempt() for _ in range(300)}
print(*seen, (before - free_kib()) < 100_000, flush=True)
sys.stdin.readline()
print(attempt())
"""


def test_device_that_is_gone_costs_no_memory(machine: Machine) -> None:
    """Out of its slot, before the kernel knows: switchtec_dma leaks 6 MiB with each attempt at a channel."""
    switchtec = functions(machine)[0]
    name = channels(machine, "switchtec_dma")[0]
    command = machine.command(["python3", "-c", REFUSED, name])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin and running.stdout
        assert running.stdout.readline() == f"{name}\n"
        switchtec.pull()
        try:
            print(file=running.stdin, flush=True)
            assert running.stdout.readline() == "ETIMEDOUT\n"
            assert running.stdout.readline() == "ENODEV True\n"
        finally:
            switchtec.set_faults()  # back in its slot
        rebind(machine, "switchtec_dma")
        said, _ = running.communicate("\n", timeout=60)
    assert said == f"{name}\n"


@pytest.mark.parametrize("driver", DRIVERS)
def test_link_goes_down_in_mid_copy(machine: Machine, driver: str) -> None:
    """Reads are ones then. Copies fail until the link is back and the driver is bound again."""
    function = functions(machine)[DRIVERS.index(driver)]
    name = channels(machine, driver)[0]
    command = machine.command(["timeout", "60", "python3", LOAD.name, f"--engine={name}"])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin and running.stdout
        assert running.stdout.readline() == "copying\n"
        function.pull()
        try:
            time.sleep(TIMEOUT_MS / 500)  # some copies meet it
            said, _ = running.communicate(timeout=60)  # which also ends the load
        finally:
            function.set_faults()
    found = json.loads(said)
    assert is_harmless(found)
    assert {"ok"} < set(found["load"]["ended"]) <= {"ok", "ETIMEDOUT", "EIO", "ENODEV"}
    rebind(machine, driver)
    assert load(machine, f"--engine={name}", "--count=64")["load"]["ended"] == {"ok": 64}


@pytest.mark.parametrize("driver", DRIVERS)
def test_function_is_unplugged_and_plugged_in_under_load(machine: Machine, driver: str) -> None:
    """Surprise removal, and a new function in the same slot: the same ring goes on with that."""
    name = channels(machine, driver)[0]
    slot = f"pci{DRIVERS.index(driver)}"
    with subprocess.Popen(
        machine.command(["timeout", "120", "python3", "-c", REPLUGGED, name]),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stdin and running.stdout
        assert running.stdout.readline() == "ok\n"
        machine.unplug(slot)
        print("gone", file=running.stdin, flush=True)
        assert set(running.stdout.readline().split()) <= {"ok", "ETIMEDOUT", "EIO", "ENODEV"}
        assert name not in machine.run(["cat", "/sys/class/misc/pcie_nymph/engines"]).stdout
        machine.plug(slot)
        wait_for(lambda: name in machine.run(["cat", "/sys/class/misc/pcie_nymph/engines"]).stdout)
        said, _ = running.communicate("back\n", timeout=60)
    assert said == f"{name}\n"


def test_topology_shows_functions_and_channels(machine: Machine) -> None:
    """As on a board: ids, drivers, and the channels that are engines."""
    said = json.loads(machine.run(["python3", "-m", "pynymph", "topology", "--json"]).stdout)
    assert [(each["id"], each["kind"], each["driver"], each["dma_channels"]) for each in said] == [
        ("11f8:4000", "peripheral", "switchtec_dma", channels(machine, "switchtec_dma")),
        ("10b5:87d0", "peripheral", "plx_dma", channels(machine, "plx_dma")),
    ]


OUT_OF_ORDER = """
import errno, os, sys, pynymph
with pynymph.Ring(engine=sys.argv[1]) as ring:
    src, dst = ring.allocate(1 << 17), ring.allocate(1 << 17)
    src.view[:] = os.urandom(1 << 17)
    try:
        ring.copy(src=src, dst=dst, zero_copy=True, verify=sys.argv[2] == "verified")
        print("ok", dst.view == src.view)
    except pynymph.NymphError as error:
        print(errno.errorcode[error.errno])
"""


@pytest.mark.parametrize(("how", "expected"), [("plain", ["ok False"]), ("verified", ["EBADMSG", "EIO"])])
def test_driver_hides_an_error_that_comes_out_of_order(
    machine: Machine, switchtec: Function, how: str, expected: list[str]
) -> None:
    """A limit of switchtec_dma in 7.3: it reports the last status for all that waited. Only hashing tells."""
    name = channels(machine, "switchtec_dma")[0]
    kinds = "reordered", "status-21"
    switchtec.ask(with_faults(*(SwitchtecFault(kind, count=1, channel=0) for kind in kinds)))
    said = machine.run(["python3", "-c", OUT_OF_ORDER, name, how]).stdout.strip()
    assert switchtec.ask({})["injected"] == dict.fromkeys(kinds, 1)
    assert said in expected


# Of tests/guest: what engines are at.
GUEST_TESTS = (
    *("test_abi_copy", "test_abi_operations", "test_abi_dmabuf", "test_abi_mappings", "test_model"),
    *("test_ring_async", "test_ring_batch", "test_ring_buffers", "test_ring_copy", "test_ring_fabric"),
)


@pytest.mark.parametrize(("driver", "other"), [DRIVERS, DRIVERS[::-1]], ids=DRIVERS)
def test_guest_tests_pass(machine: Machine, driver: str, other: str) -> None:
    """As on the endpoint's channels; rings that ask for no engine get one of this driver's."""
    machine.copy_in(str(CHECKOUT / "tests/guest"), to=FOLDER)
    deadline = "/sys/module/pcie_nymph/parameters/dma_timeout_ms"
    machine.run(["sh", "-c", f"echo 10000 > {deadline}"])
    away = f"/sys/bus/pci/drivers/{other}"
    function = machine.run(["sh", "-c", f"cd {away}; echo 0*"]).stdout.strip()
    machine.run(["sh", "-c", f"echo {function} > {away}/unbind"])
    try:
        files = [f"{FOLDER}/guest/{name}.py" for name in GUEST_TESTS]
        # A native guest's kernel reads memory that is PROT_NONE.
        options = ["-q", "-rfE", "-p", "no:cacheprovider", "-k", "not refuse_unmapped_memory"]
        done = machine.run(["python3", "-m", "pytest", *options, *files], check=False)
        assert done.returncode == 0, done.stdout
    finally:
        machine.run(["sh", "-c", f"echo {function} > {away}/bind"])
        machine.run(["sh", "-c", f"echo {TIMEOUT_MS} > {deadline}"])


UNBIND = """
import errno, glob, os, pynymph, sys, threading
name, driver = sys.argv[1], f"/sys/bus/pci/drivers/{sys.argv[2]}/"
(function,) = (os.path.basename(path) for path in glob.glob(driver + "0*"))
data, target, seen = os.urandom(1 << 20), bytearray(1 << 20), set()
ring = pynymph.Ring(engine=name)
started, ended = threading.Event(), threading.Event()

def copies():
    while not ended.is_set():
        try:
            ring.copy(src=data, dst=target, verify=True)
            assert target == data
            seen.add("ok")
        except pynymph.NymphError as error:
            seen.add(errno.errorcode[error.errno])
        started.set()

copier = threading.Thread(target=copies)
copier.start()
started.wait()
open(driver + "unbind", "w").write(function)
while "ENODEV" not in seen:
    pass
open(driver + "bind", "w").write(function)
ended.set()
copier.join()
print(*sorted(seen - {"ETIMEDOUT", "EIO"}))
print(ring.copy(src=data, dst=target, verify=True).engine)
"""


@pytest.mark.parametrize("driver", DRIVERS)
def test_driver_is_unbound_under_load(machine: Machine, driver: str) -> None:
    """Copies fail then, and go on in the same ring once the driver is back."""
    name = channels(machine, driver)[0]
    said = machine.run(["timeout", "60", "python3", "-c", UNBIND, name, driver]).stdout.splitlines()
    assert said == ["ENODEV ok", name]


@pytest.mark.parametrize("block", doc_blocks.run_by(doc_blocks.SWITCHTEC), ids=lambda block: block.language)
def test_the_guide_works(block: doc_blocks.Block) -> None:
    """docs/how-to/switchtec.md: each command, and the test in Python, print what the page says."""
    if block.language == "python":
        commands, expected = (
            [[sys.executable, "-c", block.text]],
            ["Paused, the ISP_DMAC detected a Completion"],
        )
    else:
        lines = block.text.splitlines()
        commands = [[str(Path(sys.executable).parent / "nymph-vm"), *shlex.split(line)[1:]] for line in lines]
        expected = ["dma0chan3", "PASS"]
    for command, text in zip(commands, expected, strict=True):
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert text in done.stdout
