#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""In the guest, for test_endpoint.py: many copies on one engine, beside others on another.

Prints how they ended, as JSON. Each destination has its neighbours watched, and is read whatever the driver
said of it. Memory is the caller's and the driver's own, by turns: of the latter many are under way at once.
"""

import argparse
import errno
import itertools
import json
import mmap
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pynymph
from pynymph import Copy, NymphError

DEPTH = 32
GAP = mmap.PAGESIZE


class Load:
    """Copies of `size` bytes on an engine, up to DEPTH at a time."""

    def __init__(self, engine: str, size: int, verify: bool) -> None:
        self.engine, self.size, self.verify = engine, size, verify
        self.stride = GAP + -(-size // GAP) * GAP
        self.dst = mmap.mmap(-1, GAP + DEPTH * self.stride)
        self.src = mmap.mmap(-1, DEPTH * self.stride)
        self.blank = b"\xa5" * len(self.dst)
        self.ended: Counter[str] = Counter()
        self.engines: Counter[str] = Counter()
        self.wrong = self.stray = self.number = self.refused = 0
        self.slowest_s = self.longest_gap_s = 0.0

    def run(self, left: Callable[[], int], begun: Callable[[], None] = lambda: None) -> None:
        """Go on until left() says that no more copies are wanted. begun() is called behind the first."""
        with pynymph.Ring(2 * DEPTH, engine=self.engine) as ring:
            own = ring.allocate(len(self.src)), ring.allocate(len(self.dst))
            users = memoryview(self.src), memoryview(self.dst)
            for turn in itertools.count():
                if (wanted := left()) <= 0:
                    break
                self.batch(ring, min(DEPTH, wanted), *(own if turn % 2 else users))
                if self.number <= DEPTH:
                    begun()
            for view in users:
                view.release()

    def batch(self, ring: pynymph.Ring, depth: int, from_: Any, to: Any) -> None:
        src, dst = (getattr(side, "view", side) for side in (from_, to))
        at = [i * self.stride for i in range(depth)]
        dst[:] = self.blank
        for i in range(depth):
            number = (self.number + i).to_bytes(8, "little")
            src[at[i] : at[i] + self.size] = (number * (self.size // 8 + 1))[: self.size]
        jobs = []
        try:
            jobs = ring.submit_all(
                Copy(
                    src=from_[start : start + self.size],
                    dst=to[GAP + start : GAP + start + self.size],
                    verify=self.verify,
                )
                for start in at
            )
        except NymphError:
            self.refused += 1
            time.sleep(0.01)
        self.number += len(jobs)
        last_good_ns = None
        for start, job in zip(at, jobs, strict=False):
            status = 0
            try:
                done = job.result()
            except NymphError as error:
                assert error.completion is not None
                done, status = error.completion, error.errno or -1
            assert done.engine is not None and done.started_ns is not None
            self.engines[done.engine] += 1
            self.ended["ok" if not status else errno.errorcode[status]] += 1
            if last_good_ns is None:
                last_good_ns = done.started_ns
            if not status:
                self.longest_gap_s = max(self.longest_gap_s, (done.completed_ns - last_good_ns) / 1e9)
                last_good_ns = done.completed_ns
            self.slowest_s = max(self.slowest_s, (done.completed_ns - done.started_ns) / 1e9)
            first = GAP + start
            same = dst[first : first + self.size] == src[start : start + self.size]
            self.wrong += not status and not same
            gap = self.blank[: self.stride - self.size]
            self.stray += dst[first + self.size : first + self.stride] != gap
        self.stray += dst[:GAP] != self.blank[:GAP]

    def report(self) -> dict[str, Any]:
        names = ("ended", "engines", "wrong", "stray", "refused", "slowest_s", "longest_gap_s")
        return {"copies": self.number, **{name: getattr(self, name) for name in names}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--beside", help="engine of the other load, verified")
    parser.add_argument("--bytes", type=int, default=4096)
    parser.add_argument("--count", type=int, help="copies (default: until standard input ends)")
    parser.add_argument("--plain", action="store_true", help="do not verify")
    chosen = parser.parse_args()
    load = Load(chosen.engine, chosen.bytes, not chosen.plain)
    found = {}
    beside = None
    if chosen.beside:
        stop = threading.Event()
        other = Load(chosen.beside, chosen.bytes, True)
        beside = threading.Thread(target=other.run, args=[lambda: 0 if stop.is_set() else DEPTH])
        beside.start()
    try:
        if chosen.count is None:
            enough = threading.Event()
            threading.Thread(target=lambda: (sys.stdin.read(), enough.set()), daemon=True).start()
            load.run(lambda: 0 if enough.is_set() else DEPTH, lambda: print("copying", flush=True))
        else:
            load.run(lambda: chosen.count - load.number)
    finally:
        if beside:
            stop.set()
            beside.join()
            found["beside"] = other.report()
    found["load"] = load.report()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
