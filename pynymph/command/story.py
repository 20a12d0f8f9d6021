# SPDX-License-Identifier: MIT
"""Make a Perfetto trace of the driver's events: `pynymph trace`, and the benchmarks.

A ring has a track of what is queued and run, in lanes, because transfers overlap; its stages are slices
inside a transfer's, end to end. An engine has a track of what it moves. Arrows go from the client's call to
the transfer, to the engine's moves, and to the retirement.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackDescriptor, TrackEvent
from perfetto.trace_builder.proto_builder import TraceProtoBuilder

SEQUENCE = 1
THROUGHPUT_NS = 5_000_000
"""Throughput is of so long at a time."""
OPERATIONS = ("nop", "copy", "hash", "fill", "compare")
HASHED = 0x2 | 0x8  # NYMPH_DMA_FLAG_VERIFY_HASH, _DIGEST_ONLY
ORDER = ("pinned", "queued", "loaded", "mapped", "DMA", "copied", "hashed", "compared", "landed", "retired")


class TraceError(Exception):
    """The events do not make sense together."""


@dataclass
class Stage:
    name: str
    begin: int
    end: int


@dataclass
class Move:
    """What an engine was given at once: some bytes of one or more transfers."""

    engine: int
    begin: int
    transfers: list[TracedTransfer]
    mapped: bool = False


@dataclass
class TracedTransfer:
    ring: int
    cookie: int
    flow: int
    begin: int
    submit: dict[str, int] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    status: int = 0
    bytes_done: int = 0

    @property
    def name(self) -> str:
        return f"{OPERATIONS[self.submit['opcode']]} of {self.submit['length']} bytes"

    @property
    def end(self) -> int:
        return self.stages[-1].end

    def reach(self, name: str, ns: int) -> None:
        """The stage that began where the last one ended is over."""
        self.stages.append(Stage(name, self.stages[-1].end if self.stages else self.begin, ns))


class Story:
    """What became of every transfer, put together from the driver's events.

    Args:
        recorded: what recording.py or tools/benchmark/tracing.py has recorded.
        partial: whether rings were in use when that began or ended. Each is told of from the first moment on
            at which it had nothing else to do, and without what had not completed at the end.
    """

    def __init__(self, recorded: dict[str, Any], *, partial: bool = False) -> None:
        self._flows = count(1)
        self._partial = partial
        self._rings = set() if partial else {ring["ring"] for ring in recorded["rings"]}
        self._pinning: dict[tuple[int, int], int] = {}
        self._queued: dict[tuple[int, int], TracedTransfer] = {}
        self._running: dict[int, list[TracedTransfer]] = defaultdict(list)
        self._moving: dict[int, Move] = {}  # by thread
        self.transfers: list[TracedTransfer] = []
        self.moves: list[tuple[Move, int]] = []
        """And when they ended."""
        self.fallbacks: list[tuple[int, int]] = []
        """Of which ring, and when."""
        self.occupancy: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for event in recorded["events"]:
            if partial and event["event"] == "submit" and event["active"] == 1:
                self._rings.add(event["ring"])
            if event.get("ring") in self._rings or event["event"] == "mapped":
                getattr(self, f"_{event['event']}")(event)
            elif partial and event["event"] == "pin":
                self._pin(event)  # of what may be the first
        if partial:
            self._leave_out([*self._queued.values()])
        elif self._queued or any(self._running.values()):
            raise TraceError(f"{len(self._queued)} transfers were queued and never completed")

    def _leave_out(self, unfinished: list[TracedTransfer]) -> None:
        flows = {each.flow for each in unfinished}
        self.transfers = [each for each in self.transfers if each.flow not in flows]
        for move, _ in self.moves:
            move.transfers = [each for each in move.transfers if each.flow not in flows]
        self.moves = [(move, end) for move, end in self.moves if move.transfers]

    def _pin(self, event: dict[str, int]) -> None:
        self._pinning[event["ring"], event["cookie"]] = event["ns"]

    def _pinned(self, event: dict[str, int]) -> None:
        pass  # what follows until it is queued is the ring's lock

    def _submit(self, event: dict[str, int]) -> None:
        key = (event["ring"], event["cookie"])
        if key in self._queued:
            raise TraceError(f"ring {key[0]} has two entries with cookie {key[1]:#x}")
        begin = self._pinning.pop(key, event["ns"]) if self._partial else self._pinning.pop(key)
        transfer = TracedTransfer(*key, next(self._flows), begin, event)
        transfer.reach("pinned", event["ns"])
        self._queued[key] = transfer
        self.transfers.append(transfer)
        self._count(event, 1)

    def _start(self, event: dict[str, int]) -> None:
        transfer = self._queued[event["ring"], event["cookie"]]
        transfer.reach("queued", event["ns"])
        self._running[event["ring"]].append(transfer)

    def _move(self, event: dict[str, int]) -> None:
        move = Move(event["engine"], event["ns"], self._running[event["ring"]][: event["n"]])
        if len(move.transfers) != event["n"]:
            raise TraceError(f"ring {event['ring']} moves {event['n']} entries, and fewer are started")
        self._moving[event["thread"]] = move
        for transfer in move.transfers:
            transfer.reach("loaded", event["ns"])

    def _mapped(self, event: dict[str, int]) -> None:
        move = self._moving.get(event["thread"])
        if move is None:  # of somebody else's ring
            return
        for transfer in move.transfers:
            # an engine that takes less at a time maps again, behind what it moved
            transfer.reach("DMA" if move.mapped else "mapped", event["ns"])
        move.mapped = True

    def _moved(self, event: dict[str, int]) -> None:
        move = self._moving.pop(event["thread"], None)
        if move is None and self._partial:  # it began before
            return
        assert move is not None
        for transfer in move.transfers:
            transfer.reach("DMA" if move.mapped else "copied", event["ns"])
        self.moves.append((move, event["ns"]))
        if event["engine"] != move.engine:
            self.fallbacks.append((event["ring"], event["ns"]))

    def _landed(self, event: dict[str, int]) -> None:
        for transfer in self._running[event["ring"]][: event["n"]]:
            operation = OPERATIONS[transfer.submit["opcode"]]
            hashed = operation == "hash" or transfer.submit["flags"] & HASHED
            name = "hashed" if hashed else "compared" if operation == "compare" else "landed"
            transfer.reach(name, event["ns"])

    def _complete(self, event: dict[str, int]) -> None:
        transfer = self._queued.pop((event["ring"], event["cookie"]))
        # what was canceled was never started
        if self._running[event["ring"]][:1] == [transfer]:
            del self._running[event["ring"]][0]
            transfer.reach("retired", event["ns"])
        else:
            transfer.reach("queued", event["ns"])
        transfer.status, transfer.bytes_done = event["status"], event["bytes_done"]
        self._count(event, -1)

    def _count(self, event: dict[str, int], change: int) -> None:
        before = self.occupancy[event["ring"]]
        before.append((event["ns"], (before[-1][1] if before else 0) + change))


class _Lanes:
    """Tracks of one name: slices that overlap go to different ones, and the viewer shows them as one."""

    def __init__(self, writer: _Writer, name: str, parent: int) -> None:
        self._writer, self._name, self._parent = writer, name, parent
        self._free: list[tuple[int, int]] = []  # when, and which

    def take(self, begin: int, end: int) -> int:
        for i, (free, track) in enumerate(self._free):
            if free <= begin:
                self._free[i] = (end, track)
                return track
        track = self._writer.track(self._name, self._parent)
        self._free.append((end, track))
        return track


class _Writer:
    def __init__(self) -> None:
        self.builder = TraceProtoBuilder()
        self._tracks = count(1)

    def track(self, name: str, parent: int = 0, *, unit: str | None = None, pid: int | None = None) -> int:
        descriptor = self.builder.add_packet().track_descriptor
        descriptor.uuid = next(self._tracks)
        if pid is not None:
            descriptor.process.pid, descriptor.process.process_name = pid, name
        else:
            descriptor.name = name
            descriptor.parent_uuid = parent
        descriptor.child_ordering = TrackDescriptor.CHRONOLOGICAL
        if unit is not None:
            descriptor.counter.unit_name = unit
        return int(descriptor.uuid)

    def event(self, kind: int, track: int, ns: int) -> Any:
        packet = self.builder.add_packet()
        packet.timestamp, packet.trusted_packet_sequence_id = ns, SEQUENCE
        packet.track_event.type, packet.track_event.track_uuid = kind, track
        return packet.track_event

    def slice(self, track: int, name: str, begin: int, **notes: int | str) -> Any:
        """Its begin, for flows; call close() for its end once what is inside is there."""
        event = self.event(TrackEvent.TYPE_SLICE_BEGIN, track, begin)
        event.name = name
        self.note(event, **notes)
        return event

    def close(self, track: int, ns: int) -> None:
        self.event(TrackEvent.TYPE_SLICE_END, track, ns)

    @staticmethod
    def note(event: Any, **notes: int | str) -> None:
        for name, value in notes.items():
            annotation = event.debug_annotations.add()
            annotation.name = name
            if isinstance(value, str):
                annotation.string_value = value
            elif value < 0:
                annotation.int_value = value
            else:
                annotation.uint_value = value

    def counter(self, track: int, points: Iterable[tuple[int, int]]) -> None:
        for ns, value in points:
            self.event(TrackEvent.TYPE_COUNTER, track, ns).counter_value = value


def build(recorded: dict[str, Any], *, partial: bool = False) -> bytes:
    """Make the trace.

    Args:
        recorded: as for Story.
        partial: as for Story.

    Returns:
        The contents of a file for ui.perfetto.dev.

    Raises:
        TraceError: the events are not whole.
    """
    story, writer = Story(recorded, partial=partial), _Writer()
    engines = {int(id): name for id, name in recorded["engines"].items()}
    client = writer.track("Python client", pid=recorded["pid"]) if recorded["spans"] else 0
    driver = writer.track("pcie_nymph")

    flows = {(each.ring, each.cookie): each.flow for each in story.transfers}
    for ring in recorded["rings"]:
        if recorded["spans"]:
            track = writer.track(ring["name"], client)
            for span in (span for span in recorded["spans"] if span["ring"] == ring["ring"]):
                event = writer.slice(track, span["name"], span["begin_ns"])
                event.flow_ids.extend(flows[span["ring"], cookie] for cookie in span["cookies"])
                writer.close(track, span["end_ns"])

        name = f"ring {ring['ring']} on {ring['engine']}"
        of_ring = [each for each in story.transfers if each.ring == ring["ring"]]
        track = writer.track(name, driver)
        lanes = _Lanes(writer, "transfers", track)
        for transfer in of_ring:
            _write(writer, lanes.take(transfer.begin, transfer.end), transfer)
        for transfer in of_ring:
            if transfer.status:
                event = writer.event(TrackEvent.TYPE_INSTANT, track, transfer.end)
                event.name = errno.errorcode.get(-transfer.status, str(transfer.status))
                writer.note(event, cookie=transfer.cookie, bytes_done=transfer.bytes_done)
        for number, ns in story.fallbacks:
            if number == ring["ring"]:
                writer.event(TrackEvent.TYPE_INSTANT, track, ns).name = "the CPU in the engine's place"
        writer.counter(writer.track("occupancy", track, unit="entries"), story.occupancy[ring["ring"]])
        writer.counter(writer.track("throughput", track, unit="bytes/s"), _throughput(of_ring))

    for id, name in engines.items():
        moves = [(move, end) for move, end in story.moves if move.engine == id]
        track = writer.track(f"engine {name}", driver)
        lanes = _Lanes(writer, "moves", track)
        for move, end in moves:
            lane = lanes.take(move.begin, end)
            event = writer.slice(lane, f"{len(move.transfers)} at once", move.begin)
            event.flow_ids.extend(transfer.flow for transfer in move.transfers)
            writer.close(lane, end)
    return bytes(writer.builder.serialize())


def _write(writer: _Writer, track: int, transfer: TracedTransfer) -> None:
    event = writer.slice(
        track, transfer.name, transfer.begin, ring=transfer.ring, cookie=transfer.cookie,
        status=transfer.status, bytes_done=transfer.bytes_done, flags=transfer.submit["flags"],
    )  # fmt: skip
    event.flow_ids.append(transfer.flow)
    for stage in transfer.stages:
        event = writer.slice(track, stage.name, stage.begin)
        if stage is transfer.stages[-1]:
            event.terminating_flow_ids.append(transfer.flow)
        writer.close(track, stage.end)
    writer.close(track, transfer.end)


def _throughput(transfers: list[TracedTransfer]) -> Iterator[tuple[int, int]]:
    """Bytes per second that were done, in steps."""
    if not transfers:
        return
    steps: dict[int, int] = defaultdict(int)
    for each in transfers:
        steps[each.end // THROUGHPUT_NS] += each.bytes_done
    for step in range(min(steps), max(steps) + 2):
        yield step * THROUGHPUT_NS, steps.get(step, 0) * 1_000_000_000 // THROUGHPUT_NS
