# SPDX-License-Identifier: MIT
"""The object for an operation that Ring.submit() has queued."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pynymph.integers import seconds
from pynymph.owner import Owner
from pynymph.state import Completion

if TYPE_CHECKING:
    from pynymph.core import Core
    from pynymph.operation import Job


class Transfer(Owner):
    """Wait for, or cancel, an operation that Ring.submit() has queued. Any thread may use it."""

    _instead = "it is an operation of one ring; pass on its result(), a Completion"

    def __init__(self, core: Core, job: Job) -> None:
        self._core = core
        self._job = job

    def __repr__(self) -> str:
        state = "has ended" if self._job.outcome is not None else "in flight"
        return f"<pynymph.Transfer {self.cookie}, {self._job.operation.__name__}: {state}>"

    @property
    def cookie(self) -> int:
        """The number of the operation, which its Completion and its Entry in a Snapshot have, too."""
        return self._job.cookie

    @property
    def done(self) -> bool:
        """Whether the ring knows that the operation has ended. Reading this does not ask the driver."""
        return self._job.outcome is not None

    def result(self, timeout: float | None = None) -> Completion:
        """Wait until the operation has ended. A second call has the same result.

        Args:
            timeout: seconds to wait; None waits for ever. The operation goes on after the timeout.

        Returns:
            A Completion, as Ring.copy() returns it.

        Raises:
            RingTimeoutError: ETIMEDOUT, `timeout` seconds have passed.
            NymphError: the operation failed, as Ring.copy() raises it; `completion` is set if the driver ran
                it.
        """
        timeout = seconds(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._core.result(self._job, timeout, deadline)

    def cancel(self) -> bool:
        """Cancel the operation, which then ends with a CanceledError.

        A queued operation ends in its turn. A running one may still succeed.

        Returns:
            False if the operation has ended already.

        Raises:
            NymphError: the ring is closed, or another process's.
        """
        return self._core.cancel(self._job)
