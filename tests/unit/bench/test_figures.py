# SPDX-License-Identifier: MIT
"""What is made of the benchmarks' samples: figures, comparisons, the trace, the pages. Of made-up samples."""

import copy
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bench import comparison, figures, page, perfetto_trace, ways
from pynymph.command import story

CHECKOUT = Path(__file__).parents[3]

SESSIONS = 3
COSTS = {"enter": 2_000, "submit": 9_000}


def raw(
    seed: int = 1, rounds: int = 7, slower: Callable[[str], float] = lambda id: 1, **fields: Any
) -> dict[str, Any]:
    """What suite.run() could return, with 5 % noise, on a machine that is as fast as `fields` say.

    `strays`: in each session each figure is off by so much more.
    """
    chance, apart = random.Random(seed), random.Random(f"apart {seed}")
    strays = fields.pop("strays", 0.0)
    speed = fields.pop("speed", 1.0)
    found = []

    def add(group: str, ns: float, **parameters: Any) -> None:
        id = f"{group}: " + ", ".join(f"{key} {value}" for key, value in parameters.items())
        off = [math.exp(apart.gauss(0, strays)) for _ in range(SESSIONS)]
        sessions = [number * SESSIONS // rounds for number in range(rounds)]
        taken = [ns * slower(id) * off[session] * chance.gauss(1, 0.05) / speed for session in sessions]
        each = {"client_cpu_ns": 1000, "tasks_ns": 1000, "waited_ns": 0, "engine_ns": None, "energy_j": None,
                "interrupts": 0, "fallbacks": 0, "engine_failures": 0, "operations": 100, "p50_ns": ns,
                "p99_ns": None}  # fmt: skip
        found.append(
            {
                "id": id,
                "group": group,
                "parameters": parameters,
                "bytes": parameters.get("bytes", 0),
                "rounds": [
                    {
                        **each,
                        "session": session,
                        "ns": int(100 * time),
                        "yardstick_ns": int(1e6 * chance.gauss(1, 0.05) / speed),
                    }
                    for session, time in zip(sessions, taken, strict=True)
                ],
                "latency": {
                    "count": 700,
                    "p50_ns": ns,
                    "p95_ns": ns,
                    "p99_ns": ns,
                    "p99.9_ns": None,
                    "max_ns": ns,
                },
            }
        )

    for which in "AB":
        add("noise", 5000, client="C", path="enter", engine="cpu", which=which, bytes=4096, depth=64)
    for size in (64, 4096, 65536, 1 << 20):
        for what in ("copy", "copy, verify"):
            for path in ("enter", "enter-1"):
                ns = 1000 + size * (2 if "verify" in what else 1)
                add("size", ns, client="C", path=path, engine="cpu", what=what, bytes=size, depth=8)
    for path, cost in COSTS.items():
        add("path", cost, client="C", path=path, engine="cpu", bytes=64, depth=64)
    for count in (1, 2, 4):
        add(
            "rings",
            3000 / min(count, 2),
            client="C",
            path="enter",
            engine="cpu",
            rings=count,
            bytes=64,
            depth=8,
        )
    add(
        "instead", 4000, client="Python", path="memmove", engine="none", what="then blake3", bytes=64, depth=8
    )
    add("instead", 8000, client="C", path="enter", engine="cpu", what="copy, verify", bytes=64, depth=8)
    for entries in (1, 64, 4096):
        add("set-up", 50_000, client="C", path="setup", engine="cpu", entries=entries, bytes=64, depth=1)
    return {
        "mode": "quick", "sessions": SESSIONS, "rounds": rounds, "seconds_each": 0.01, "measured_s": 1.0,
        "memory_bytes": 1 << 32,
        "kernel": "6.1", "accelerator": "tcg", "accelerator_unknown_because": None, "cpu": "made up",
        "cpus": 2, "blake3": "portable", "failures": [], "energy_null_because": "made up", "nulls": [],
        "engines": [{"name": "cpu", "device": None, "ran": "Nothing ran."}], "ways": found,
        "memory": [
            {"id": f"memory: entries {entries}", "group": "memory",
             "parameters": {"entries": entries, "engine": "cpu"},
             "samples": [1000.0 + 500 * entries] * rounds,
             "sessions": [number * SESSIONS // rounds for number in range(rounds)]}
            for entries in (1, 64, 256, 4096)
        ],
    } | fields  # fmt: skip


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return figures.make(raw())


def test_figures_are_computed_from_the_samples(made: dict[str, Any]) -> None:
    by_id = {each["id"]: each for each in made["figures"]}
    enter = by_id["path: client C, path enter, engine cpu, bytes 64, depth 64"]
    low, high = enter["interval"]
    assert low <= enter["value"] <= high
    assert enter["value"] == pytest.approx(2e-6, rel=0.2)
    assert enter["bytes_per_s"] == pytest.approx(64 / enter["value"])
    assert len(enter["samples"]) == made["rounds"]
    assert enter["cpu_s_per_gib"] == pytest.approx(7000 / 1e9 / (700 * 64 / (1 << 30)))
    energy = by_id["energy"]
    assert (energy["value"], energy["because"]) == (None, "made up")


def test_ratios_contain_the_true_value(made: dict[str, Any]) -> None:
    ratios = {(each["group"], each["of"]): each for each in made["ratios"]}
    (submit,) = (each for (group, _), each in ratios.items() if group == "path")
    assert submit["interval"][0] <= 9 / 2 <= submit["interval"][1] * 1.05
    assert not submit["wide"]
    noise = made["noise"]["same_twice"]["interval"]
    assert noise[0] * 0.98 < 1 < noise[1] * 1.02


def test_too_wide_an_interval_is_marked() -> None:
    assert figures.median([1.0, 5, 2, 9, 1]).is_wide
    assert not figures.median([1.0, 1.01, 0.99, 1]).is_wide
    assert figures.median([3.0]) == (3, 3, 3)


@pytest.mark.parametrize(
    ("said", "shares"),
    [
        ("not known", {}),
        ("CPU time: 2.5 tasks", {"tasks_ns": 1.5, "waited_ns": 1}),
        ("the client", {"client_cpu_ns": 0.95, "tasks_ns": 0.95}),
        ("the engine: it is at work 95%", {"engine_ns": 0.95}),
        ("nothing: clients and the engine wait for each other", {"client_cpu_ns": 0.4, "engine_ns": 0.6}),
        ("the engine: it failed", {"fallbacks": 1e-6, "tasks_ns": 2}),
    ],
)
def test_scaling_limit_names_the_resource_that_ran_out(said: str, shares: dict[str, float]) -> None:
    """`shares`: of the time, what is counted for four rings."""
    measured = raw()
    for way in measured["ways"]:
        for each in way["rounds"]:
            if way["parameters"].get("rings") == 4:
                each |= {name: math.ceil(share * each["ns"]) for name, share in shares.items()}
    (rings,) = (each for each in figures.make(measured)["scaling"] if each["group"] == "rings")
    assert rings["bend"]["at"] == 4
    assert rings["bend"]["because"].startswith(said)


def test_schema_refuses_wrong_reports(made: dict[str, Any], tmp_path: Path) -> None:
    schema = json.loads(figures.SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for spoil in (
        lambda report: report.pop("machine"),
        lambda report: report.update(version=1),
        lambda report: report["figures"][0].update(value=None),  # without a reason
        lambda report: report["figures"][0].update(samples=[]),
    ):
        spoiled = copy.deepcopy(made)
        spoil(spoiled)
        file = tmp_path / "bench.json"
        file.write_text(json.dumps(spoiled))
        with pytest.raises(ValueError, match=r"no bench\.json of version 3"):
            figures.read(file)


# --- compare ---


def test_noise_is_no_regression(made: dict[str, Any]) -> None:
    for seed in range(2, 6):
        verdict = comparison.compare(made, figures.make(raw(seed)))
        assert verdict.regressions == []


def test_variation_between_sessions_is_no_regression() -> None:
    """Whatever it is; only that sessions are few hides it from who looks at single turns."""
    for seed in range(0, 8, 2):
        old, new = (figures.make(raw(each, strays=0.15, rounds=15)) for each in (seed, seed + 1))
        assert comparison.compare(old, new).regressions == []


def test_slower_machine_is_no_regression(made: dict[str, Any]) -> None:
    verdict = comparison.compare(made, figures.make(raw(2, speed=0.4)))
    assert verdict.regressions == []


def test_only_the_regression_is_named(made: dict[str, Any]) -> None:
    slower = figures.make(raw(2, slower=lambda id: 1.6 if "verify" in id and id.startswith("size") else 1))
    verdict = comparison.compare(made, slower)
    assert len(verdict.regressions) == 8
    assert all("verify" in each.id and each.low > verdict.tolerance for each in verdict.regressions)
    assert len(comparison.compare(slower, made).improvements) == 8


def test_common_slowdown_widens_the_tolerance(made: dict[str, Any]) -> None:
    all_slower = figures.make(raw(2, slower=lambda id: 1.6))
    verdict = comparison.compare(made, all_slower)
    assert verdict.tolerance > 1.5
    assert verdict.regressions == []


def test_more_memory_is_a_regression(made: dict[str, Any]) -> None:
    more = raw(2)
    for each in more["memory"]:
        each["samples"] = [sample * 2 for sample in each["samples"]]
    verdict = comparison.compare(made, figures.make(more))
    assert {each.id for each in verdict.regressions} == {each["id"] for each in more["memory"]}


def test_incomparable_reports_are_refused_with_a_reason(made: dict[str, Any]) -> None:
    for other, why in (
        (raw(cpus=4), "cpus was 2 and is 4"),
        (raw(failures=["wrong"]), "new run failed"),
        (raw(ways=[], memory=[]), "no figure in common"),
    ):
        with pytest.raises(comparison.IncomparableError, match=why):
            comparison.compare(made, figures.make(other))


def test_compare_command_reports_regressions(made: dict[str, Any], tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(made))
    new.write_text(json.dumps(figures.make(raw(2, slower=lambda id: 3 if "path submit" in id else 1))))

    def compare(*paths: Path) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "bench", "compare", *paths]
        done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT)
        return done.returncode, done.stdout, done.stderr

    assert compare(old, old)[0] == 0
    status, said, _ = compare(old, new)
    assert (status, said.splitlines()[-1]) == (1, "REGRESSION: 1 figures")
    assert "path submit" in said
    status, said, error = compare(old, tmp_path / "none.json")
    assert (status, said, len(error.splitlines())) == (2, "", 1)
    new.write_text("{}")
    status, said, error = compare(old, new)
    assert (status, said, len(error.splitlines())) == (2, "", 1)


# --- pages ---


def test_pages_are_complete_and_self_contained(made: dict[str, Any], tmp_path: Path) -> None:
    page.write(made, None, tmp_path)
    html = (tmp_path / "report.html").read_text()
    for loads in ("<script", "src=", "<link", "@import"):
        assert loads not in html
    text = (tmp_path / "performance.md").read_text()
    assert "energy" in html and "made up" in text
    assert text.count("\n") < 100, "a page that is kept in git"
    assert html.count("<svg") >= 5
    assert "Natively" not in html


def test_names_are_escaped(made: dict[str, Any], tmp_path: Path) -> None:
    report = copy.deepcopy(made)
    report["machine"]["cpu"] = "<script>alert(1)</script>"
    page.write(report, None, tmp_path)
    assert "<script" not in (tmp_path / "report.html").read_text()


# --- the trace ---


def recorded() -> dict[str, Any]:
    """A copy in two chunks on a channel, and one that fails."""
    at = iter(range(1000, 9000, 10))

    def event(name: str, **fields: int) -> dict[str, Any]:
        return {"event": name, "thread": 7, "ns": next(at), **fields}

    events = []
    records = []
    for cookie, status in ((1, 0), (2, -14)):
        of = {"ring": 3, "cookie": cookie}
        begun = [event("pin", **of), event("pinned", **of)]
        begun.append(event("submit", **of, opcode=1, flags=0x12, length=131072, active=1))
        begun.append(event("start", **of, engine=2, length=131072))
        for _ in range(2):
            begun += [event("move", ring=3, engine=2, n=1), event("mapped", engine=2, n=1, runs=1)]
            begun += [event("moved", ring=3, engine=2, n=1), event("landed", ring=3, n=1)]
        begun.append(event("complete", **of, bytes_done=131072, status=status))
        events += begun
        records.append({"cookie": cookie, "status": status, "bytes_done": 131072, "queued_ns": begun[2]["ns"],
                        "started_ns": begun[3]["ns"], "completed_ns": begun[-1]["ns"]})  # fmt: skip
    spans = [{"name": "copy", "ring": 3, "begin_ns": 900, "end_ns": 9000, "cookies": [1, 2]}]
    return {"engines": {"1": "cpu", "2": "dma0chan0"}, "pid": 7, "spans": spans, "events": events,
            "rings": [{"ring": 3, "name": "client", "engine": "dma0chan0", "records": records}]}  # fmt: skip


def test_trace_agrees_with_the_records() -> None:
    seen = recorded()
    trace = story.build(seen)
    assert perfetto_trace.validate(trace, seen) == []
    parsed = perfetto_trace.Trace()
    parsed.ParseFromString(trace)
    names = {packet.track_descriptor.name for packet in parsed.packet if packet.HasField("track_descriptor")}
    assert {
        "ring 3 on dma0chan0",
        "engine cpu",
        "engine dma0chan0",
        "occupancy",
        "throughput",
        "client",
    } <= names
    instants = [
        p.track_event.name
        for p in parsed.packet
        if p.track_event.type == perfetto_trace.TrackEvent.TYPE_INSTANT
    ]
    assert instants == ["EFAULT"]


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda records: records.pop(), "no record is of the slice"),
        (lambda records: records[0].update(cookie=9), "no slice is of the record of ring 3, cookie 0x9"),
        (lambda records: records[0].update(queued_ns=1), "it is queued at"),
        (lambda records: records[0].update(started_ns=1), "it starts at"),
        (lambda records: records[0].update(completed_ns=1), "it completes at"),
        (lambda records: records[1].update(status=0), "status is -14, and 0"),
    ],
)
def test_wrong_trace_is_detected(spoil: Callable[[Any], object], what: str) -> None:
    seen = recorded()
    trace = story.build(seen)
    spoil(seen["rings"][0]["records"])
    assert any(what in each for each in perfetto_trace.validate(trace, seen))


def test_incomplete_events_make_no_trace() -> None:
    seen = recorded()
    seen["events"] = [each for each in seen["events"] if each["event"] != "complete"]
    with pytest.raises(story.TraceError, match="never completed"):
        story.build(seen)


def test_stages_out_of_order_are_detected() -> None:
    seen = recorded()
    moved = next(each for each in seen["events"] if each["event"] == "moved")
    moved["ns"] -= 15  # before it was mapped
    assert any("not end to end" in each for each in perfetto_trace.validate(story.build(seen), seen))


# --- energy ---


def test_energy_is_measured_or_has_a_reason(tmp_path: Path) -> None:
    assert "RAPL" in str(ways.energy_file(tmp_path))
    zone = tmp_path / "class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "energy_uj").write_text("1234567\n")
    meter = ways.energy_file(tmp_path)
    assert not isinstance(meter, str)
    with meter:
        assert meter.read() == "1234567\n"
    measured = raw(energy_null_because=None)
    for way in measured["ways"]:
        for each in way["rounds"]:
            each["energy_j"] = 0.5
    (path, *_) = (each for each in figures.make(measured)["figures"] if each["group"] == "path")
    assert path["energy_j_per_gib"] == pytest.approx(7 * 0.5 / (700 * 64 / (1 << 30)))
