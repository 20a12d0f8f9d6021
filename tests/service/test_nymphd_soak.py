# SPDX-License-Identifier: MIT
"""nymphd among strangers, tenants and reloads, while its endpoint fails, dies and comes back: it stays flat.

Three minutes, or with --long half an hour, or --soak-seconds.
"""

import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from nymph_vm.faults import Fault
from nymphd_served import InGuest, Served
from test_nymphd import NAME, infer, is_well, wait_for
from test_soak import GROWTH, INPUTS, WANTED, Soak, add_models

SHORT_S, LONG_S = 3 * 60, 30 * 60
FAULTS = ("flip", "stall", "lost", "death", "short", "garbage-ring", "slow")
LEVELS = ("rings", "contexts", "pinned_pages", "allocated_pages", "quarantined")


class Endangered(Soak):
    """Everybody, and who breaks the endpoint."""

    def __init__(self, running: InGuest, guest: Path) -> None:
        super().__init__(running, guest)
        self.machine = running.machine

    def everybody(self) -> list[Callable[[], None]]:
        return [*super().everybody(), self.verify]

    def verify(self) -> None:
        with self.running.client(headers={}) as asking:
            while not self.stop.wait(0.5):
                asking.headers = self.running.bearer
                answer = asking.get("/fabric/verify", params={"bytes": random.randrange(1, 100_000)})
                self.count("verified", answer, 200)
                if answer.is_success:
                    found = answer.json()
                    assert found["ring_hash"] == found["recomputed_ring_hash"]
                    assert next(each for each in found["engines"] if each["engine"] == "cpu")["verified"]
                    self.seen["verified" if found["verified"] else "found wanting"] += 1

    def break_it(self, seconds: float) -> None:
        """Faults by turns, with rest between them."""
        until = time.monotonic() + seconds
        machine = self.machine
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


def levels(running: InGuest) -> dict[str, int]:
    """What the driver holds at rest: now and then nymphd looks at its engines, but not all the time."""
    found: list[dict[str, int]] = []
    with running.client() as asking:
        for _ in range(10):
            found.append(asking.get("/status").json()["counters"])
            time.sleep(0.5)
    return {name: min(each[name] for each in found) for name in LEVELS}


@pytest.fixture
def running(served: Served) -> Iterator[InGuest]:
    started = InGuest(served, login_limit="100000/minute", verify_timeout_s=60, infer_timeout_s=10)
    yield started
    started.close()


def test_service_stays_flat_under_faults(
    running: InGuest, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    chosen = request.config.getoption("soak_seconds")
    seconds = chosen or (LONG_S if request.config.getoption("long") else SHORT_S)
    soak = Endangered(running, add_models(running, tmp_path))
    with running.client() as asking:
        wait_for(lambda: is_well(asking))
        for data in INPUTS.values():
            infer(asking, data)
    at_rest = levels(running)
    started, memory = time.monotonic(), list[tuple[float, float]]()
    users = soak.everybody()
    with ThreadPoolExecutor(len(users) + 1) as threads:
        using = [threads.submit(each) for each in users]
        breaking = threads.submit(soak.break_it, seconds)
        try:
            while not breaking.done() and not any(each.done() for each in using):
                memory.append((time.monotonic() - started, running.rss_mib()))
                time.sleep(max(1, seconds / 200))
        finally:
            soak.stop.set()
        breaking.result()
        for each in using:
            each.result()
    if NAME not in running.machine.endpoints:
        running.machine.plug(NAME)
    running.machine.endpoints[NAME].set_faults()
    with running.client() as asking:
        wait_for(lambda: is_well(asking))
        wait_for(lambda: asking.get("/status").json()["infer"]["in_flight"] == 0)
        assert asking.get("/readyz").status_code == 200
    assert running.restarts() == 0
    assert soak.seen.keys() >= {*WANTED, "verified", "found wanting", "/status 200"}, soak.seen
    assert [entry for entry in running.log() if entry.get("level") == "error"] == []
    wait_for(lambda: levels(running) == at_rest)
    # Warm-up aside: of the rest, the first quarter against the last.
    rest = [mib for at, mib in memory if at > (time.monotonic() - started) / 4]
    quarter = max(1, len(rest) // 4)
    before, after = statistics.median(rest[:quarter]), statistics.median(rest[-quarter:])
    report = {
        "seconds": round(time.monotonic() - started),
        "on": f"{running.machine.state.kernel} ({running.machine.state.accel})",
        "seen": dict(soak.seen),
        "rss_mib": {"begin": memory[0][1], "after warm-up": before, "end": after, "samples": memory},
        "counters": at_rest,
    }
    target = Path("dist/nymphd_soak.json")
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(report, indent=2) + "\n")
    print({name: value for name, value in report.items() if name != "rss_mib"}, before, after)
    assert after <= before * GROWTH, report["rss_mib"]
