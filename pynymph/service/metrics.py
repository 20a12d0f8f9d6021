# SPDX-License-Identifier: MIT
"""The figures of /metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

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
