# SPDX-License-Identifier: MIT
"""The figures of /metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)

HTTP_SECONDS = Histogram(
    "nymphd_http_request_duration_seconds",
    "How long requests took.",
    ["path", "method", "status"],
    buckets=_SECONDS,
)
INFER_SECONDS = Histogram(
    "nymphd_infer_duration_seconds",
    "How long networks ran, batches counted once for each input.",
    ["model", "profile"],
    buckets=_SECONDS,
)
TRANSFER_SECONDS = Histogram(
    "nymphd_transfer_duration_seconds",
    "How long bytes took through the ring, other engines' failures included.",
    ["engine"],
    buckets=_SECONDS,
)
VERIFY_SECONDS = Histogram(
    "nymphd_verify_duration_seconds", "How long engines took to prove it.", ["engine"], buckets=_SECONDS
)
TOKENS = Counter("nymphd_infer_tokens", "Tokens that networks have seen.", ["model"])
FAULTS = Counter("nymphd_faults", "Faults, by who noticed.", ["source"])
ENGINE_VERIFIED = Gauge("nymphd_engine_verified", "Whether the engine proved itself.", ["engine"])
UPTIME = Gauge("nymphd_uptime_seconds", "Since nymphd started.")
TEMPERATURE = Gauge("nymphd_temperature_celsius", "Of the hottest sensor; NaN: there is none.")

# Of the driver's counters, those that go up and down.
_LEVELS = (
    "contexts",
    "rings",
    "pinned_pages",
    "allocated_pages",
    "card_bytes",
    "imported_bytes",
    "exports",
    "quarantined",
)


class _Driver(Collector):
    """The driver's counters, as the last status had them."""

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}

    def collect(self) -> Iterator[Metric]:
        for name, value in self.counters.items():
            family = GaugeMetricFamily if name in _LEVELS else CounterMetricFamily
            about = f"{name.replace('_', ' ')}, of /sys/class/misc/pcie_nymph/counters, or of the model"
            yield family(f"pcie_nymph_{name}", about, value=value)


_DRIVER = _Driver()
REGISTRY.register(_DRIVER)


def note_status(status: dict[str, Any]) -> None:
    """What /metrics has of what /status answers."""
    _DRIVER.counters = status["counters"]
    UPTIME.set(status["uptime_s"])
    TEMPERATURE.set(float("nan") if status["temp_c"] is None else status["temp_c"])
