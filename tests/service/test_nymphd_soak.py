# SPDX-License-Identifier: MIT
"""nymphd under load while its endpoint fails, dies, goes and comes back: memory is flat at the end.

A minute, or with --long half an hour, or --soak-seconds.
"""

import json
import random
import re
import statistics
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from nymph_vm.faults import Fault
from nymphd_served import Served
from test_nymphd import NAME, SOURCE, client, events, infer, is_well, patient, verify, wait_for

__all__ = ["patient"]  # which holds here, too

SHORT_S, LONG_S = 60, 30 * 60
FAULTS = ("flip", "stall", "lost", "death", "short", "garbage-ring", "slow")
LEVELS = ("rings", "contexts", "pinned_pages", "allocated_pages", "quarantined")
GROWTH_KB = 8 * 1024  # that is none: the allocator's, and of libraries that keep some
INPUTS = {"python": SOURCE, "html": b"<!DOCTYPE html><html><body><p>hello</p></body></html>\n" * 20}


class Soak:
    """Clients of every kind, and what they saw."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.stop = threading.Event()
        self.seen: Counter[str] = Counter()

    def infer(self) -> None:
        with client(self.served) as asking:
            while not self.stop.is_set():
                label, data = random.choice(list(INPUTS.items()))
                found = infer(asking, data + b"\n" * random.randrange(1000))
                assert found["output"]["label"] == label, found
                self.seen["inferred"] += 1
                self.seen["inferred after a fault"] += bool(found["faults"])

    def verify(self) -> None:
        with client(self.served) as asking:
            while not self.stop.wait(0.5):
                verified, engines = verify(asking, random.randrange(1, 100_000))
                assert engines["cpu"]["verified"], engines
                self.seen["verified" if verified else "found wanting"] += 1

    def look(self) -> None:
        with client(self.served) as asking:
            while not self.stop.wait(0.2):
                for path in ("/status", "/healthz", "/metrics", "/models"):
                    answer = asking.get(path)
                    assert answer.status_code == 200, answer.text
                    self.seen["looked"] += 1

    def listen(self) -> None:
        """Over and over, so that coming and going is part of it."""
        while not self.stop.is_set():
            with events(self.served) as listening:
                for _ in range(20):
                    self.seen[json.loads(listening.recv(timeout=120))["type"]] += 1

    def break_it(self, seconds: float) -> None:
        """Faults by turns, with rest between them."""
        until = time.monotonic() + seconds
        machine = self.served.machine
        for turn in range(10_000):
            if time.monotonic() > until or self.stop.is_set():
                break
            if turn % 4 == 3:
                machine.unplug(NAME)
                self.stop.wait(3)
                machine.plug(NAME)
            else:
                machine.endpoints[NAME].set_faults(Fault(random.choice(FAULTS), rate=0.5, seed=turn))
            self.seen["turns"] += 1
            self.stop.wait(6)
            machine.endpoints[NAME].set_faults()
            self.stop.wait(4)


def rss_kb(served: Served) -> int:
    pid = served.machine.run(["systemctl", "show", "--value", "-p", "MainPID", "nymphd"]).stdout.strip()
    status = served.machine.run(["cat", f"/proc/{pid}/status"]).stdout
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1])


def levels(served: Served) -> dict[str, int]:
    """What the driver holds at rest: now and then nymphd looks at its engines, but not all the time."""
    found: list[dict[str, int]] = []
    with client(served) as asking:
        for _ in range(10):
            found.append(asking.get("/status").json()["counters"])
            time.sleep(0.5)
    return {name: min(each[name] for each in found) for name in LEVELS}


def test_soak(served: Served, request: pytest.FixtureRequest) -> None:
    chosen = request.config.getoption("soak_seconds")
    seconds = chosen or (LONG_S if request.config.getoption("long") else SHORT_S)
    soak = Soak(served)
    with client(served) as asking:
        wait_for(lambda: is_well(asking))
        for data in INPUTS.values():
            infer(asking, data)
    at_rest = levels(served)
    started, memory = time.monotonic(), list[tuple[float, int]]()
    with ThreadPoolExecutor(8) as threads:
        clients = [soak.infer, soak.infer, soak.verify, soak.look, soak.look, soak.listen]
        running = [threads.submit(each) for each in clients]
        breaking = threads.submit(soak.break_it, seconds)
        try:
            while not breaking.done() and not any(each.done() for each in running):
                memory.append((time.monotonic() - started, rss_kb(served)))
                time.sleep(max(1, seconds / 200))
        finally:
            soak.stop.set()
        breaking.result()
        for each in running:
            each.result()
    if NAME not in served.machine.endpoints:
        served.machine.plug(NAME)
    served.machine.endpoints[NAME].set_faults()
    with client(served) as asking:
        wait_for(lambda: is_well(asking))
    assert served.machine.run(["systemctl", "show", "--value", "-p", "NRestarts", "nymphd"]).stdout == "0\n"
    assert {"inferred", "verified", "found wanting", "looked", "telemetry", "fault"} <= soak.seen.keys(), (
        soak.seen
    )
    wait_for(lambda: levels(served) == at_rest)
    # Warm-up aside: of the rest, the first quarter against the last.
    rest = [kb for at, kb in memory if at > (time.monotonic() - started) / 4]
    quarter = max(1, len(rest) // 4)
    before, after = statistics.median(rest[:quarter]), statistics.median(rest[-quarter:])
    report = {
        "seconds": round(time.monotonic() - started),
        "on": f"{served.machine.state.kernel} ({served.machine.state.accel})",
        "seen": dict(soak.seen),
        "rss_kb": {"begin": memory[0][1], "after warm-up": before, "end": after, "samples": memory},
        "counters": at_rest,
    }
    target = Path("dist/nymphd_soak.json")
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(report, indent=2) + "\n")
    print({name: value for name, value in report.items() if name != "rss_kb"}, before, after)
    assert after - before < GROWTH_KB, report["rss_kb"]
