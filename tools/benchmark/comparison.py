# SPDX-License-Identifier: MIT
"""Tells regressions from noise, between two bench.json.

Times of two runs are never compared as they are: each figure is first taken in terms of its run's yardstick,
a fixed piece of CPU work that was timed beside it. What has nothing to do with the driver, and the same way
measured twice, tell how far figures stray by themselves; that, and 10 % in any case, are tolerated. Beyond, a
change counts if a Mann-Whitney test finds it, with Benjamini and Hochberg's correction for so many tests, and
its interval agrees.
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
FEWEST = 4
"""Samples on both sides: of fewer no test tells anything."""


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
    few = [id for id in common if min(len(before[id]["samples"]), len(after[id]["samples"])) < FEWEST]
    if few:
        raise IncomparableError(f"{few[0]} has fewer than {FEWEST} samples: measure more rounds")

    changes = [_change(before[id], after[id]) for id in common]
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
    found = {}
    ticks: dict[str, list[float]] = {}
    for figure in run["figures"]:
        ticks.setdefault(figure["group"], []).extend(figure.get("yardstick_s", []))
    for figure in run["figures"]:
        if figure["value"] is None:
            continue
        # Single looks at the yardstick are as noisy as what they are for; those of a group are of one time.
        yardstick = float(np.median(ticks[figure["group"]])) if ticks[figure["group"]] else 1.0
        found[figure["id"]] = {**figure, "costs": np.asarray(figure["samples"]) / yardstick}
    return found


def _change(before: dict[str, Any], after: dict[str, Any]) -> Change:
    old, new = before["costs"], after["costs"]
    ratio = float(np.median(new) / np.median(old))
    if np.ptp(old) == 0 and np.ptp(new) == 0:  # memory, to the byte
        return Change(before["id"], ratio, ratio, ratio, 1.0 if ratio == 1 else 0.0)

    def statistic(a: Any, b: Any, axis: int = -1) -> Any:
        return np.log(np.median(b, axis=axis) / np.median(a, axis=axis))

    interval = stats.bootstrap(
        (old, new), statistic, confidence_level=CONFIDENCE, method="percentile", n_resamples=2000, rng=1
    ).confidence_interval
    p = float(stats.mannwhitneyu(old, new, method="exact" if len(old) < 20 else "auto").pvalue)
    return Change(before["id"], ratio, math.exp(interval.low), math.exp(interval.high), p)


def _strays(run: dict[str, Any]) -> Iterator[float]:
    """How far one run's figures stray, by the same way measured twice."""
    if run["noise"]:
        low, high = run["noise"]["same_twice"]["interval"]
        yield math.sqrt(high / low)


def _strayed(controls: list[Change]) -> Iterator[float]:
    """How far figures strayed that the driver has no part in; half of them may be further off by chance."""
    if controls:
        yield float(np.exp(np.median([abs(math.log(change.ratio)) for change in controls])))
