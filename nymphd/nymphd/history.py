# SPDX-License-Identifier: MIT
"""History of the last hour by the second, and of the last day by the minute. It ends with the process."""

from __future__ import annotations

import json
import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

SPANS = {"hour": (1, 3600), "day": (60, 1440)}
"""By name: the seconds of a row, and the number of rows kept."""

COLUMNS = (
    "time", "bytes_per_s", "copies_per_s", "inferences_per_s", "tokens_per_s", "copy_p50_ns", "copy_p99_ns",
    "infer_p50_ns", "infer_p99_ns", "infer_failed", "faults", "temp_c",
)  # fmt: skip
_RATED = ("bytes", "copies", "inferences", "tokens")
_COUNTED = ("infer_failed", "faults")

Row = dict[str, float | None]
Histogram = Mapping[int, int]
"""Longest time in ns of each bucket, and the number of times in it."""


@dataclass
class Durations:
    """Count durations in buckets that are an eighth wide, as those of the driver."""

    buckets: Counter[int] = field(default_factory=Counter)

    def add(self, seconds: float) -> None:
        ns = max(1, round(seconds * 1e9))
        step = max(0, ns.bit_length() - 4)
        self.buckets[(((ns >> step) + 1) << step) - 1] += 1


@dataclass(frozen=True)
class Reading:
    """Keep counters at `time`, in seconds since 1970; `clock` is time.monotonic() of that moment.

    `counts` has bytes, copies, inferences, tokens, infer_failed and faults.
    """

    time: float
    clock: float
    counts: Mapping[str, int]
    copies: Histogram
    inferences: Histogram
    temp_c: float | None


class History:
    """Keep rows of the increases between two readings."""

    def __init__(self) -> None:
        self._rows: dict[str, deque[str]] = {span: deque(maxlen=rows) for span, (_, rows) in SPANS.items()}
        self._last: dict[str, Reading] = {}

    def add(self, reading: Reading) -> Row:
        """Note a reading, once a second; the row of that second."""
        row = _row(self._last.get("hour", reading), reading)
        for span, (seconds, _) in SPANS.items():
            before = self._last.setdefault(span, reading)
            # The clock jitters, so a reading may come a moment early.
            if reading.clock - before.clock >= seconds - 0.5:
                of_span = row if before is self._last["hour"] else _row(before, reading)
                self._rows[span].append(json.dumps(list(of_span.values())))
                self._last[span] = reading
        return row

    def as_json(self, span: str) -> str:
        """Return the answer of /history. It can be long, so it is joined from rows in JSON."""
        about = {"span": span, "every_s": SPANS[span][0], "columns": COLUMNS}
        return f'{json.dumps(about)[:-1]}, "rows": [{",".join(self._rows[span])}]}}'


def _row(before: Reading, after: Reading) -> Row:
    seconds = after.clock - before.clock
    # A driver that was loaded again counts from 0, as _more() says.
    more = {name: max(0, count - before.counts.get(name, 0)) for name, count in after.counts.items()}
    copies = _more(before.copies, after.copies)
    inferences = _more(before.inferences, after.inferences)
    return {
        "time": round(after.time, 3),
        **{f"{name}_per_s": round(more[name] / seconds, 3) if seconds else 0.0 for name in _RATED},
        "copy_p50_ns": _quantile(copies, 0.5),
        "copy_p99_ns": _quantile(copies, 0.99),
        "infer_p50_ns": _quantile(inferences, 0.5),
        "infer_p99_ns": _quantile(inferences, 0.99),
        **{name: more[name] for name in _COUNTED},
        "temp_c": after.temp_c,
    }


def _more(earlier: Histogram, later: Histogram) -> Histogram:
    if any(later.get(end, 0) < n for end, n in earlier.items()):
        earlier = {}  # it began anew
    return {end: n - earlier.get(end, 0) for end, n in later.items() if n > earlier.get(end, 0)}


def _quantile(of: Histogram, share: float) -> int | None:
    """Return the time that a share of durations did not exceed, up to a bucket's width; None if none."""
    left = math.ceil(sum(of.values()) * share)
    for end in sorted(of):
        left -= of[end]
        if left <= 0:
            return end
    return None
