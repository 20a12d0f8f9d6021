# SPDX-License-Identifier: MIT
"""Meters for /metrics that the code updates when something happens."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)

FAULT_SOURCES = ("infer", "verify", "model", "driver")
FAULT_KINDS = ("mismatch", "timeout", "gone", "failed", "refused")
INFER_FAILURES = ("unknown_model", "model", "input", "engine", "deadline", "cancelled", "nymphd")

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
QUEUE_SECONDS = Histogram(
    "nymphd_infer_queue_duration_seconds",
    "How long inputs waited for the network, behind the ring.",
    ["model", "profile"],
    buckets=_SECONDS,
)
BATCH_INPUTS = Histogram(
    "nymphd_infer_batch_inputs",
    "How many inputs ran at once, batches counted once for each input.",
    ["model", "profile"],
    buckets=(1, 2, 4, 8, 16, 32),
)
INFER_FAILED = Counter("nymphd_infer_failed", "Inferences that failed, by what was wrong.", ["cause"])
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
TURNED_AWAY = Counter(
    "nymphd_connections_turned_away",
    "Connections of strangers that were closed to make room: waiting for TLS, or with it.",
    ["kind"],
)
FAULTS = Counter("nymphd_faults", "Faults, by who noticed and what they were.", ["source", "kind"])

# From the start on, so that the first one is an increase.
for _kind in ("waiting", "stranger"):
    TURNED_AWAY.labels(_kind)
for _source in FAULT_SOURCES:
    for _kind in FAULT_KINDS:
        FAULTS.labels(_source, _kind)
for _cause in INFER_FAILURES:
    INFER_FAILED.labels(_cause)
