# SPDX-License-Identifier: MIT
"""Makes bench.json of what was measured: medians, intervals, ratios, and what ran out.

Intervals hold with 95 % confidence, and come of scipy's bootstrap. Ratios are of ways that took turns, round
by round. bench.schema.json says what is in a bench.json, and this module never writes one that is not so.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jsonschema
import numpy as np
from scipy import stats

VERSION = 3
SCHEMA = Path(__file__).with_name("bench.schema.json")
WIDE = 0.25
"""An interval that reaches farther than that, of the value, to both sides together is marked."""
CONFIDENCE = 0.95
BUSY = 0.9
"""So much of what there is counts as used up."""
FALLS_SHORT = 0.75
GIB = 1 << 30

# What is compared within a group: the first way has ratio 1. Keys are parameters.
BASES: dict[str, dict[str, Any]] = {
    "noise": {"which": "A"},
    "size": {"path": "enter", "what": "copy"},
    "path": {"path": "submit", "client": "C"},
    "instead": {"path": "memmove", "what": "then blake3"},
    "equal": {"path": "memmove"},
    "rings": {"rings": 1},
    "processes": {"processes": 1},
    "channels": {"channels": 1},
    "fairness": {"beside": "nothing"},
}
# Of which a ratio is one of its group: of the same size, say.
SAME: dict[str, tuple[str, ...]] = {
    "size": ("bytes", "engine"),
    "path": ("bytes", "engine"),
    "instead": ("bytes",),
    "equal": ("bytes", "kind"),
    "rings": ("engine",),
    "processes": ("engine",),
    "fairness": ("engine",),
}
# What a cost is drawn against, in each group.
AGAINST = {
    "size": "bytes",
    "depth": "depth",
    "ring size": "entries",
    "rings": "rings",
    "processes": "processes",
    "channels": "channels",
    "set-up": "entries",
    "memory": "entries",
}
# In these, the work grows with the number: so much more should be done.
PARALLEL = ("rings", "processes", "channels")
# What tells which resource ran out.
EVIDENCE = (
    "cpu_share",
    "cpu_s_per_gib",
    "tasks",
    "client_share",
    "engine_share",
    "interrupts_per_operation",
    "fallbacks",
)


class Interval(NamedTuple):
    value: float
    low: float
    high: float

    @property
    def is_wide(self) -> bool:
        return self.high - self.low > WIDE * abs(self.value)

    def as_json(self) -> dict[str, Any]:
        return {"value": self.value, "interval": [self.low, self.high], "wide": self.is_wide}


def median(samples: Sequence[float]) -> Interval:
    return _bootstrap(samples, np.median, "percentile")


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """The geometric mean of what is taken round by round."""
    logs = np.log(np.asarray(numerators) / np.asarray(denominators))
    return Interval(*(float(each) for each in np.exp(_bootstrap(logs, np.mean, "BCa"))))


def _bootstrap(samples: Any, statistic: Callable[..., Any], method: Literal["percentile", "BCa"]) -> Interval:
    values = np.asarray(samples, float)
    value = float(statistic(values))
    if np.ptp(values) == 0:  # of one, or all the same: the bootstrap knows no interval
        return Interval(value, value, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (values,), statistic, confidence_level=CONFIDENCE, method=method, n_resamples=2000, rng=1
        ).confidence_interval
    if not np.isfinite([found.low, found.high]).all():  # BCa of a few samples, most of which are the same
        return Interval(value, float(values.min()), float(values.max()))
    return Interval(value, float(found.low), float(found.high))


def figure(way: dict[str, Any], cpus: int, no_energy: str | None) -> dict[str, Any]:
    """One row of bench.json: of a way that was measured in turns."""
    rounds = way["rounds"]
    samples = [each["ns"] / each["operations"] / 1e9 for each in rounds]
    operations = sum(each["operations"] for each in rounds)
    seconds = sum(each["ns"] for each in rounds) / 1e9

    def total(name: str) -> float:
        return sum(each[name] or 0 for each in rounds) / 1e9

    cpu, at_work = total("tasks_ns"), total("engine_ns")
    gib = operations * way["bytes"] / GIB
    interrupts = sum(each["interrupts"] for each in rounds)
    energy = None if no_energy else sum(each["energy_j"] for each in rounds)
    found, tokens = median(samples), way["parameters"].get("tokens")
    return {
        "id": way["id"],
        "group": way["group"],
        "parameters": way["parameters"],
        "unit": "s/operation",
        **found.as_json(),
        "because": None,
        "samples": samples,
        "sessions": [each["session"] for each in rounds],
        "yardstick_s": [each["yardstick_ns"] / 1e9 for each in rounds],
        "operations_per_s": 1 / found.value,
        "bytes_per_s": way["bytes"] / found.value if way["bytes"] else None,
        **({"tokens_per_s": tokens / found.value} if tokens else {}),
        "latency": {
            "count": way["latency"]["count"],
            **{f"{name}_s": _seconds(way["latency"][f"{name}_ns"]) for name in QUANTILES},
            "p50_samples": [_seconds(each["p50_ns"]) for each in rounds],
            "p99_samples": [_seconds(each["p99_ns"]) for each in rounds],
        },
        "cpu_s_per_gib": cpu / gib if gib else None,
        "cpu_share": min(1.0, cpu / seconds / cpus),
        "tasks": (cpu + total("waited_ns")) / seconds,
        "client_share": total("client_cpu_ns") / seconds,
        "engine_share": at_work / seconds if at_work else None,
        "interrupts_per_operation": interrupts / operations,
        "interrupts_per_s": interrupts / seconds,
        "fallbacks": sum(each["fallbacks"] for each in rounds),
        "engine_failures": sum(each["engine_failures"] for each in rounds),
        "energy_j_per_gib": energy / gib if energy is not None and gib else None,
    }


QUANTILES = ("p50", "p95", "p99", "p99.9", "max")


def _seconds(ns: float | None) -> float | None:
    return None if ns is None else ns / 1e9


def _null(id: str, because: str, group: str) -> dict[str, Any]:
    return {"id": id, "group": group, "parameters": {}, "unit": None, "value": None, "interval": None,
            "wide": None, "because": because, "samples": []}  # fmt: skip


def ratios(figures: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """How many times faster each way is than the base of its group."""
    for base in figures:
        wanted = BASES.get(base["group"])
        if not wanted or any(base["parameters"].get(key) != value for key, value in wanted.items()):
            continue
        same = SAME.get(base["group"], ())
        for other in figures:
            together = base["group"] == other["group"] and all(
                base["parameters"].get(key) == other["parameters"].get(key)
                # what is done instead has no engine, and is the base of all
                for key in same
            )
            if together and other is not base:
                found = ratio(base["samples"], other["samples"])
                yield {"of": other["id"], "to": base["id"], "group": base["group"], **found.as_json()}


# --- how costs depend on numbers ---


def series(figures: list[dict[str, Any]], cpus: int) -> Iterator[dict[str, Any]]:
    """Costs against each number that they depend on, all else being the same."""
    found: dict[str, list[dict[str, Any]]] = {}
    for each in figures:
        axis = AGAINST.get(each["group"])
        if axis not in each["parameters"] or not each["samples"]:
            continue
        # the depth follows the size, so that a turn does not take long
        rest = {key: value for key, value in each["parameters"].items() if key not in (axis, "depth")}
        found.setdefault(f"{each['group']}: {_say(rest)}", []).append(each)
    for name, rows in found.items():
        rows.sort(key=lambda row: row["parameters"][AGAINST[row["group"]]])
        axis = AGAINST[rows[0]["group"]]
        x = [row["parameters"][axis] for row in rows]
        if len(set(x)) < 3:
            continue
        yield {
            "id": name,
            "group": rows[0]["group"],
            "against": axis,
            "unit": rows[0]["unit"],
            "x": x,
            "y": [row["value"] for row in rows],
            "intervals": [row["interval"] for row in rows],
            "bend": _bend(rows, axis, cpus) if rows[0]["group"] in PARALLEL else None,
        }


def _bend(rows: list[dict[str, Any]], axis: str, cpus: int) -> dict[str, Any] | None:
    """Where more of them do not do as much more any longer, and what ran out, as far as the counters tell."""
    first = rows[0]
    for before, row in pairwise(rows):
        more = row["parameters"][axis] / first["parameters"][axis]
        if first["value"] / row["value"] >= FALLS_SHORT * more:
            continue
        evidence = {name: [each[name] for each in (before, row)] for name in EVIDENCE}
        return {
            "at": row["parameters"][axis],
            "because": _ran_out(first, before, row, axis, cpus),
            "evidence": evidence,
        }
    return None


def _ran_out(first: dict[str, Any], before: dict[str, Any], row: dict[str, Any], axis: str, cpus: int) -> str:
    one, tasks, at_work = first["parameters"][axis], row["tasks"], row["engine_share"] or 0.0
    cpu = f"{tasks:.1f} tasks at a time run on one of the {cpus} CPUs or wait for one"
    if first["cpu_s_per_gib"]:  # else it took less than the kernel's clock ticks tell
        dearer = row["cpu_s_per_gib"] / first["cpu_s_per_gib"]
        cpu += f", and an operation takes {dearer:.1f} times the CPU time that it takes with {one}"
    if row["fallbacks"] > before["fallbacks"]:
        return "the engine: it failed, and the CPU did its work"
    if tasks >= BUSY * cpus:
        return f"CPU time: {cpu}"
    if row["client_share"] >= BUSY:
        return f"the client: each is one task, and runs {row['client_share']:.0%} of the time"
    if at_work >= BUSY:
        return f"the engine: it is at work {at_work:.0%} of the time; {cpu}"
    clients = row["client_share"]
    both = f"clients run {clients:.0%} of the time, the engine is at work {at_work:.0%} of it; {cpu}"
    if clients and at_work and clients + at_work >= BUSY:
        return f"nothing: clients and the engine wait for each other: {both}"
    return f"not known: {both}"


def _say(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in parameters.items())


# --- all of it ---


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() if done.returncode == 0 else ""


def noise(figures: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the machine does to figures by itself: to the same work twice, and to the yardstick."""
    same = [each for each in figures if each["group"] == "noise"]
    if len(same) != 2:
        return None
    found = ratio(same[0]["samples"], same[1]["samples"])
    ticks = np.asarray([tick for each in figures for tick in each.get("yardstick_s", [])])
    low, middle, high = np.quantile(ticks, [0.05, 0.5, 0.95])
    return {
        "same_twice": found.as_json(),
        "yardstick_s": float(middle),
        "yardstick_spread": float((high - low) / middle),
    }


def make(raw: dict[str, Any]) -> dict[str, Any]:
    """bench.json, of what suite.run() returned."""
    cpus = raw["cpus"]
    found = [figure(way, cpus, raw["energy_null_because"]) for way in raw["ways"]]
    for each in raw["memory"]:
        samples = each.pop("samples")
        found.append(
            {**each, "unit": "B/ring", **median(samples).as_json(), "because": None, "samples": samples}
        )
    nulls = [_null(each["id"], each["because"], each["id"].partition(":")[0]) for each in raw["nulls"]]
    if raw["energy_null_because"]:
        nulls.append(_null("energy", raw["energy_null_because"], "energy"))
    machine = (
        "kernel",
        "accelerator",
        "accelerator_unknown_because",
        "cpu",
        "cpus",
        "memory_bytes",
        "blake3",
    )
    report = {
        "version": VERSION,
        "made_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD") or None,
        "changed_since": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "status": "FAIL" if raw["failures"] else "PASS",
        "failures": raw["failures"],
        "mode": raw["mode"],
        "sessions": raw["sessions"],
        "rounds": raw["rounds"],
        "seconds_each": raw["seconds_each"],
        "measured_s": raw["measured_s"],
        "load_average": os.getloadavg()[0],
        "machine": {name: raw[name] for name in machine},
        "engines": raw["engines"],
        "noise": noise(found),
        "figures": found + nulls,
        "ratios": list(ratios(found)),
        "scaling": list(series(found, cpus)),
    }
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    return report


def read(path: Path) -> dict[str, Any]:
    """A bench.json. Raises OSError, or ValueError if it is none."""
    try:
        report: dict[str, Any] = json.loads(path.read_text())
        jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    except jsonschema.ValidationError as error:
        raise ValueError(
            f"{path} is no bench.json of version {VERSION}: {error.json_path}: {error.message}"
        ) from error
    return report
