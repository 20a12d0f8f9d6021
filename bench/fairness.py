# SPDX-License-Identifier: MIT
"""Small copies on a ring, alone and beside another process's ring that is busy with large ones."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pynymph
from bench import ways
from bench.ways import PATIENCE, Turn, Turns, Work, WrongError

QUEUED = 4
"""So many large copies are in the neighbour's ring all the time."""


def largest(most: int) -> int:
    """Bytes of each large copy: `most`, or what leaves three quarters of the free memory free."""
    size = most
    while size > ways.meminfo("MemAvailable") // 8:  # two buffers of that size
        size //= 2
    return size


@contextlib.contextmanager
def small_copies(work: Work, large: int) -> Iterator[Turns]:
    """Yield what makes copies of `work` one at a time, beside copies of `large` bytes; 0: alone."""
    with contextlib.ExitStack() as stack:
        neighbour = stack.enter_context(_Neighbour.started(work.engine, large)) if large else None
        turns = stack.enter_context(ways.from_python("copy", work))

        def turn(seconds: float) -> Turn:
            with neighbour.busy() if neighbour else contextlib.nullcontext():
                return turns(seconds)

        yield turn


class _Neighbour:
    """The process with the large copies."""

    def __init__(self, orders: Connection) -> None:
        self._orders = orders

    @classmethod
    @contextlib.contextmanager
    def started(cls, engine: str, nbytes: int) -> Iterator[_Neighbour]:
        context = multiprocessing.get_context("spawn")  # a fork would keep our rings open
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, engine, nbytes), daemon=True)
        process.start()
        theirs.close()
        try:
            neighbour = cls(ours)
            neighbour._expect("idle")
            yield neighbour
            neighbour._tell("end", "right")
        finally:
            ours.close()
            process.join(PATIENCE)
            process.kill()
            process.join()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Have large copies in its ring all the time."""
        self._tell("go", "busy")
        yield
        self._tell("pause", "idle")

    def _tell(self, order: str, answer: str) -> None:
        self._orders.send(order)
        self._expect(answer)

    def _expect(self, answer: str) -> None:
        try:
            said = self._orders.recv()
        except EOFError:
            said = "it ended without a word"
        if said != answer:
            raise WrongError(f"the ring with large copies: {said}")


def _serve(orders: Connection, engine: str, nbytes: int) -> None:
    try:
        _keep_busy(orders, engine, nbytes)
    except EOFError:
        pass  # nobody wants to know any more
    except (pynymph.NymphError, OSError, WrongError) as error:
        orders.send(str(error))


def _keep_busy(orders: Connection, engine: str, nbytes: int) -> None:
    """Between "go" and "pause" there are always large copies in the ring."""
    src, dst = (mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE) for _ in range(2))
    block = os.urandom(1 << 20)
    for offset in range(0, nbytes, len(block)):
        src[offset : offset + len(block)] = block[: nbytes - offset]
    copy = pynymph.Copy(src=src, dst=dst)
    with pynymph.Ring(2 * QUEUED, engine=engine) as ring:
        orders.send("idle")
        while orders.recv() == "go":
            ring.submit_all([copy] * QUEUED)
            while not ring.snapshot().active_descriptors:
                pass
            orders.send("busy")
            while not orders.poll():
                done = next(ring.completions(timeout=PATIENCE))
                if done.status or done.bytes_done != nbytes:
                    raise WrongError(f"a copy ended with {done.status} after {done.bytes_done} bytes")
                ring.submit(copy)
            orders.recv()
            ring.reset()  # what is in it would disturb the turns of others
            orders.send("idle")
        ring.copy(src=src, dst=dst, timeout=PATIENCE)
    if src[:] != dst[:]:
        raise WrongError("the destination is not the source")
    orders.send("right")
