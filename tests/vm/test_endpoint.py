# SPDX-License-Identifier: MIT
"""The endpoint and its driver under load and under every fault, as a user of the ring sees them.

The file is long because all tests share the helpers that break an endpoint and watch its recovery.
"""

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nymph_vm import build, kernels
from nymph_vm.endpoint import Endpoint, EndpointError
from nymph_vm.faults import KINDS, Fault
from nymph_vm.machine import Machine

LOAD = Path(__file__).with_name("endpoint_load.py")
NAME = "ep0"
CHANNELS = "/sys/class/dma"
COUNTERS = "/sys/bus/pci/drivers/nymph_endpoint/0*/counters"

# What is found by hashing, each time; and what costs a channel its reset, so that others in flight end too.
FOUND = ("flip", "short", "misplaced", "skipped")
RESETS = ("lost", "doubled", "unknown", "reordered", "stall", "garbage-ring", "death")
# Statuses of transfers that a channel's reset ends.
ENDED_BY_RESET = {"ETIMEDOUT", "EIO"}


@pytest.fixture
def endpoint(vm: Machine) -> Iterator[Endpoint]:
    """Sound before and after; with the load in root's home folder."""
    vm.copy_in(str(LOAD))
    yield vm.endpoints[NAME]
    vm.endpoints[NAME].set_faults()


@pytest.fixture
def port(vm: Machine) -> None:
    """The endpoint is behind a port, which resets it and tells of the bus's errors."""
    if vm.arch.is_native:
        pytest.skip("a native guest has one bus, and no ports")


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("long"))


def load(vm: Machine, *options: str) -> Any:
    return json.loads(vm.run(["python3", LOAD.name, *options], stdout=subprocess.PIPE).stdout)


@contextlib.contextmanager
def endless_load(vm: Machine, *options: str) -> Iterator[Callable[[], Any]]:
    """What it yields ends the load, and returns what came of it."""
    command = vm.command(["python3", LOAD.name, *options])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert running.stdout.readline() == "copying\n"

        def end() -> Any:
            said, _ = running.communicate(timeout=60)
            assert running.returncode == 0
            return json.loads(said)

        yield end
        running.kill()


def channels(vm: Machine) -> list[str]:
    return vm.run(["ls", CHANNELS]).stdout.split()


def engines(vm: Machine) -> list[str]:
    script = "import pynymph; print(*pynymph.query().engines.values())"
    return vm.run(["python3", "-c", script]).stdout.split()


def counter(vm: Machine, name: str) -> int:
    return int(vm.run(["sh", "-c", f"cat {COUNTERS}/{name}"]).stdout)


def is_harmless(found: dict[str, Any]) -> bool:
    """Whether nothing that was reported good is wrong, and nothing else was written to."""
    return all(each["wrong"] == each["stray"] == 0 for each in found.values())


def test_every_channel_is_an_engine(vm: Machine) -> None:
    assert engines(vm) == ["cpu", *channels(vm)]
    assert len(channels(vm)) == vm.endpoints[NAME].channels


def test_auto_spreads_rings_over_the_channels(vm: Machine) -> None:
    script = "import pynymph as p; r = [p.Ring() for _ in range(8)]; print(*(x.snapshot().engine for x in r))"
    assert sorted(vm.run(["python3", "-c", script]).stdout.split()) == sorted(2 * channels(vm))


def test_sound_endpoint_copies_everything(vm: Machine, endpoint: Endpoint) -> None:
    first, second = channels(vm)[:2]
    found = load(vm, f"--engine={first}", f"--beside={second}", "--bytes=70000", "--count=200")
    assert is_harmless(found)
    assert found["load"]["ended"] == {"ok": 200}
    assert found["load"]["engines"] == {first: 200}
    assert set(found["beside"]["ended"]) == {"ok"}


def row(kind: str, what: str, injected: int, load: dict[str, Any]) -> str:
    seen = ", ".join(f"{number} {name}" for name, number in sorted(load["ended"].items()))
    times = (f"{load[name]:.2f} s" for name in ("slowest_s", "longest_gap_s"))
    return f"| {' | '.join([kind, what, str(injected), str(load['copies']), seen, *times])} |"


def fault_of(kind: str, long: bool) -> Fault:
    if kind in FOUND or kind == "no-interrupt":
        return Fault(kind, rate=0.1, seed=1, channel=0)
    return Fault(kind, rate=0.1, seed=1, count=20 if long else 3, channel=0)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest, vm: Machine) -> Iterator[list[str]]:
    """Lines of dist/faults.md: what came of each fault."""
    rows: list[str] = []
    yield rows
    head = ["fault", "what it is", "injected", "copies", "the user saw", "longest copy", "to the next good"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows]
    about = (
        f"tests/vm/test_endpoint.py measured this table on {vm.state.kernel} ({vm.state.accel}). Each copy "
        "has 4 KiB and VERIFY_HASH. Up to 32 copies wait in the ring. They run one after the other, or, "
        "every other 32, up to 16 at once.\n\n"
        "*To the next good* is the longest time from one good copy to the next, which is how long recovery "
        "took."
    )
    target = Path("dist/faults.md")
    target.parent.mkdir(exist_ok=True)
    licence = f"<!-- {'SPDX'}-License-Identifier: MIT -->"  # which is not that of this file
    title = "# Faults of the endpoint, and what its users see of them"
    target.write_text(f"{licence}\n\n{title}\n\n{about}\n\n" + "\n".join(lines) + "\n")


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_is_an_error_or_a_right_copy(
    vm: Machine, endpoint: Endpoint, long: bool, table: list[str], kind: str
) -> None:
    """Under VERIFY_HASH: a clear error or a correct copy, never a wrong one; other rings do not notice."""
    first, second = channels(vm)[:2]
    before = counter(vm, "resets")
    endpoint.set_faults(fault_of(kind, long))
    found = load(vm, f"--engine={first}", f"--beside={second}", f"--count={2000 if long else 400}")
    injected = endpoint.injected()[kind]
    assert injected
    assert is_harmless(found)
    assert set(found["beside"]["ended"]) == {"ok"}
    table.append(row(kind, KINDS[kind], injected, found["load"]))

    ended = found["load"]["ended"]
    failed = {name: number for name, number in ended.items() if name != "ok"}
    if kind in FOUND:
        assert failed == {"EBADMSG": injected}
    elif kind in RESETS:
        assert set(failed) <= ENDED_BY_RESET
        assert counter(vm, "resets") > before
    elif kind == "garbage-register":
        assert set(failed) <= ENDED_BY_RESET
    else:
        assert not failed
    # And then all is well again.
    endpoint.set_faults()
    found = load(vm, f"--engine={first}", "--count=64")
    assert found["load"]["ended"] == {"ok": 64}
    assert vm.run(["cat", "/sys/class/misc/pcie_nymph/counters/quarantined"]).stdout == "0\n"


def test_every_flip_is_found(vm: Machine, endpoint: Endpoint, long: bool, table: list[str]) -> None:
    count = 10_000 if long else 500
    endpoint.set_faults(Fault("flip"))
    found = load(vm, f"--engine={channels(vm)[0]}", f"--count={count}")
    assert endpoint.injected() == {"flip": count}
    table.append(row("flip", "in every copy", count, found["load"]))
    assert found["load"]["ended"] == {"EBADMSG": count}
    assert is_harmless(found)


def test_auto_falls_back_to_the_cpu(vm: Machine, endpoint: Endpoint) -> None:
    fallbacks = "/sys/class/misc/pcie_nymph/counters/fallbacks"
    before = int(vm.run(["cat", fallbacks]).stdout)
    endpoint.set_faults(Fault("stall", rate=0.05, count=2))
    found = load(vm, "--engine=auto", "--count=500")
    assert found["load"]["ended"] == {"ok": 500}
    assert is_harmless(found)
    assert found["load"]["engines"]["cpu"] >= 1
    assert int(vm.run(["cat", fallbacks]).stdout) >= before + found["load"]["engines"]["cpu"]


def test_killed_channel_restarts_under_load(
    vm: Machine, endpoint: Endpoint, long: bool, table: list[str]
) -> None:
    first, second = channels(vm)[:2]
    rounds = 100 if long else 8
    with endless_load(vm, f"--engine={first}", f"--beside={second}") as end:
        for _ in range(rounds):
            time.sleep(0.25)
            wait_for(lambda: kills(endpoint, 0))
        time.sleep(0.5)
        found = end()
    table.append(row("death", "killed from outside", rounds, found["load"]))
    assert is_harmless(found)
    assert set(found["beside"]["ended"]) == {"ok"}
    assert found["load"]["ended"].pop("ok")
    assert set(found["load"]["ended"]) <= ENDED_BY_RESET
    assert load(vm, f"--engine={first}", "--count=64")["load"]["ended"] == {"ok": 64}


@pytest.mark.parametrize("engine", ["auto", "named"])
def test_endpoint_is_replugged_under_load(
    vm: Machine, endpoint: Endpoint, long: bool, table: list[str], engine: str
) -> None:
    rounds = 50 if long else 2
    name = engine if engine == "auto" else channels(vm)[0]
    with endless_load(vm, f"--engine={name}") as end:
        for _ in range(rounds):
            time.sleep(0.5)
            vm.unplug(NAME)
            time.sleep(0.2)
            vm.plug(NAME)
            wait_for(lambda: len(channels(vm)) == vm.endpoints[NAME].channels)
        time.sleep(1.5)
        found = end()
    what = "and plugged again; engine `auto`, with the CPU" if engine == "auto" else "and plugged again"
    table.append(row("unplug", what, rounds, found["load"]))
    assert is_harmless(found)
    ended = found["load"]["ended"]
    assert ended.pop("ok")
    if engine == "auto":
        assert not ended
    else:
        assert set(ended) <= ENDED_BY_RESET | {"ENODEV"}
    assert load(vm, f"--engine={channels(vm)[0]}", "--count=64")["load"]["ended"] == {"ok": 64}


COUNT = """
import collections, errno, os, select, sys, pynymph
saw = collections.Counter()

def attempt(what, **arguments):
    try:
        what(**arguments)
    except pynymph.NymphError as error:
        saw[errno.errorcode[error.errno]] += 1
    else:
        saw["ok"] += 1

def go_on(round):
    print("copying", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        round()
    print(sys.stdin.readline().strip(), *saw.items(), flush=True)
    saw.clear()
"""

CARD = """
data, back = bytes(range(256)) * 1024, bytearray(1 << 18)
ring = pynymph.Ring(engine=sys.argv[1])
card = ring.allocate_on_card(len(data))

def there_and_back():
    attempt(ring.copy, src=data, dst=card, verify=True)
    attempt(ring.copy, src=card, dst=back, verify=True)
    attempt(ring.digest, src=card)

go_on(there_and_back)
attempt(ring.copy, src=data, dst=card)
attempt(ring.copy, src=card, dst=back)
attempt(ring.compare, a=card, b=data)
print(*sorted(saw), flush=True)
sys.stdin.readline()
saw.clear()
attempt(ring.copy, src=data, dst=card)
attempt(ring.digest, src=card)
fresh = ring.allocate_on_card(len(data))
assert ring.copy(src=data, dst=fresh, verify=True).engine == sys.argv[1]
print(*sorted(saw), *open("/sys/class/misc/pcie_nymph/counters/card_bytes"))
"""


DMABUF = """
data = bytes(range(256)) * 1024
ring, other = pynymph.Ring(engine=sys.argv[1]), pynymph.Ring(engine="cpu")
kept = other.allocate(len(data))
fd = kept.export()
half, rest = ring.import_dmabuf(fd)[: 1 << 17], ring.import_dmabuf(fd)[1 << 17 :]
os.close(fd)

def there_and_on():
    attempt(ring.copy, src=data[: 1 << 17], dst=half, verify=True)
    attempt(ring.copy, src=half, dst=rest, zero_copy=True, verify=True)
    attempt(ring.digest, src=rest)

go_on(there_and_on)
attempt(ring.copy, src=half, dst=rest, zero_copy=True)
attempt(ring.digest, src=half)
print(*sorted(saw), flush=True)
sys.stdin.readline()
kept.view[:] = data
for zero_copy in (False, True):
    assert ring.copy(src=half, dst=rest, zero_copy=zero_copy, verify=True).engine == sys.argv[1]
assert kept.view[1 << 17 :] == kept.view[: 1 << 17] == data[: 1 << 17]
print(*open("/sys/class/misc/pcie_nymph/counters/imported_bytes"))
"""


KEPT = """
size = 1 << 18
memory = bytearray(bytes(range(256)) * (size // 256))
mappings = "/sys/class/misc/pcie_nymph/counters/mappings"
ring = pynymph.Ring(engine=sys.argv[1])
src, dst = ring.register(memory), ring.allocate(size)

def there_and_back():
    attempt(ring.copy, src=src, dst=dst, zero_copy=True, verify=True)
    attempt(ring.copy, src=dst, dst=src, verify=True)

go_on(there_and_back)
attempt(ring.copy, src=src, dst=dst, zero_copy=True)
print(*sorted(saw), open(mappings).read().strip(), flush=True)
sys.stdin.readline()
dst.view[:] = bytes(size)
assert ring.copy(src=src, dst=dst, zero_copy=True, verify=True).engine == sys.argv[1]
assert dst.view == memory
print(open(mappings).read())
"""


# The script; what it sees when the card goes; what it sees without; what it says when there is one again.
@pytest.mark.parametrize(
    ("script", "going", "gone", "back"),
    [
        (CARD, "'EFAULT'", "EFAULT ENODEV", ["EFAULT", str(2 << 18)]),
        (DMABUF, "'ENODEV'", "ENODEV ok", [str(2 << 18)]),
        (KEPT, "'ENODEV'", "ENODEV 0", ["2"]),
    ],
    ids=["card", "dmabuf", "buffers"],
)
def test_card_memory_ends_with_its_card(
    vm: Machine, script: str, going: str, gone: str, back: list[str]
) -> None:
    """Also while CPU and card are at it; its handles stay, lead nowhere, and are freed like others.

    A dma-buf that the card had stays, as buffers do, and the next card has them too.
    """
    command = vm.command(["python3", "-c", COUNT + script, channels(vm)[0]])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin and running.stdout

        def say(line: str) -> str:
            assert running.stdin and running.stdout
            print(line, file=running.stdin, flush=True)
            return running.stdout.readline()

        assert running.stdout.readline() == "copying\n"
        time.sleep(0.5)
        vm.unplug(NAME)
        seen = say("unplugged")
        assert "'ok'" in seen and going in seen and "EBADMSG" not in seen
        assert running.stdout.readline() == f"{gone}\n"
        vm.plug(NAME)
        wait_for(lambda: len(channels(vm)) == vm.endpoints[NAME].channels)
        assert say("plugged").split() == back
    assert running.returncode == 0
    for name in ("card_bytes", "imported_bytes", "exports", "mappings"):
        assert vm.run(["cat", f"/sys/class/misc/pcie_nymph/counters/{name}"]).stdout == "0\n"


FENCES = """
import fcntl, os, select, struct, sys, time, pynymph
EXPORT_SYNC_FILE, FILE_INFO = 0xC0086202, 0xC0383E04
READ, WRITE = 1, 2
REFERENCES = "/sys/module/pcie_nymph/refcnt"

def ready(file, event):
    poll = select.poll()
    poll.register(file, event)
    return bool(poll.poll(0))

def sync_file(file, flags):
    argument = bytearray(struct.pack("Ii", flags, -1))
    fcntl.ioctl(file, EXPORT_SYNC_FILE, argument)
    return struct.unpack("Ii", argument)[1]

def status(file):  # of a sync_file: 1 is signaled, 0 is not, less is an error
    argument = bytearray(56)
    fcntl.ioctl(file, FILE_INFO, argument)
    return struct.unpack_from("i", argument, 32)[0]

size = 1 << 16
with pynymph.Ring(engine="cpu") as other, pynymph.Ring(engine=sys.argv[1]) as ring:
    kept = {name: other.allocate(size) for name in ("src", "dst")}
    files = {name: buffer.export() for name, buffer in kept.items()}
    src, dst = (ring.import_dmabuf(files[name]) for name in ("src", "dst"))
    before = open(REFERENCES).read()
    ring.copy(src=src, dst=dst, zero_copy=True, verify=True)
    print(ready(files["dst"], select.POLLIN), ready(files["src"], select.POLLOUT))
    while open(REFERENCES).read() != before:  # the fence had one, and goes by way of a worker
        time.sleep(0.01)
    print("stall", flush=True)
    sys.stdin.readline()
    transfer = ring.submit(pynymph.Copy(src=src, dst=dst, zero_copy=True))
    while ready(files["dst"], select.POLLIN):
        pass
    # what is being read can be read by others, and not be written
    print(ready(files["src"], select.POLLIN), ready(files["src"], select.POLLOUT))
    wanted = sync_file(files["dst"], READ), sync_file(files["src"], WRITE)
    print(*map(status, wanted))
    for file in (*wanted, files["dst"]):
        assert select.select([file], [], [], 30)[0]
    print(*(status(file) < 0 for file in wanted))
    try:
        transfer.result()
    except pynymph.NymphError as error:
        print(error.errno != 0)
    for file in wanted:
        os.close(file)
    ring.copy(src=src, dst=dst, zero_copy=True, verify=True)
    assert kept["dst"].view == kept["src"].view
    print(ready(files["dst"], select.POLLIN))
    for file in files.values():
        os.close(file)
"""


def test_dmabuf_fence_makes_others_wait_for_the_channel(vm: Machine, endpoint: Endpoint) -> None:
    """And no longer than for that, well or not; the fence that says so is gone behind it."""
    command = vm.command(["python3", "-c", FENCES, channels(vm)[0]])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin and running.stdout
        said = [running.stdout.readline() for _ in range(2)]
        assert said == ["True True\n", "stall\n"]
        endpoint.set_faults(Fault("stall", count=1, channel=0))
        rest, _ = running.communicate("\n", timeout=60)
    assert running.returncode == 0
    assert rest.splitlines() == ["True False", "0 0", "True True", "True", "True"]


FROZEN = """
import errno, sys, time, pynymph
names, counters = sys.argv[1:], "/sys/class/misc/pcie_nymph/counters/"
data, target = b"x" * 100_000, bytearray(100_000)
ring, cpu = pynymph.Ring(engine=names[0]), pynymph.Ring(engine="cpu")
buffer = ring.allocate(100_000)
ring.copy(src=data, dst=buffer, verify=True)
print("frozen?", flush=True)
sys.stdin.readline()
for dst in (buffer, target):
    try:
        ring.copy(src=data, dst=dst)
    except pynymph.NymphError as error:
        print(errno.errorcode[error.errno], end=" ")
cpu.copy(src=data, dst=target, verify=True)
start = time.monotonic()
ring.close()
fast = time.monotonic() - start < 1
names_held = "quarantined", "allocated_pages", "mappings"
print(fast, *(int(open(counters + name).read()) > 0 for name in names_held))
sys.stdout.flush()
sys.stdin.readline()
end = time.monotonic() + 30
while open(counters + "quarantined").read() != "0\\n" and time.monotonic() < end:
    time.sleep(0.1)
print(*(int(open(counters + name).read()) for name in (*names_held, "pinned_pages")))
with pynymph.Ring(engine=names[0]) as ring:
    print(ring.copy(src=data, dst=target, verify=True).engine)
"""


def freeze_under_load(vm: Machine, endpoint: Endpoint, name: str) -> None:
    """A channel answers nothing when it is given a copy; afterwards it works again."""
    command = vm.command(["python3", "-c", FROZEN, name])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin and running.stdout
        assert running.stdout.readline() == "frozen?\n"
        endpoint.freeze()
        try:
            print(file=running.stdin, flush=True)
            assert running.stdout.readline() == "ETIMEDOUT EIO True True True True\n"
        finally:
            endpoint.thaw()
        said, _ = running.communicate("\n", timeout=60)
    assert said.splitlines() == ["0 0 0 0", name]


def test_unanswering_device_keeps_its_memory_in_quarantine(vm: Machine, endpoint: Endpoint) -> None:
    """What it was given stays in quarantine until it is known to be done with it; nobody else has to wait."""
    unanswered = counter(vm, "unanswered_resets")
    freeze_under_load(vm, endpoint, channels(vm)[0])
    assert counter(vm, "unanswered_resets") > unanswered


# In the order in which they come. The notice of the quarantine comes from another thread, somewhere between.
NOTICES = (
    "is stopped: it missed its deadline",
    "does not stop",
    "has recovered",
    "is removed",
)


def test_kernel_log_reports_what_happens_to_a_channel(vm: Machine, endpoint: Endpoint) -> None:
    """At the level notice: no warning, which would fail whatever test is running."""
    name, marker = channels(vm)[0], f"notices since {time.monotonic_ns()}"
    function = vm.run(["sh", "-c", "basename /sys/bus/pci/drivers/nymph_endpoint/0*"]).stdout.strip()
    vm.run(["sh", "-c", f"echo '<6>{marker}' > /dev/kmsg"])

    def notices() -> list[str]:
        log = vm.run(["dmesg", "--decode"]).stdout.partition(marker)[2].splitlines()
        start = f"pcie_nymph: channel {name} "
        found = [line.partition(start) for line in log if start in line]
        assert all("notice" in before for before, _, _ in found)
        return [after for _, _, after in found]

    def told(*expected: str) -> bool:
        left = iter(notices())
        return all(any(line.startswith(text) for line in left) for text in expected)

    freeze_under_load(vm, endpoint, name)
    wait_for(lambda: told(*NOTICES[:3]))
    assert told("may still write: the memory of a copy is quarantined")
    script = "import pynymph, sys; ring = pynymph.Ring(engine=sys.argv[1]); print(flush=True); input()"
    command = vm.command(["python3", "-c", script, name])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout and running.stdout.readline() == "\n"
        driver = "/sys/bus/pci/drivers/nymph_endpoint"
        vm.run(["sh", "-c", f"echo {function} > {driver}/unbind; echo {function} > {driver}/bind"])
        running.communicate("\n", timeout=60)
    wait_for(lambda: told(*NOTICES))
    wait_for(lambda: len(channels(vm)) == vm.endpoints[NAME].channels)


DYING = """
import os, select, signal, sys, abi

SIZE = abi.MIB // 2
went, goes = os.pipe()

def inside():
    contexts = [abi.Context() for _ in range(int(sys.argv[2]))]
    # A target each: CONFIG_DMA_API_DEBUG warns of more than seven writable mappings of one page.
    memory = abi.Memory((len(contexts) + 1) * SIZE)
    for context in contexts:
        context.setup(4, engine=sys.argv[1].encode())
    print("frozen?", flush=True)
    sys.stdin.readline()
    for number, context in enumerate(contexts, 1):
        context.submit(memory.address, memory.address + number * SIZE, SIZE)
    os.write(goes, b"x")
    contexts[0].submit(memory.address, memory.address + SIZE, SIZE, abi.COMPLETE_SYNC)

child = abi.Child(inside)
os.close(goes)
assert os.read(went, 1) == b"x"
abi.until_blocked(child.pid)
child.kill()
print("gone", len(abi.Context().query(1)[1]), flush=True)
"""


@pytest.mark.parametrize("rings", [1, 100])
def test_killed_process_does_not_wait_for_a_dead_device(vm: Machine, endpoint: Endpoint, rings: int) -> None:
    """Whatever its deadline. What the device was given stays in quarantine, and is freed behind that."""
    vm.copy_in(str(LOAD.parents[1] / "guest/abi.py"))
    name, quarantined = channels(vm)[0], ["cat", "/sys/class/misc/pcie_nymph/counters/quarantined"]
    deadline = "/sys/module/pcie_nymph/parameters/dma_timeout_ms"
    before = vm.run(["cat", deadline]).stdout.strip()
    vm.run(["sh", "-c", f"echo 600000 > {deadline}"])
    command = vm.command(["python3", "-c", DYING, name, str(rings)])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin and running.stdout
        assert running.stdout.readline() == "frozen?\n"
        endpoint.freeze()
        try:
            print(file=running.stdin, flush=True)
            said = running.stdout.readline()
        finally:
            endpoint.thaw()
            vm.run(["sh", "-c", f"echo {before} > {deadline}"])
    assert said == "gone 1\n"
    wait_for(lambda: vm.run(quarantined).stdout == "0\n")
    assert load(vm, f"--engine={name}", "--count=64")["load"]["ended"] == {"ok": 64}


ASKED = """
import glob, os, sys, threading, time, pynymph

ring = pynymph.Ring(engine=sys.argv[1])
driver = "/sys/bus/pci/drivers/nymph_endpoint/"
(function,) = (os.path.basename(path) for path in glob.glob(driver + "0*"))
ended, answers = threading.Event(), []

def asks():
    while not ended.is_set():
        start = time.monotonic()
        pynymph.query()
        answers.append(time.monotonic() - start)

print("frozen?", flush=True)
sys.stdin.readline()
asker = threading.Thread(target=asks)
asker.start()
start = time.monotonic()
open(driver + "unbind", "w").write(function)
took = time.monotonic() - start
ended.set()
asker.join()
print(took, max(answers), flush=True)
sys.stdin.readline()
open(driver + "bind", "w").write(function)
"""


def asks_beside_unbind(vm: Machine, endpoint: Endpoint) -> tuple[float, float]:
    """How long unbind took of a device that does not answer, and the longest QUERY beside it."""
    command = vm.command(["python3", "-c", ASKED, channels(vm)[0]])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin and running.stdout
        assert running.stdout.readline() == "frozen?\n"
        endpoint.freeze()
        try:
            print(file=running.stdin, flush=True)
            took, longest = map(float, running.stdout.readline().split())
        finally:
            endpoint.thaw()
        running.communicate("\n", timeout=60)
    return took, longest


def test_query_does_not_wait_for_a_dead_device(vm: Machine, endpoint: Endpoint) -> None:
    """That is being unbound: its channel is told to stop, and does not answer."""
    # dmaengine's own lock is held while a channel is given back. A QUERY that waits for it does each time;
    # one that a busy host holds up does once.
    tries = (asks_beside_unbind(vm, endpoint) for _ in range(4))
    assert any(longest < took / 2 for took, longest in tries)
    wait_for(lambda: len(channels(vm)) == vm.endpoints[NAME].channels)
    assert load(vm, f"--engine={channels(vm)[0]}", "--count=64")["load"]["ended"] == {"ok": 64}


def test_dead_device_is_not_bound(vm: Machine, endpoint: Endpoint) -> None:
    function = vm.run(["sh", "-c", "basename /sys/bus/pci/drivers/nymph_endpoint/0*"]).stdout.strip()

    def driver(verb: str, check: bool) -> int:
        script = f"echo {function} > /sys/bus/pci/drivers/nymph_endpoint/{verb}"
        return vm.run(["sh", "-c", script], check=check).returncode

    driver("unbind", True)
    endpoint.freeze()
    try:
        assert driver("bind", False) == 1
    finally:
        endpoint.thaw()
    ours, kernels_own = vm.complaints()
    assert ours == f"nymph_endpoint {function}: channel 0 does not answer"
    assert "error -5" in kernels_own
    driver("bind", True)
    assert load(vm, f"--engine={channels(vm)[0]}", "--count=64")["load"]["ended"] == {"ok": 64}


@pytest.mark.usefixtures("port")
def test_function_reset_under_load_is_harmless(vm: Machine, endpoint: Endpoint) -> None:
    """As an administrator does it: the driver stops the channels first, and has them go on behind it."""
    function = vm.run(["sh", "-c", "echo /sys/bus/pci/drivers/nymph_endpoint/0*"]).stdout.strip()
    with endless_load(vm, f"--engine={channels(vm)[0]}") as end:
        for _ in range(3):
            time.sleep(0.3)
            vm.run(["sh", "-c", f"echo 1 > {function}/reset"])
        time.sleep(0.5)
        found = end()
    assert is_harmless(found)
    assert set(found["load"]["ended"]) <= ENDED_BY_RESET | {"ok"}
    assert load(vm, f"--engine={channels(vm)[0]}", "--count=64")["load"]["ended"] == {"ok": 64}


OPEN_MANY = """
import pathlib
files = [path.open() for path in pathlib.Path("/nymph/repo/tests").rglob("*.py")]
print(len(files), all(file.read(1) for file in files))
"""


def test_unplugged_device_leaves_files_of_others_open(vm: Machine, endpoint: Endpoint) -> None:
    """QEMU opens one for each of the guest's, and must not take them for what the device had."""
    vm.unplug(NAME)
    count, read = vm.run(["python3", "-c", OPEN_MANY]).stdout.split()
    assert (int(count) > 40, read) == (True, "True")
    vm.plug(NAME)
    wait_for(lambda: len(channels(vm)) == vm.endpoints[NAME].channels)
    assert load(vm, f"--engine={channels(vm)[0]}", "--count=64")["load"]["ended"] == {"ok": 64}


@pytest.mark.usefixtures("port")
@pytest.mark.parametrize("error", ["FCP", "DLP"])
def test_bus_error_under_load_is_recovered(vm: Machine, endpoint: Endpoint, error: str) -> None:
    """A fatal one: the kernel resets the link, and all that is behind it."""
    with endless_load(vm, f"--engine={channels(vm)[0]}") as end:
        time.sleep(0.3)
        inject = f"pcie_aer_inject_error {NAME}-port {error}"
        assert "OK" in vm.vmm.qmp("human-monitor-command", **{"command-line": inject})
        time.sleep(2)
        found = end()
    assert is_harmless(found)
    assert set(found["load"]["ended"]) <= ENDED_BY_RESET | {"ok"}
    complaints = vm.complaints()
    assert any("severity=Uncorrected (Fatal)" in each for each in complaints)
    assert [each for each in complaints if not each.startswith("pcieport ")] == []
    assert load(vm, f"--engine={channels(vm)[0]}", "--count=64")["load"]["ended"] == {"ok": 64}


def kills(endpoint: Endpoint, channel: int) -> bool:
    """Whether the channel was alive, and is not any more."""
    try:
        endpoint.kill_channel(channel)
    except EndpointError as error:
        assert "is alive" in str(error)
        return False
    return True


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_unbound_channel_is_revoked_at_once(vm: Machine, endpoint: Endpoint) -> None:
    """The channel is removed at once though a ring has it; the ring goes on once it is back."""
    script = """
import errno, glob, os, pynymph
driver = "/sys/bus/pci/drivers/nymph_endpoint/"
(function,) = (os.path.basename(path) for path in glob.glob(driver + "0*"))
ring = pynymph.Ring(engine="dma0chan0")
src, dst = b"x" * 100000, bytearray(100000)
ring.copy(src=src, dst=dst, verify=True)
open(driver + "unbind", "w").write(function)
try:
    ring.copy(src=src, dst=dst)
except pynymph.NymphError as error:
    print(errno.errorcode[error.errno])
print(len(pynymph.query().engines))
open(driver + "bind", "w").write(function)
print(ring.copy(src=src, dst=dst, verify=True).engine)
"""
    said = vm.run(["python3", "-c", script]).stdout.split()
    assert said == ["ENODEV", "1", "dma0chan0"]


@pytest.fixture(scope="module")
def extra_modules(vm: Machine) -> dict[str, Path]:
    return {path.stem: path for path in build.modules(build.TEST_MODULES, vm.state.kernel)}


def test_synchronize_waits_for_callbacks_of_other_threads(
    vm: Machine, endpoint: Endpoint, extra_modules: dict[str, Path]
) -> None:
    """Here of one that asks for a status; what unbinds or handles an error of the bus counts alike."""
    vm.load(extra_modules["slow_client"])
    vm.run(["rmmod", "slow_client"])
    assert vm.complaints() == []
    assert load(vm, f"--engine={channels(vm)[0]}", "--count=64")["load"]["ended"] == {"ok": 64}


def test_channels_of_an_unobserved_bus_are_not_used(vm: Machine, extra_modules: dict[str, Path]) -> None:
    """Of a device on a bus that the module does not hear of: not used, even if they are listed."""
    before = engines(vm)
    vm.load(extra_modules["other_bus"])
    try:
        assert len(channels(vm)) == len(before)  # all but the CPU, and that one
        time.sleep(1.1)
        assert engines(vm) == before
    finally:
        vm.run(["rmmod", "other_bus"])
    assert "nymph_other" in vm.run(["dmesg"]).stdout


LOSE_POWER = """
import glob, mmap, os, pynymph
(function,) = glob.glob("/sys/bus/pci/drivers/nymph_endpoint/0*")
with open(function + "/resource2", "r+b") as bar, mmap.mmap(bar.fileno(), 4096) as registers:
    assert registers[0x20:0x28] != bytes(8)
    registers[0x20:0x28] = bytes(8)
data = os.urandom(100_000)
open(function + "/reset", "w").write("1")
with pynymph.Ring(engine="dma0chan0") as ring:
    card = ring.allocate_on_card(len(data))
    assert ring.copy(src=data, dst=card, verify=True).engine == "dma0chan0"
"""


@pytest.mark.usefixtures("port")
def test_registers_are_restored_after_power_loss(vm: Machine, endpoint: Endpoint) -> None:
    """The driver restores registers that a device loses in D3cold or in a reset slot."""
    vm.run(["python3", "-c", LOSE_POWER])


def test_driver_matches_only_ivshmem_of_qemu(vm: Machine) -> None:
    """Not for all that has ivshmem's ids: only as QEMU makes it."""
    (path,) = (path for path in build.prepare(vm.state.kernel).modules if path.stem == "nymph_endpoint")
    aliases = [each for each in path.read_bytes().split(b"\x00") if each.startswith(b"alias=")]
    assert aliases == [b"alias=pci:v00001AF4d00001110sv00001AF4sd00001100bc*sc*i*"]


def test_driver_unloads_when_no_ring_has_a_channel(vm: Machine) -> None:
    script = "import pynymph, subprocess as s; r = pynymph.Ring(); print(s.call(['rmmod', 'nymph_endpoint']))"
    assert vm.run(["python3", "-c", script]).stdout == "1\n"
    vm.run(["rmmod", "nymph_endpoint"])
    assert engines(vm) == ["cpu"]
    vm.load(*(path for path in build.prepare(vm.state.kernel).modules if path.stem == "nymph_endpoint"))


DMATEST = """
modprobe dmatest || exit 77
cd /sys/module/dmatest/parameters
echo 4 > threads_per_chan; echo 16384 > test_buf_size; echo 10000 > timeout; echo $1 > iterations
for channel in $(ls /sys/class/dma); do echo $channel > channel; done
dmesg --clear
echo 1 > run
# its own `wait` is a wait that the kernel takes for a hung task
until [ "$(dmesg | grep -c 'dmatest: .* summary ')" -eq $2 ]; do sleep 1; done
dmesg | grep -o 'dmatest: .* summary .*'
rmmod dmatest
"""


def test_dmatest_passes(vm: Machine, long: bool) -> None:
    """The kernel's own test of providers: 4 threads on each channel; 100,000 copies with --long."""
    if not kernels.KERNELS[vm.state.kernel].built:
        pytest.skip("needs a kernel with dmatest: pytest --kernel debug-6.1, or --arch um")
    iterations = 6250 if long else 50
    threads = 4 * vm.endpoints[NAME].channels
    command = ["timeout", "1200", "sh", "-c", DMATEST, "dmatest", str(iterations), str(threads)]
    said = vm.run(command).stdout.splitlines()
    assert len(said) == threads
    assert [line for line in said if f"summary {iterations} tests, 0 failures" not in line] == []
