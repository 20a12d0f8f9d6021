# SPDX-License-Identifier: MIT
"""What nymphd keeps of the last hour and day, and answers to /history."""

import json
import time

import pytest
from nymphd.history import COLUMNS, Durations, History, Reading
from nymphd_process import Service


def reading(seconds: float, copies: dict[int, int] | None = None, **counts: int) -> Reading:
    names = ("bytes", "copies", "inferences", "tokens", "infer_failed", "faults")
    durations = Durations()
    for _ in range(counts.get("inferences", 0)):
        durations.add(0.002)
    return Reading(
        time=1e9 + seconds,
        clock=seconds,
        counts={name: counts.get(name, 0) for name in names},
        copies=copies or {},
        inferences=durations.buckets,
        temp_c=None,
    )


def test_history_is_of_each_interval() -> None:
    history = History()
    history.add(reading(0, {1000: 1_000_000}, bytes=5))
    row = history.add(reading(1, {1000: 1_000_000, 9000: 3}, bytes=105, inferences=4))
    assert (row["copy_p50_ns"], row["copy_p99_ns"]) == (9000, 9000), "a million before do not count"
    assert (row["bytes_per_s"], row["inferences_per_s"]) == (100, 4)
    assert row["infer_p50_ns"] == pytest.approx(2e6, rel=1 / 8)
    row = history.add(reading(2, {1000: 1_000_000, 9000: 3}, bytes=105, inferences=4))
    assert (row["copy_p50_ns"], row["infer_p99_ns"]) == (None, None), "nothing was measured"
    row = history.add(reading(3, {1000: 2}, bytes=1))
    assert (row["bytes_per_s"], row["copy_p50_ns"]) == (0, 1000), "the driver was loaded again"


def test_history_keeps_an_hour_and_a_day() -> None:
    history = History()
    for second in range(90_000):
        history.add(reading(second, bytes=second * 10))
    hour, day = (json.loads(history.as_json(span)) for span in ("hour", "day"))
    assert (len(hour["rows"]), hour["rows"][-1][0] - hour["rows"][0][0]) == (3600, 3599)
    assert (len(day["rows"]), day["rows"][-1][0] - day["rows"][0][0]) == (1440, 1439 * 60)
    for found in (hour, day):
        assert {row[found["columns"].index("bytes_per_s")] for row in found["rows"]} == {10}


@pytest.mark.parametrize("seconds", [1e-9, 1e-6, 0.00123, 1, 3600])
def test_buckets_of_durations_are_an_eighth_wide(seconds: float) -> None:
    durations = Durations()
    durations.add(seconds)
    (end,) = durations.buckets
    assert round(seconds * 1e9) <= end <= seconds * 1e9 * 9 / 8


def test_history_keeps_its_rows_for_later_readers(service: Service) -> None:
    """Whoever asks later gets the same rows; and each is in /status while it is the newest."""
    with service.client() as client:
        client.get("/fabric/verify", params={"bytes": 1 << 20})
        deadline = time.monotonic() + 30
        while not (rows := client.get("/history").json()["rows"]) or not any(row[1] for row in rows):
            assert time.monotonic() < deadline, rows
            time.sleep(0.2)
        later = client.get("/history", params={"span": "hour"}).json()
        newest = client.get("/status").json()["rates"]
        day = client.get("/history", params={"span": "day"}).json()
        refused = client.get("/history", params={"span": "week"})
    assert later["rows"][: len(rows)] == rows
    assert (later["span"], later["every_s"], tuple(later["columns"])) == ("hour", 1, COLUMNS)
    assert tuple(newest) == COLUMNS and newest["time"] >= later["rows"][-1][0]
    busy = next(dict(zip(COLUMNS, row, strict=True)) for row in rows if row[1])
    assert busy["copy_p99_ns"] >= busy["copy_p50_ns"] > 0
    assert (day["span"], day["every_s"]) == ("day", 60)
    assert refused.status_code == 422
