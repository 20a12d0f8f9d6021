# SPDX-License-Identifier: MIT
"""Rescans of a model in use: bits that flip in memory are found, and named."""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pynymph import digest
from pynymph.errors import ArgumentError, NymphError
from pynymph.weights.live import Bytes, digests_as_found, nodes_of, state_of
from pynymph.weights.manifests import LEVEL, spans

log = logging.getLogger("pynymph.weights")
_UNIT = 512 << 20
"""Bytes of tensors that are read at once. A larger tensor is read alone."""


@dataclass(frozen=True)
class Fault:
    """Describe a tensor whose bytes changed while it was watched."""

    name: str
    ranges: tuple[tuple[int, int], ...]
    """Ranges of bytes that differ, (first, end), in units of 16 MiB; the whole tensor if not `lasting`."""
    time: float
    """Time at which the difference was found, as time.time() has it."""
    lasting: bool
    """Whether a second reading differed, too. If not, the memory was read wrongly once, and is right."""


class Watch:
    """Rescan the tensors of a model in a thread, until stop() is called. watch() makes one.

    A Watch is a collector of prometheus_client: `REGISTRY.register(watch)` exports its figures.
    """

    def __init__(self, model: Any, share: float, on_fault: Callable[[Fault], object] | None) -> None:
        self.faults: list[Fault] = []
        """All faults found, in order."""
        self.passes = 0
        """Number of complete passes over all tensors."""
        self.nbytes = 0
        """Number of bytes read."""
        self.busy_seconds = 0.0
        """Seconds in which tensors were read. The share of the time since the start is at most `share`."""
        self.error: BaseException | None = None
        """What ended the thread before stop() did, or None."""
        self._model, self._share, self._on_fault = model, share, on_fault
        self._stopping = threading.Event()
        self._mutex = threading.Lock()
        self._known: dict[str, bytes | None] = {}
        """By name of a tensor that is wrong: its digest as told; None if it vanished."""
        self._streams: dict[Any, Any] = {}
        self._take()
        self._thread = threading.Thread(target=self._run, name="pynymph.weights.watch", daemon=True)
        self._thread.start()

    def _take(self) -> None:
        self._live = dict(state_of(self._model))
        self._right: dict[str, tuple[bytes, bytes, int]] = {}
        """By name: digest, nodes, number of bytes."""
        for name, each in self._live.items():
            nodes = nodes_of(each)
            self._right[name] = digest.root(nodes), nodes, each.nbytes
            with self._aside(each):
                pass  # makes the stream
        self._known.clear()

    def renew(self, update: Callable[[], object] | None = None) -> None:
        """Accept the tensors as they are now, for example after a weight update.

        Args:
            update: called first, while nothing is read, so that an update under way is no fault.

        Raises:
            ArgumentError: EINVAL, a tensor can't be read.
            NymphError: there is no GPU, or it failed.
        """
        with self._mutex:
            self._live.clear()  # which kept the tensors that an update may replace
            if update is not None:
                update()
            self._take()

    def stop(self) -> None:
        """Stop the thread, and wait for its end. Idempotent.

        Raises:
            NymphError: EIO, the thread had ended before, and tensors were not watched since.
        """
        self._stopping.set()
        self._thread.join()
        if self.error is not None:
            raise NymphError(errno.EIO, f"the watch had ended: {self.error}; start it again") from self.error

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        if error is None:
            self.stop()

    def collect(self) -> Iterator[Any]:
        """Yield the figures for prometheus_client."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        yield GaugeMetricFamily(
            "pynymph_weights_wrong", "Tensors whose memory is not what it was", value=len(self._known)
        )
        running = self._thread.is_alive()
        yield GaugeMetricFamily(
            "pynymph_weights_watching", "1 while tensors are watched", value=float(running)
        )
        yield CounterMetricFamily("pynymph_weights_faults", "Faults found", value=len(self.faults))
        yield CounterMetricFamily(
            "pynymph_weights_passes", "Complete passes over all tensors", value=self.passes
        )
        yield CounterMetricFamily("pynymph_weights_read_bytes", "Bytes read", value=self.nbytes)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._pass()
        except BaseException as error:
            self.error = error
            log.exception("the watch of the weights ended")

    def _pass(self) -> None:
        with self._mutex:
            self._live = dict(state_of(self._model))
            units = self._units()
        for names in units:
            began = time.perf_counter()
            with self._mutex:
                faults = self._scan(names)
            took = time.perf_counter() - began
            self.busy_seconds += took
            for fault in faults:
                self._tell(fault)
            if self._stopping.wait(took * (1 / self._share - 1)):
                return
        self.passes += 1
        if not units:
            self._stopping.wait(1)

    def _units(self) -> list[list[str]]:
        """Group the tensors: one launch for each takes long, and one for all would keep the GPU busy."""
        units: list[list[str]] = []
        room = 0
        for name, (_, _, nbytes) in self._right.items():
            if nbytes > room:
                units.append([])
                room = _UNIT
            units[-1].append(name)
            room -= nbytes
        return units

    def _scan(self, names: list[str]) -> list[Fault]:
        # renew() may have found other tensors since
        here = [name for name in names if name in self._right]
        live = {name: self._live[name] for name in here if name in self._live}
        self.nbytes += sum(each.nbytes for each in live.values())
        with self._aside(*live.values()):
            _, made = digests_as_found(live.items())
            return [fault for name in here if (fault := self._judge(name, made.get(name)))]

    def _judge(self, name: str, made: bytes | None) -> Fault | None:
        right, right_nodes, nbytes = self._right[name]
        if made == right:
            self._known.pop(name, None)
            return None
        if name in self._known and self._known[name] == made:
            return None  # told before
        each = self._live.get(name)
        nodes = b"" if each is None else nodes_of(each)
        lasting = nodes != right_nodes
        if lasting:
            self._known[name] = made
        ranges = [(0, nbytes)]
        if lasting and each is not None and each.nbytes == nbytes:
            ranges = list(digest.differing(nodes, right_nodes, LEVEL, nbytes))
        return Fault(name, tuple(ranges), time.time(), lasting)

    def _aside(self, *tensors: Bytes) -> contextlib.AbstractContextManager[Any]:
        """Enter a stream that gives way to all others, if the tensors are torch's on one GPU."""
        torch = sys.modules.get("torch")
        if torch is None or not any(isinstance(each.device, torch.Tensor) for each in tensors):
            return contextlib.nullcontext()
        where = next(each.device.device for each in tensors if isinstance(each.device, torch.Tensor))
        if where not in self._streams:
            lowest, _ = torch.cuda.Stream.priority_range()
            self._streams[where] = torch.cuda.Stream(where, priority=lowest)
        entered: contextlib.AbstractContextManager[Any] = torch.cuda.stream(self._streams[where])
        return entered

    def _tell(self, fault: Fault) -> None:
        self.faults.append(fault)
        kind = "differs" if fault.lasting else "was read wrongly once, and is right now"
        log.error("weights: %s %s%s", fault.name, kind, spans(fault.ranges))
        if self._on_fault is not None:
            self._on_fault(fault)


def watch(model: Any, *, share: float = 0.001, on_fault: Callable[[Fault], object] | None = None) -> Watch:
    """Rescan the tensors of a model while it is in use, and tell which of them change.

    >>> with weights.watch(model, share=0.001, on_fault=print) as watch:
    ...     serve(model)
    ...     watch.renew(update_the_weights)

    Each fault is logged as an error of the logger `pynymph.weights`, too. A tensor that stays wrong is told
    once, until its bytes change again.

    Args:
        model: a torch module (its parameters and persistent buffers), or tensors by name. Their bytes are
            right now.
        share: largest share of the time in which tensors are read, above 0, at most 1. With 0.001, an H200
            that is idle otherwise reads an 8B model in bf16 every 50 s.
        on_fault: called with each Fault, in the thread of the watch. If it raises, the watch ends.

    Returns:
        A running Watch.

    Raises:
        ArgumentError: EINVAL, there is no such share, or a tensor can't be read.
        NymphError: there is no GPU, or it failed.
    """
    if not 0 < share <= 1:
        raise ArgumentError(errno.EINVAL, f"share is {share}; give a number above 0, and at most 1")
    return Watch(model, share, on_fault)
