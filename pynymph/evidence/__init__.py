# SPDX-License-Identifier: MIT
"""Evidence that outlives a transfer: a small file that tells what was copied where, with what result.

>>> log = evidence.Log(by="bench 3")
>>> with pynymph.Ring(evidence=log) as ring:
...     done = ring.copy(src=data, dst=buffer, verify=True)
...     log.add(done, source="weights.bin", target="card 0")
...     log.save("evidence.cbor")

`pynymph verify evidence.cbor` checks it, without a driver; evidence.verify() does so from Python.
docs/how-to/evidence.md says what it proves, and what not. The package needs the extra `pynymph[evidence]`.
"""

from pynymph.evidence.attesting import Quoted, Statement
from pynymph.evidence.checking import (
    Trust,
    check,
    check_file,
    check_slice,
    read_evidence,
    sign,
    summary,
    verify,
    with_quote,
)
from pynymph.evidence.form import Attested, Evidence, EvidenceError, Part, Quote, Transfer
from pynymph.evidence.recording import Log
from pynymph.evidence.slices import Slice

__all__ = [
    "Attested",
    "Evidence",
    "EvidenceError",
    "Log",
    "Part",
    "Quote",
    "Quoted",
    "Slice",
    "Statement",
    "Transfer",
    "Trust",
    "check",
    "check_file",
    "check_slice",
    "read_evidence",
    "sign",
    "summary",
    "verify",
    "with_quote",
]
