# SPDX-License-Identifier: MIT
"""Values of /metrics that are read at each request; nymphd.meters has the others."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import onnxruntime
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from nymphd.daemon import Nymphd

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
_QUANTILES = {
    "0.5": "latency_p50_ns",
    "0.95": "latency_p95_ns",
    "0.99": "latency_p99_ns",
    "0.999": "latency_p999_ns",
}


def watch(nymphd: Nymphd, connections: Callable[[], Mapping[str, int]]) -> None:
    """Add the values of `nymphd` to /metrics. `connections`: returns the number of connections by kind."""
    REGISTRY.register(_Nymphd(nymphd, connections))


class _Nymphd(Collector):
    """Collect values that are read at each request."""

    def __init__(self, nymphd: Nymphd, connections: Callable[[], Mapping[str, int]]) -> None:
        self._nymphd = nymphd
        self._connections = connections

    def describe(self) -> Iterator[Metric]:
        return iter(())  # there is nothing to ask the driver for yet

    def collect(self) -> Iterator[Metric]:
        nymphd = self._nymphd
        status = nymphd.watch.status()
        yield from self._service(status)
        yield _gauge("nymphd_connections", "Open connections.", ["kind"], self._connections())
        yield _gauge("nymphd_event_listeners", "WebSockets that get events.", value=nymphd.events.listeners)
        yield _gauge("nymphd_infer_in_flight", "Inferences under way.", value=status["infer"]["in_flight"])
        ready = {model.name: model.ready for model in nymphd.models.states()}
        yield _gauge("nymphd_model_ready", "Whether the model can be used.", ["model"], ready)
        yield from _engines(status["engines"])
        yield from _rings(nymphd.watch.lasting_rings())
        for name, value in status["counters"].items():
            family = GaugeMetricFamily if name in _LEVELS else CounterMetricFamily
            about = f"{name.replace('_', ' ')}, of /sys/class/misc/pcie_nymph/counters, or of the model"
            yield family(f"pcie_nymph_{name}", about, value=value)

    def _service(self, status: dict[str, Any]) -> Iterator[Metric]:
        driver = status["driver"]
        build = {
            "version": status["version"],
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
            "driver": driver["name"],
            "driver_version": str(driver["version"]),
            "blake3": driver["blake3"] or "",
        }
        yield InfoMetricFamily("nymphd_build", "What runs.", value=build)
        yield _gauge("nymphd_uptime_seconds", "Since nymphd started.", value=status["uptime_s"])
        about = "Of the hottest sensor; NaN: there is none."
        temp_c = math.nan if status["temp_c"] is None else status["temp_c"]
        yield _gauge("nymphd_temperature_celsius", about, value=temp_c)
        found = self._nymphd.readiness()
        yield _gauge("nymphd_ready", "Whether /readyz answers 200.", value=found.ready)
        checks = {name: check.ok for name, check in found.checks.items()}
        yield _gauge("nymphd_ready_check", "Whether that part of /readyz is well.", ["check"], checks)


def _gauge(
    name: str,
    about: str,
    labels: list[str] | None = None,
    values: Mapping[str, float] | None = None,
    value: float | None = None,
) -> Metric:
    gauge = GaugeMetricFamily(name, about, value=value, labels=labels)
    for label, each in (values or {}).items():
        gauge.add_metric([label], each)
    return gauge


def _engines(engines: list[dict[str, Any]]) -> Iterator[Metric]:
    known = {each["name"]: each for each in engines}
    there = {name: each["present"] for name, each in known.items()}
    yield _gauge("nymphd_engine_present", "Whether the driver lists the engine.", ["engine"], there)
    tried = {name: each for name, each in known.items() if each["verified"] is not None}
    proved = {name: each["verified"] for name, each in tried.items()}
    yield _gauge("nymphd_engine_verified", "Whether the engine proved itself last.", ["engine"], proved)
    times = {
        name: datetime.fromisoformat(each["verified_at"]).timestamp()
        for name, each in tried.items()
        if each["verified_at"] is not None
    }
    about = "When the engine was last asked to prove itself."
    yield _gauge("nymphd_engine_checked_timestamp_seconds", about, ["engine"], times)


def _rings(rings: list[dict[str, Any]]) -> Iterator[Metric]:
    labels = ["ring", "engine", "owner"]
    gauges = {
        name: GaugeMetricFamily(f"pcie_nymph_ring_{name}", about, labels=labels)
        for name, about in (
            ("entries", "How many entries the ring has."),
            ("active", "Entries that are queued or run."),
            ("unread", "Completion records that nobody has collected."),
        )
    }
    counters = {
        "dma_bytes": CounterMetricFamily("pcie_nymph_ring_bytes", "Bytes that arrived.", labels=labels),
        "errors": CounterMetricFamily("pcie_nymph_ring_errors", "Operations that failed.", labels=labels),
    }
    name = "pcie_nymph_ring_latency_seconds"
    latency = Metric(name, "What that share of all the ring's operations did not exceed.", "summary")
    for ring in rings:
        values = [ring["name"], ring["engine"] or "", "nymphd" if ring["mine"] else str(ring["owner"])]
        for field, family in (gauges | counters).items():
            family.add_metric(values, ring[field])
        for share, field in _QUANTILES.items():
            of = dict(zip(labels, values, strict=True)) | {"quantile": share}
            latency.add_sample(name, of, ring[field] / 1e9)
    yield from (*gauges.values(), *counters.values(), latency)
