# SPDX-License-Identifier: MIT
"""DMA rings from Python, and proof of what they did.

>>> with pynymph.Ring() as ring:
...     done = ring.copy(src=data, dst=buffer, verify=True)
"""

from pynymph import digest, transcript
from pynymph.aio import AsyncRing
from pynymph.buffer import RingBuffer
from pynymph.errors import (
    ArgumentError,
    ArgumentTypeError,
    CanceledError,
    ClosedError,
    ForkedError,
    FullError,
    NymphError,
    RingTimeoutError,
    VerifyError,
)
from pynymph.openfile import query
from pynymph.operation import Compare, Copy, Fill, Hash, Nop, Operation
from pynymph.ring import Ring
from pynymph.state import Attestation, Completion, Entry, Latency, Query, Snapshot, Status
from pynymph.topology import PciFunction, PciLink, topology
from pynymph.transfer import Transfer

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "AsyncRing",
    "Attestation",
    "CanceledError",
    "ClosedError",
    "Compare",
    "Completion",
    "Copy",
    "Entry",
    "Fill",
    "ForkedError",
    "FullError",
    "Hash",
    "Latency",
    "Nop",
    "NymphError",
    "Operation",
    "PciFunction",
    "PciLink",
    "Query",
    "Ring",
    "RingBuffer",
    "RingTimeoutError",
    "Snapshot",
    "Status",
    "Transfer",
    "VerifyError",
    "digest",
    "query",
    "topology",
    "transcript",
]
