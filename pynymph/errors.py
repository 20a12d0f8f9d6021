# SPDX-License-Identifier: MIT
"""Errors that pynymph raises, and messages for the errno values of each request.

Every error is a NymphError. Its message says what is wrong, and then what to do.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pynymph.state import Completion

Hints = dict[int, str]
"""Messages for the errors of a request, by errno."""

FORKED = "this ring belongs to the process that opened it; after fork, open a Ring of your own"
FULL = "the ring is full; collect completions, or open it with more entries"


class NymphError(OSError):
    """A request was refused, or an operation failed.

    Args:
        number: the errno.
        message: what is wrong, and then what to do.
        completion: the Completion of the operation, if the driver ran it.
    """

    def __init__(self, number: int, message: str, completion: Completion | None = None) -> None:
        super().__init__(number, message)
        self.completion = completion


class ArgumentError(NymphError, ValueError):
    """EINVAL: an argument can't be served. Nothing was moved."""


class ArgumentTypeError(ArgumentError, TypeError):
    """EINVAL: an argument has a type that can't be served. Nothing was moved."""


class ClosedError(NymphError):
    """EBADF: the ring is closed, or was closed while the operation was in flight."""


class ForkedError(NymphError):
    """EPERM: the ring belongs to another process."""


class FullError(NymphError):
    """ENOSPC: the ring has no room now."""


class RingTimeoutError(NymphError, TimeoutError):
    """ETIMEDOUT: the caller's timeout has passed."""


class CanceledError(NymphError):
    """ECANCELED: the operation was canceled, by cancel(), reset() or a link to one that failed."""


class VerifyError(NymphError):
    """EBADMSG: the destination is not what was sent; `completion` has both digests."""


_CLASSES: dict[int, type[NymphError]] = {
    errno.EINVAL: ArgumentError,
    errno.EBADF: ClosedError,
    errno.EPERM: ForkedError,
    errno.ENOSPC: FullError,
    errno.ETIMEDOUT: RingTimeoutError,
    errno.ECANCELED: CanceledError,
    errno.EBADMSG: VerifyError,
}


def error(number: int, message: str, completion: Completion | None = None) -> NymphError:
    """Make the error that belongs to `number`, an errno."""
    return _CLASSES.get(number, NymphError)(number, message, completion)


def refused(number: int, hints: Hints) -> NymphError:
    """Make the error of a request that the driver, or its model, refused with `number`, an errno."""
    known = {
        errno.EPERM: FORKED,
        errno.EINVAL: "there is no ring; call reset() to set it up again",
        errno.ENOMEM: "the kernel has no memory for this; free memory, or try again later",
        errno.ENOSYS: "the model needs /proc and process_vm_readv(); mount /proc, and allow the call",
    }
    return error(number, (known | hints).get(number, os.strerror(number)))


def memlock() -> str:
    """Name the limit of pinned memory, and its present value in bytes."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    allowed = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit} bytes"
    return f"RLIMIT_MEMLOCK ({allowed} for all pinned) or memory"


# --- messages for the errors of each request ----------------------------------------------------------------

_NO_MORE_FILES = "the process can have no more open files; close some, or raise ulimit -n"

EXPORT: Hints = {
    errno.EINVAL: "only memory of allocate() can be exported; copy the bytes to such memory",
    errno.ENOENT: "the buffer was freed by another thread; make another one",
    errno.EMFILE: _NO_MORE_FILES,
    errno.ENFILE: "the machine can have no more open files; close some, or raise fs.file-max",
}
BUFFER: Hints = {errno.EMFILE: "the ring can have no more buffers; free some"}
SUBMIT_DMA: Hints = {
    errno.EINVAL: "the descriptor is not well-formed, or its sides overlap; see docs/reference/requests.md",
    errno.EFAULT: (
        "part of the source is not mapped readable, or of the destination not writable; give mapped memory"
    ),
    errno.ENOSPC: "the ring is full; wait until some have ended, or set up a larger one",
    errno.EBADMSG: "the destination is not what was sent; if nothing else wrote to it, distrust the engine",
}

_KEY = "a logon key pcie_nymph:attest of 32 bytes in keyring .pcie_nymph"
_SIGNER = "an asymmetric key pcie_nymph:attest, a private RSA key, in keyring .pcie_nymph"
ATTEST: Hints = {
    errno.ENOKEY: f"the driver has no key to attest with; have root add {_KEY}, or {_SIGNER}",
    errno.EKEYREVOKED: f"the key to attest with was revoked; have root add {_KEY}",
    errno.EKEYEXPIRED: f"the key to attest with has expired; have root add {_KEY}",
    errno.EKEYREJECTED: f"the key to attest with has the wrong size; have root add {_KEY}",
}
SIGN: Hints = {
    errno.ENOKEY: f"the driver has no key to sign with; have root add {_SIGNER}",
    errno.EKEYREVOKED: f"the key to sign with was revoked; have root add {_SIGNER}",
    errno.EKEYEXPIRED: f"the key to sign with has expired; have root add {_SIGNER}",
    errno.EKEYREJECTED: (
        f"the key to sign with is no private RSA key of 2048, 3072 or 4096 bits; have root add {_SIGNER}"
    ),
    errno.EOPNOTSUPP: (
        "the kernel can't sign, as it has no RSA keys; attest with sign=False. The model needs "
        "cryptography: pip install 'pynymph[signatures]'"
    ),
    errno.E2BIG: "the driver is older, and can't sign; attest with sign=False, or install this release's",
}
CANNOT_SIGN = (errno.ENOKEY, errno.EOPNOTSUPP, errno.E2BIG)
"""Where a statement may be keyed instead."""


def open_hints(device: str, model: str) -> Hints:
    """Return messages for errors of opening `device`. `model`: the device name that needs no driver."""
    missing = (
        f"there is no {device}; load the module: sudo modprobe pcie_nymph, or insmod pcie_nymph.ko; or "
        f"try things without a driver: device={model!r}"
    )
    return {
        errno.ENOENT: missing,
        errno.ENXIO: missing,
        errno.ENODEV: missing,
        errno.EACCES: f"{device} may be used by group nymph, and you are not in it: "
        "sudo usermod -aG nymph $USER, then log in again",
        errno.EMFILE: _NO_MORE_FILES,
    }


def setup_hints(engine: str, engines: Iterable[str], entries: int) -> Hints:
    """Return messages for errors of setting up a ring.

    Args:
        engine: name of the engine.
        engines: names of all engines.
        entries: number of entries of the ring.
    """
    there_are = list(engines)
    absent = f"there is no engine {engine!r}; there are: {', '.join(there_are) or 'none'}"
    if engine in there_are:
        absent = (
            f"engine {engine!r} does not answer, or another driver uses it; try later, or use another engine"
        )
    return {
        errno.ENODEV: absent,
        errno.EIO: f"engine {engine!r} has failed and has not stopped yet; try later, or use another engine",
        errno.ENFILE: "there are too many rings; close some, or have root raise limits/max_rings",
        errno.EMFILE: "you have too many rings; close some, or have root raise limits/max_user_rings",
        errno.ENOMEM: (
            f"a ring of {entries} entries takes memory, and {memlock()} does not allow it; have "
            "fewer entries, close others, or raise it (ulimit -l)"
        ),
    }


def memory_hints(what: str) -> Hints:
    """Return messages for errors of allocating or pinning `what`."""
    return {
        errno.ENOMEM: f"this locks {what}, and {memlock()} does not allow it; raise it (ulimit -l)",
        errno.EFAULT: (
            "part of the buffer is not mapped readable, or not writable; pass read_only=True for a source"
        ),
        errno.EOPNOTSUPP: "a writable shared mapping of a file can't be pinned; use it unregistered",
    }


def card_hints(nbytes: int) -> Hints:
    """Return messages for errors of allocating `nbytes` on a card."""
    return {
        errno.ENOMEM: f"the card's memory has no {nbytes} contiguous bytes left; free some, or allocate less",
        errno.EDQUOT: (
            "you have as much of the card's memory as one user may; free some, or have root raise "
            "limits/max_user_card_percent"
        ),
        errno.EOPNOTSUPP: "the ring's engine is no channel of a card with memory; open a Ring on one",
        errno.ENODEV: "the card was removed; open a Ring on another engine",
    }


def import_hints(fd: int, max_length: int) -> Hints:
    """Return messages for errors of importing file `fd` as a dma-buf of at most `max_length` bytes."""
    return {
        errno.EBADF: f"there is no open file {fd}; give the descriptor of a dma-buf",
        errno.EINVAL: f"file {fd} is no dma-buf, or has more than {max_length} bytes; give another one",
        errno.EACCES: f"file {fd} is not open for reading and writing; for reading, give read_only=True",
    }


def eventfd_hints(fd: int | None) -> Hints:
    """Return messages for errors of Ring.notify(fd)."""
    return {
        errno.EINVAL: f"file {fd} is no eventfd; make one with os.eventfd(0)",
        errno.EBADF: f"there is no open file {fd}; give the descriptor of an open eventfd",
    }


def entry_hints(which: str) -> Hints:
    """Return messages for errors of an entry of a batch. `which`: its name, such as "entry 3"."""
    return {
        errno.EINVAL: f"{which} is not well-formed, or its sides overlap; see docs/reference/requests.md",
        errno.EFAULT: f"{which} is outside of its buffers, or writes to a read-only one; correct it",
        errno.ENOSPC: FULL,
    }


def operation_hints(kind: str, sides: Sequence[str], written: str | None, zero_copy: bool) -> Hints:
    """Return messages for errors of an operation.

    Args:
        kind: name of the operation, such as "Copy".
        sides: names of its buffers.
        written: name of the buffer that it writes, or None.
        zero_copy: whether it pins the buffers.
    """
    names = " and ".join(sides)
    needs = [f"{name} is not mapped {'writable' if name == written else 'readable'}" for name in sides]
    hints = {
        errno.EINVAL: (
            f"{names} overlap: pass separate buffers. If they do not, reset() was interrupted: call it again"
        ),
        errno.EFAULT: f"part of {', or of '.join(needs)}; give mapped memory",
        errno.EOPNOTSUPP: f"the driver does not serve this {kind}; query() lists what it serves",
        errno.ENOSPC: FULL,
        errno.ENOENT: "a buffer was freed by another thread; make another one",
    }
    if zero_copy:
        hints[errno.ENOMEM] = (
            f"zero_copy pins {names}, each huge page of them as a whole, and {memlock()} does not allow "
            "it; raise it (ulimit -l), take less at a time, or do it without zero_copy"
        )
        hints[errno.EOPNOTSUPP] = (
            "zero_copy can't write into a shared mapping of a file; do it without, or use other memory"
        )
    return hints


def failure(kind: str, sides: Sequence[str], completion: Completion) -> NymphError:
    """Make the error of an operation that failed.

    Args:
        kind: name of the operation, such as "Copy".
        sides: names of its buffers.
        completion: its Completion, with a status other than 0.

    Returns:
        The error, with `completion`.
    """
    number = -completion.status
    done = f"after {completion.bytes_done} bytes"
    if number == errno.EBADMSG and kind == "Compare":
        message = f"a and b differ, first at byte {completion.bytes_done}"
    elif number == errno.EBADMSG:
        assert completion.src_digest is not None and completion.dst_digest is not None
        message = (
            f"dst is not what was sent: BLAKE3 {completion.dst_digest.hex()} instead of "
            f"{completion.src_digest.hex()}; if nothing else wrote to the buffers, distrust the engine"
        )
    elif number == errno.EFAULT:
        gone = f"the memory of {' or '.join(sides)} went away {done}"
        message = f"{gone}; keep it mapped until the operation has ended"
    elif number == errno.ECANCELED:
        message = f"canceled {done}: by cancel(), or because the operation that it was linked to failed"
    else:
        message = f"{os.strerror(number)}, {done}"
    return error(number, message, completion)
