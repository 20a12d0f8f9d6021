# SPDX-License-Identifier: MIT
"""Tells regressions from noise, between two bench.json.

Times of two runs are never compared as they are: each figure is first taken in terms of a yardstick, a fixed
amount of CPU work that was timed beside it. A run repeats all in several sessions, and what differs between
those would differ between two runs of one driver, too. So sessions, not single turns, are the samples of the
t-tests that find changes (with Benjamini and Hochberg's correction for so many). A change counts if also its
interval is beyond what is tolerated in any case: 10 %, or more if what has nothing to do with the driver, or
the same way measured twice, strayed by more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

TOLERANCE = 1.10
FALSE_DISCOVERIES = 0.05
CONFIDENCE = 0.95
MUST_AGREE = ("accelerator", "cpu", "cpus")
PRIOR = 4
"""So many degrees of freedom has what other figures of the group say about how far one strays by itself: of a
few sessions of its own alone, that can't be told."""
LEAST_SPREAD = 0.005
NEXT_TO_NOTHING = 1e-9


class IncomparableError(Exception):
    """The two runs can't be compared; the message says why."""


@dataclass(frozen=True)
class Change:
    """How a figure changed: more than 1 is worse."""

    id: str
    ratio: float
    low: float
    high: float
    p: float


@dataclass
class Verdict:
    tolerance: float
    regressions: list[Change] = field(default_factory=list)
    improvements: list[Change] = field(default_factory=list)
    compared: int = 0
    untold: list[str] = field(default_factory=list)
    """Figures whose interval reaches beyond the tolerance to the worse, though no regression is certain."""
    gone: list[str] = field(default_factory=list)
    """Figures of the old run that the new one does not have."""


def compare(old: dict[str, Any], new: dict[str, Any]) -> Verdict:
    """Whether `new` is worse than `old`. Raises IncomparableError."""
    for name, run in (("old", old), ("new", new)):
        if run["status"] != "PASS":
            raise IncomparableError(f"the {name} run failed, so its figures mean nothing")
    for name in MUST_AGREE:
        if old["machine"][name] != new["machine"][name]:
            raise IncomparableError(
                f"{name} was {old['machine'][name]} and is {new['machine'][name]}: run both on one machine"
            )
    before, after = _by_id(old), _by_id(new)
    common = [id for id in before if id in after]
    if not common:
        raise IncomparableError("the two have no figure in common")

    changes = list(_changes([(before[id], after[id]) for id in common]))
    ours: list[Change] = []
    controls: list[Change] = []
    for change in changes:
        (controls if before[change.id]["parameters"].get("engine") == "none" else ours).append(change)
    verdict = Verdict(max([TOLERANCE, *_strays(old), *_strays(new), *_strayed(controls)]), compared=len(ours))
    verdict.gone = [id for id in before if id not in after]
    limit = verdict.tolerance
    corrected: Any = stats.false_discovery_control([change.p for change in ours]) if ours else []
    for change, p in zip(ours, corrected, strict=True):
        if p < FALSE_DISCOVERIES and change.low > limit:
            verdict.regressions.append(change)
        elif p < FALSE_DISCOVERIES and change.high < 1 / limit:
            verdict.improvements.append(change)
        elif change.high > limit:
            verdict.untold.append(change.id)
    verdict.regressions.sort(key=lambda change: -change.ratio)
    verdict.improvements.sort(key=lambda change: change.ratio)
    return verdict


def _by_id(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures, each with what it costs in each session: `logs`, the median logarithms."""
    found = {}
    ticks: dict[tuple[str, int], list[float]] = {}
    for figure in run["figures"]:
        for session, tick in zip(figure.get("sessions", []), figure.get("yardstick_s", []), strict=False):
            ticks.setdefault((figure["group"], session), []).append(tick)
    for figure in run["figures"]:
        if figure["value"] is None:
            continue
        logs = []
        for session in sorted(set(figure["sessions"])):
            of_session = zip(figure["samples"], figure["sessions"], strict=True)
            cost = float(np.median([cost for cost, number in of_session if number == session]))
            # single looks at it are as noisy as what they are for; those of a group are of one time
            tick = float(np.median(ticks.get((figure["group"], session), [1.0])))
            logs.append(math.log(max(cost / tick, NEXT_TO_NOTHING)))
        found[figure["id"]] = {**figure, "logs": logs}
    return found


def _changes(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> Iterator[Change]:
    """A t-test of each pair, with variances moderated by those of its group."""
    groups: dict[str, list[tuple[float, int]]] = {}
    spreads = []
    for before, after in pairs:
        sides = before["logs"], after["logs"]
        squares = sum(float(np.var(side)) * len(side) for side in sides)
        freedom = sum(len(side) - 1 for side in sides)
        spreads.append((squares, freedom))
        groups.setdefault(before["group"], []).append((squares, freedom))
    for (before, after), (squares, freedom) in zip(pairs, spreads, strict=True):
        group = groups[before["group"]]
        usual = sum(each for each, _ in group) / sum(each for _, each in group)
        variance = max((PRIOR * usual + squares) / (PRIOR + freedom), LEAST_SPREAD**2)
        error = math.sqrt(variance * (1 / len(before["logs"]) + 1 / len(after["logs"])))
        change = float(np.mean(after["logs"]) - np.mean(before["logs"]))
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, PRIOR + freedom)) * error
        p = 2 * float(stats.t.sf(abs(change) / error, PRIOR + freedom))
        ratio, low, high = (math.exp(each) for each in (change, change - reach, change + reach))
        yield Change(before["id"], ratio, low, high, p)


def _strays(run: dict[str, Any]) -> Iterator[float]:
    """How far one run's figures stray, by the same way measured twice."""
    if run["noise"]:
        low, high = run["noise"]["same_twice"]["interval"]
        yield math.sqrt(high / low)


def _strayed(controls: list[Change]) -> Iterator[float]:
    """How far figures may have strayed that the driver has no part in; half of them further, by chance."""
    if controls:
        yield float(np.median([max(change.high, 1 / change.low) for change in controls]))
