# SPDX-License-Identifier: MIT
"""What pynymph raises: NymphError and its children. `errno` says what is wrong, the message what to do."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pynymph.operation import Completion


class NymphError(OSError):
    """A request was refused, or a transfer failed; then `completion` says how far it came."""

    def __init__(self, number: int, message: str, completion: Completion | None = None) -> None:
        super().__init__(number, message)
        self.completion = completion


class ArgumentError(NymphError, ValueError):
    """EINVAL: an argument can't be served. Nothing was moved."""


class ClosedError(NymphError):
    """EBADF: the ring is closed, or was closed while a transfer was in flight."""


class ForkedError(NymphError):
    """EPERM: the ring belongs to another process."""


class FullError(NymphError):
    """ENOSPC: the ring has no room now."""


class RingTimeoutError(NymphError, TimeoutError):
    """ETIMEDOUT: the caller's timeout came first."""


class CanceledError(NymphError):
    """ECANCELED: reset() came before the transfer ended."""


class VerifyError(NymphError):
    """EBADMSG: the destination is not what was sent; both digests are in `completion`."""


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
    """The member of the family that `number`, an errno, belongs to."""
    return _CLASSES.get(number, NymphError)(number, message, completion)
