# SPDX-License-Identifier: MIT
"""What /metrics has for an operator, and that Prometheus' own programs take it."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from nymphd.meters import FAULT_KINDS, FAULT_SOURCES, INFER_FAILURES
from nymphd_process import Service
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample
from prometheus_programs import promtool

import nymphd

OPENMETRICS = "application/openmetrics-text; version=1.0.0, text/plain; version=0.0.4; q=0.5"


def samples(service: Service) -> dict[str, list[Sample]]:
    with service.client() as client:
        families = parse_text(client.get("/metrics").text)
        found: dict[str, list[Sample]] = {}
        for sample in (sample for family in families for sample in family.samples):
            found.setdefault(sample.name, []).append(sample)
    return found


def value(found: dict[str, list[Sample]], name: str, **labels: str) -> float:
    (wanted,) = (each.value for each in found[name] if labels.items() <= each.labels.items())
    return wanted


def test_openmetrics_is_sent_on_request(service: Service) -> None:
    with service.client() as client:
        plain = client.get("/metrics")
        strict = client.get("/metrics", headers={"Accept": OPENMETRICS})
    assert plain.headers["content-type"].startswith("text/plain")
    assert strict.headers["content-type"].startswith("application/openmetrics-text")
    assert strict.text.endswith("# EOF\n")
    names = {family.name for family in parse_openmetrics(strict.text)}
    assert {"nymphd_faults", "nymphd_build", "pcie_nymph_bytes"} <= names


def test_promtool_accepts_the_metrics(service: Service, tmp_path: Path) -> None:
    with service.client() as client:
        while b"pcie_nymph_ring_latency" not in (text := client.get("/metrics").content):
            time.sleep(0.2)  # until the ring has been there for a while
    done = subprocess.run([promtool(), "check", "metrics"], input=text, capture_output=True)
    assert (done.stderr, done.stdout, done.returncode) == (b"", b"", 0)


def test_metrics_report_version_and_readiness(service: Service) -> None:
    found = samples(service)
    (build,) = found["nymphd_build_info"]
    assert (build.labels["version"], build.labels["driver"]) == (nymphd.__version__, "model")
    assert value(found, "nymphd_ready") == 1
    assert value(found, "nymphd_ready_check", check="models") == 1
    assert value(found, "nymphd_model_ready", model="magika") == 1
    assert value(found, "nymphd_engine_present", engine="model") == 1
    assert value(found, "nymphd_connections", kind="http") >= 1
    assert value(found, "nymphd_connections", kind="websocket") == value(found, "nymphd_event_listeners")


def test_every_fault_counter_starts_at_zero(start_service: Callable[..., Service]) -> None:
    found = samples(start_service())
    kinds = {(each.labels["source"], each.labels["kind"]) for each in found["nymphd_faults_total"]}
    assert kinds == {(source, kind) for source in FAULT_SOURCES for kind in FAULT_KINDS}
    assert {each.labels["cause"] for each in found["nymphd_infer_failed_total"]} == set(INFER_FAILURES)
    for name in ("nymphd_faults_total", "nymphd_infer_failed_total"):
        assert {each.value for each in found[name]} == {0}


def test_inferences_are_counted_by_model_and_profile(service: Service) -> None:
    before = samples(service)
    with service.client() as client:
        for model in ("magika", "nothing"):
            client.post("/infer", json={"model": model, "input": "aW1wb3J0IG9zCg==", "profile": "efficient"})
    after = samples(service)
    labels = {"model": "magika", "profile": "efficient"}
    for name in ("nymphd_infer_queue_duration_seconds_count", "nymphd_infer_batch_inputs_count"):
        earlier = sum(each.value for each in before.get(name, ()) if each.labels == labels)
        assert value(after, name, **labels) == earlier + 1
    failed = "nymphd_infer_failed_total"
    unknown = {"cause": "unknown_model"}
    assert value(after, failed, **unknown) == value(before, failed, **unknown) + 1
    assert value(after, "nymphd_infer_in_flight") == 0


def test_only_lasting_rings_have_metrics(service: Service) -> None:
    with service.client() as client:
        while "pcie_nymph_ring_entries{" not in client.get("/metrics").text:
            time.sleep(0.2)
        client.get("/fabric/verify")
    found = samples(service)
    (entries,) = found["pcie_nymph_ring_entries"]
    assert entries.labels == {"ring": "ring0", "engine": "model", "owner": "nymphd"}
    quantiles = [each.labels["quantile"] for each in found["pcie_nymph_ring_latency_seconds"]]
    assert quantiles == ["0.5", "0.95", "0.99", "0.999"]
    assert value(found, "pcie_nymph_ring_bytes_total", ring="ring0") > 0
