# SPDX-License-Identifier: MIT
"""Records of what a ring retires, and the evidence that they make."""

from __future__ import annotations

import errno
import os
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import pynymph
from pynymph import transcript
from pynymph.errors import ArgumentError, NymphError
from pynymph.evidence.form import MOST_RECORDS, MOST_TEXT, RECORD, Attested, Evidence, Part, Transfer
from pynymph.integers import UINT64_MAX, whole
from pynymph.owner import Owner
from pynymph.state import Completion
from pynymph.weights.manifests import replace_file

if TYPE_CHECKING:
    from pynymph.ring import Ring

_ENTRY_BYTES, _RECORD_BYTES = 64, 128


class Log(Owner):
    """Record all that one ring retires: 128 bytes of memory for each operation.

    >>> log = evidence.Log(by="bench 3")
    >>> with pynymph.Ring(evidence=log) as ring:
    ...     done = ring.copy(src=data, dst=buffer, verify=True)
    ...     log.add(done, source="weights.bin", target="card 0")
    ...     log.save("evidence.cbor")

    The evidence is of all operations since the ring was opened, or was reset. Those that add() has named are
    its transfers; the others are there without names.

    Args:
        by: who makes the evidence, in any words; at most 4096 bytes of UTF-8.

    Raises:
        ArgumentError: EINVAL, `by` is too long.
    """

    _instead = "it records one ring; make another Log"

    def __init__(self, by: str = "") -> None:
        self._by = _checked(by, "by")
        self._ring: weakref.ref[Ring] | None = None
        self._waiting: deque[bytes] = deque()  # entries whose records have not come
        self._records = bytearray()
        self._numbers: dict[int, int] = {}
        self._stray = ""
        self._transfers: list[Transfer] = []

    def add(
        self,
        done: Completion,
        *,
        source: str,
        target: str,
        time_ns: int | None = None,
    ) -> None:
        """Name the source and the target of an operation of the ring that has ended.

        Args:
            done: its Completion; that of an error is `error.completion`.
            source: name of the source, in any words; at most 4096 bytes of UTF-8.
            target: name of the target, as `source`.
            time_ns: when it ended, in ns since 1970; None leaves it out.

        Raises:
            ArgumentError: EINVAL, a name is too long, `time_ns` is no whole number, or this Log has no record
                of it.
        """
        if time_ns is not None:
            time_ns = whole(time_ns, "time_ns", 0, UINT64_MAX)
        part = self.part(0, done)
        length = RECORD.unpack_from(self._records, RECORD.size * part.record)[5]
        self.add_transfer(
            Transfer(source, target, length, done.status, done.src_digest, done.dst_digest,
                     (part,), (), time_ns)
        )  # fmt: skip

    def add_transfer(self, transfer: Transfer) -> None:
        """Add a transfer of several operations.

        Args:
            transfer: the transfer; part() makes its parts.

        Raises:
            ArgumentError: EINVAL, a name of it is too long.
        """
        _checked(transfer.source, "source")
        _checked(transfer.target, "target")
        self._transfers.append(transfer)

    def part(self, at: int, done: Completion) -> Part:
        """Name the record of an operation as a part of a Transfer.

        Args:
            at: offset in the file of the operation's first byte.
            done: its Completion.

        Raises:
            ArgumentError: EINVAL, there is none: it is of another ring, or from before a reset; or `at` is no
                whole number.
        """
        try:
            return Part(whole(at, "at", 0, UINT64_MAX), self._numbers[done.cookie])
        except KeyError:
            message = "this Log has no record of it; give a completion of its ring, from after the last reset"
            raise ArgumentError(errno.EINVAL, message) from None

    def evidence(self, nonce: bytes | None = None) -> Evidence:
        """Make evidence of all that the ring has retired until now.

        Args:
            nonce: 1 to 64 bytes that the verifier has chosen: the driver attests the evidence in answer to
                them, with a signature if the administrator has given it a key that signs. None: nobody
                attests.

        Raises:
            ArgumentError: EINVAL, the nonce has another length, or the Log has no ring.
            NymphError: ENOKEY, the driver has no key to attest with. EBUSY, operations ended meanwhile.
                EPROTO, the records here are not those that the driver has retired. EFBIG, there are too many.
        """
        if nonce is not None and not 1 <= len(nonce) <= 64:
            raise ArgumentError(errno.EINVAL, f"a nonce has 1 to 64 bytes, and this one {len(nonce)}")
        ring = None if self._ring is None else self._ring()
        if ring is None:
            raise ArgumentError(errno.EINVAL, "this Log has no ring; open one with Ring(evidence=log)")
        snapshot = ring.snapshot()
        with ring._core.lock():
            ring._core.reap()
            records = bytes(self._records[: RECORD.size * snapshot.transcript_count])
            why, transfers = self._stray, tuple(self._transfers)
        here = len(records) // RECORD.size
        if here < snapshot.transcript_count:
            why = f"{snapshot.transcript_count} entries have ended, and {here} of them left a record here"
        elif not why and transcript.digest(records) != snapshot.transcript:
            why = "the transcript of the records is not that of the driver"
        if why:
            raise NymphError(errno.EPROTO, f"no evidence can be made: {why}; open another ring")
        if here > MOST_RECORDS:
            message = f"{here} operations are too many for evidence; reset the ring before there are more"
            raise NymphError(errno.EFBIG, message)
        named = max((part.record for each in transfers for part in (*each.sent, *each.found)), default=-1)
        if named >= here:
            raise NymphError(errno.EBUSY, "an operation ended just now; make the evidence again")
        made = Evidence(
            transcript=snapshot.transcript,
            count=snapshot.transcript_count,
            transcript_id=snapshot.transcript_id,
            records=records,
            transfers=transfers,
            by=self._by,
            tool=f"pynymph {pynymph.__version__}",
            device=ring._core.device,
            engines=_engines(records, ring._core.engines),
        )
        if nonce is None:
            return made
        attestation = ring.attest(made.nonce(nonce))
        attested = Attested(nonce, attestation.statement, attestation.digest, signature=attestation.signature)
        return replace(made, attested=attested)

    def save(self, path: str | os.PathLike[str], nonce: bytes | None = None) -> Evidence:
        """Write evidence() to a file, in place of an older one.

        Args:
            path: path of the file.
            nonce: as for evidence().

        Returns:
            The evidence.

        Raises:
            ArgumentError: as evidence() raises it.
            NymphError: as evidence() raises it; or the file can't be written.
        """
        made = self.evidence(nonce)
        replace_file(path, made.to_bytes())
        return made

    # Only the ring calls what follows, with its mutex held.

    def _attach(self, ring: Ring) -> None:
        if self._ring is not None:
            raise ArgumentError(errno.EINVAL, "this Log has a ring already; make another Log")
        self._ring = weakref.ref(ring)

    def _submitted(self, entries: bytes) -> None:
        """Note entries that the driver has accepted, in their order."""
        self._waiting.extend(entries[at : at + _ENTRY_BYTES] for at in range(0, len(entries), _ENTRY_BYTES))

    def _retired(self, records: bytes) -> None:
        """Note records that the driver has given, in their order: that of their entries."""
        for at in range(0, len(records), _RECORD_BYTES):
            record = records[at : at + _RECORD_BYTES]
            cookie = record[:8]
            if not self._waiting or self._waiting[0][40:48] != cookie:
                self._stray = self._stray or "a record came of an entry that nobody submitted here"
                return
            self._numbers[int.from_bytes(cookie, "little")] = len(self._records) // RECORD.size
            self._records += transcript.pack(self._waiting.popleft(), record)

    def _restart(self) -> None:
        """Forget everything: the ring was reset, and its transcript begins again."""
        self._waiting.clear()
        self._records.clear()
        self._numbers.clear()
        self._transfers.clear()
        self._stray = ""


def _engines(records: bytes, names: Mapping[int, str]) -> dict[str, int]:
    """Return the numbers of the engines that records have, by name."""
    used = {record[4] for record in RECORD.iter_unpack(records)} - {0}
    return {names.get(number, f"engine {number}"): number for number in used}


def _checked(name: str, what: str) -> str:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ArgumentError(errno.EINVAL, f"{what} is no text in UTF-8; give other words") from None
    if size > MOST_TEXT:
        raise ArgumentError(errno.EINVAL, f"{what} has {size} bytes, and {MOST_TEXT} are the most; be brief")
    return name
