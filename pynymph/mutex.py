# SPDX-License-Identifier: MIT
"""A lock that Ctrl-C can't leave locked."""

import _thread
from typing import Literal, NoReturn, SupportsIndex


class Mutex(_thread.RLock):  # type: ignore[misc]  # final for typeshed, and not for Python
    """What `with` takes and gives back, also if a signal's handler raises.

    From Python 3.14 on, a handler can run when __enter__ of a lock has ended and the block has not begun.
    """

    def __enter__(self) -> Literal[True]:  # type: ignore[override]
        try:
            self.acquire()
            return True
        except BaseException:
            if self.is_mine:
                self.release()
            raise

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("cannot copy or pickle a Mutex: make another one")

    @property
    def is_mine(self) -> bool:
        """Whether this thread has it."""
        return bool(self._is_owned())  # type: ignore[attr-defined]
