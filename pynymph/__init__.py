# SPDX-License-Identifier: MIT
"""DMA rings from Python, and proof of what they did.

>>> with pynymph.Ring() as ring:
...     done = ring.copy(src=data, dst=buffer, verify=True)
"""

from pynymph import digest
from pynymph.errors import (
    ArgumentError,
    CanceledError,
    ClosedError,
    ForkedError,
    FullError,
    NymphError,
    RingTimeoutError,
    VerifyError,
)
from pynymph.ring import Completion, Copy, Entry, Query, Ring, Snapshot, Status, query

__all__ = [
    "ArgumentError",
    "CanceledError",
    "ClosedError",
    "Completion",
    "Copy",
    "Entry",
    "ForkedError",
    "FullError",
    "NymphError",
    "Query",
    "Ring",
    "RingTimeoutError",
    "Snapshot",
    "Status",
    "VerifyError",
    "digest",
    "query",
]
