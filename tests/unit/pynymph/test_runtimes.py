# SPDX-License-Identifier: MIT
"""What docs/reference/runtimes.md says of python -O, subinterpreters, uvloop and gevent."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]


def run(code: str, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)


OPTIMIZED = """
import asyncio, numpy as np, pynymph
from pynymph import batch, digest, fabric

def check(fine):
    if not fine:  # an assert would not run
        raise SystemExit("wrong")

check(not __debug__)
with pynymph.Ring(8, device="model:") as ring:
    src, dst = ring.allocate(1000), ring.allocate(1000)
    src.view[:] = bytes(range(250)) * 4
    done = ring.copy(src=src, dst=dst, verify=True)
    check(done.dst_digest == digest.payload(dst) == ring.digest(src=src))
    check(ring.compare(a=src, b=dst) is None)
    entries = batch.copies(src, dst, src_at=[0, 9], dst_at=[9, 500], length=5)
    check(not ring.run_many(entries)["status"].any())
    ring.submit(pynymph.Fill(dst=dst))
    check([each.status for each in ring.completions()] == [0])
    check(digest.ring_hash(ring.snapshot()) == ring.hash())
    for wrong in (lambda: ring.allocate(-1), lambda: ring.copy(src=src, dst=dst[1:])):
        try:
            wrong()
        except pynymph.ArgumentError:
            continue
        raise SystemExit("taken")

async def main():
    async with pynymph.AsyncRing(device="model:") as ring:
        check((await ring.copy(src=b"1", dst=bytearray(1))).status == 0)
        await ring.submit(pynymph.Nop())
        check([each.status async for each in ring] == [0])

asyncio.run(main())
check(fabric.verify_engine("model", device="model:").verified)
print("all right")
"""


@pytest.mark.parametrize("option", ["-O", "-OO"])
def test_ring_works_without_asserts(option: str) -> None:
    done = run(OPTIMIZED, option)
    assert (done.returncode, done.stdout, done.stderr) == (0, "all right\n", "")


IN_SUBINTERPRETER = """
import sys
try:
    import _interpreters
    make = lambda: _interpreters.create("legacy")
    run, destroy = _interpreters.exec, _interpreters.destroy
except ImportError:
    import _xxsubinterpreters as _interpreters
    make = lambda: _interpreters.create(isolated=False)
    run, destroy = _interpreters.run_string, _interpreters.destroy
code = '''
import pynymph
ring = pynymph.Ring(device="model:")
dst = bytearray(5)
done = ring.copy(src=b"12345", dst=dst, verify=True)
print(done.status, bytes(dst), flush=True)
'''
import pynymph
for _ in range(2):  # beside the main one's, and one after the other
    number = make()
    said = run(number, "import sys; sys.path[:0] = " + repr(sys.path) + "\\n" + code)
    if said is not None:
        raise SystemExit(str(said))
    destroy(number)  # with its ring open
with pynymph.Ring(device="model:") as ring:
    print(ring.digest(src=b"1").hex()[:4])
"""


def test_ring_works_in_a_subinterpreter() -> None:
    done = run(IN_SUBINTERPRETER)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:2] == ["0 b'12345'"] * 2


ON_UVLOOP = """
import asyncio, uvloop, pynymph

async def main():
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
    async with pynymph.AsyncRing(2, device="model:", paused=True) as ring:
        try:
            async with asyncio.timeout(0.05):
                await ring.copy(src=b"1", dst=bytearray(1))
        except TimeoutError:
            print("timed out")
        targets = [bytearray(6) for _ in range(20)]  # far more than there is room for
        tasks = [asyncio.create_task(ring.copy(src=b"abcdef", dst=each, verify=True)) for each in targets]
        await asyncio.sleep(0.05)
        ring.ring.enable()
        await asyncio.gather(*tasks)
        print(set(map(bytes, targets)))
        await ring.submit(pynymph.Nop())
        print([each.status async for each in ring])

uvloop.run(main())
"""


def test_async_ring_works_on_uvloop() -> None:
    pytest.importorskip("uvloop")
    done = run(ON_UVLOOP)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["timed out", "{b'abcdef'}", "[0]"]


ON_GEVENT = """
from gevent import monkey
monkey.patch_all(select=False, thread=False, time=False, socket=False)
import gevent, pynymph

ring = pynymph.Ring(2, device="model:", paused=True)
ticks = []

def tick():
    while not ring_ended:
        ticks.append(1)
        gevent.sleep(0.005)

ring_ended = False
pool = gevent.get_hub().threadpool
copies = [gevent.spawn(pool.apply, ring.copy, (), {"src": b"1", "dst": bytearray(1)}) for _ in range(5)]
ticking = gevent.spawn(tick)
gevent.sleep(0.1)
print(len(ticks) > 3)  # others go on
ring.enable()
gevent.joinall(copies, raise_error=True)
ring_ended = True
print([each.value.status for each in copies])
"""


def test_ring_works_in_threads_of_gevent() -> None:
    pytest.importorskip("gevent")
    done = run(ON_GEVENT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["True", "[0, 0, 0, 0, 0]"]


NEEDED = ["select=False", "thread=False", "time=False", "socket=False"]


@pytest.mark.parametrize("replaced", [0, 1, 2, 3, None])
def test_gevent_with_replaced_waits_is_refused(replaced: int | None) -> None:
    """Two greenlets of one thread have one lock: it hung."""
    pytest.importorskip("gevent")
    kept = [] if replaced is None else NEEDED[:replaced] + NEEDED[replaced + 1 :]
    code = f"from gevent import monkey\nmonkey.patch_all({', '.join(kept)})\nimport pynymph\n"
    done = run(code + "pynymph.Ring(device='model:')")
    assert "NymphError" in done.stderr and f"patch_all({', '.join(NEEDED)})" in done.stderr
