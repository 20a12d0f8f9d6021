# SPDX-License-Identifier: MIT
"""Makes a Perfetto trace of what tracing.py recorded, and checks one against the rings' records.

A ring has a track of what is queued and run, in lanes, because transfers overlap; its stages are slices
inside a transfer's, end to end. An engine has a track of what it moves. Arrows go from the client's call to
the transfer, to the engine's moves, and to the retirement.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
    Trace,
    TrackDescriptor,
    TrackEvent,
)
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
    transfers: list[Transfer]
    mapped: bool = False


@dataclass
class Transfer:
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
    """What became of every transfer, put together from the driver's events."""

    def __init__(self, recorded: dict[str, Any]) -> None:
        self._flows = count(1)
        self._rings = {ring["ring"] for ring in recorded["rings"]}
        self._pinning: dict[tuple[int, int], int] = {}
        self._queued: dict[tuple[int, int], Transfer] = {}
        self._running: dict[int, list[Transfer]] = defaultdict(list)
        self._moving: dict[int, Move] = {}  # by thread
        self.transfers: list[Transfer] = []
        self.moves: list[tuple[Move, int]] = []
        """And when they ended."""
        self.fallbacks: list[tuple[int, int]] = []
        """Of which ring, and when."""
        self.occupancy: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for event in recorded["events"]:
            if event.get("ring") in self._rings or event["event"] == "mapped":
                getattr(self, f"_{event['event']}")(event)
        if self._queued or any(self._running.values()):
            raise TraceError(f"{len(self._queued)} transfers were queued and never completed")

    def _pin(self, event: dict[str, int]) -> None:
        self._pinning[event["ring"], event["cookie"]] = event["ns"]

    def _pinned(self, event: dict[str, int]) -> None:
        pass  # what follows until it is queued is the ring's lock

    def _submit(self, event: dict[str, int]) -> None:
        key = (event["ring"], event["cookie"])
        if key in self._queued:
            raise TraceError(f"ring {key[0]} has two entries with cookie {key[1]:#x}")
        transfer = Transfer(*key, next(self._flows), self._pinning.pop(key), event)
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
        move = self._moving.pop(event["thread"])
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


def build(recorded: dict[str, Any]) -> bytes:
    """The trace. Raises TraceError if the events are not whole."""
    story, writer = Story(recorded), _Writer()
    engines = {int(id): name for id, name in recorded["engines"].items()}
    client = writer.track("Python client", pid=recorded["pid"])
    driver = writer.track("pcie_nymph")

    flows = {(each.ring, each.cookie): each.flow for each in story.transfers}
    for ring in recorded["rings"]:
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


def _write(writer: _Writer, track: int, transfer: Transfer) -> None:
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


def _throughput(transfers: list[Transfer]) -> Iterator[tuple[int, int]]:
    """Bytes per second that were done, in steps."""
    if not transfers:
        return
    steps: dict[int, int] = defaultdict(int)
    for each in transfers:
        steps[each.end // THROUGHPUT_NS] += each.bytes_done
    for step in range(min(steps), max(steps) + 2):
        yield step * THROUGHPUT_NS, steps.get(step, 0) * 1_000_000_000 // THROUGHPUT_NS


# --- and back ---


@dataclass
class _Slice:
    name: str
    track: int
    begin: int
    notes: dict[str, int | str]
    flows: set[int]
    inside: list[_Slice]
    end: int = 0


def _slices(trace: Any) -> tuple[list[_Slice], list[str]]:
    """The outermost slices of a parsed trace, with those inside; and what is wrong with their nesting."""
    found: list[_Slice] = []
    wrong: list[str] = []
    opened: dict[int, list[_Slice]] = defaultdict(list)
    for packet in trace.packet:
        if not packet.HasField("track_event"):
            continue
        event, stack = packet.track_event, opened[packet.track_event.track_uuid]
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            notes = {each.name: getattr(each, each.WhichOneof("value")) for each in event.debug_annotations}
            flows = {*event.flow_ids, *event.terminating_flow_ids}
            each = _Slice(event.name, event.track_uuid, packet.timestamp, notes, flows, [])
            (stack[-1].inside if stack else found).append(each)
            stack.append(each)
        elif event.type == TrackEvent.TYPE_SLICE_END:
            if not stack:
                wrong.append(
                    f"a slice of track {event.track_uuid} ends at {packet.timestamp} and never began"
                )
                continue
            stack.pop().end = packet.timestamp
    wrong += [f"{each.name} never ends" for stack in opened.values() for each in stack]
    return found, wrong


def validate(trace: bytes, recorded: dict[str, Any]) -> list[str]:
    """What a trace says otherwise than the rings' records: nothing, if it is right."""
    parsed = Trace()
    parsed.ParseFromString(trace)
    found, wrong = _slices(parsed)
    transfers = {(each.notes["ring"], each.notes["cookie"]): each for each in found if "cookie" in each.notes}
    records = {
        (ring["ring"], record["cookie"]): record for ring in recorded["rings"] for record in ring["records"]
    }
    wrong += [
        f"no record is of the slice of ring {key[0]}, cookie {key[1]:#x}"
        for key in transfers.keys() - records.keys()
    ]
    wrong += [
        f"no slice is of the record of ring {key[0]}, cookie {key[1]:#x}"
        for key in records.keys() - transfers.keys()
    ]
    number = sum("cookie" in each.notes for each in found)
    if number != len(records):
        wrong.append(f"{number} transfers are in the trace, and {len(records)} records")
    for key in transfers.keys() & records.keys():
        wrong += [
            f"ring {key[0]}, cookie {key[1]:#x}: {what}" for what in _against(transfers[key], records[key])
        ]

    ends: dict[int, int] = defaultdict(int)
    for each in found:
        for flow in {flow for slice in (each, *each.inside) for flow in slice.flows}:
            ends[flow] += 1
    wrong += [f"arrow {flow} leads nowhere" for flow, number in ends.items() if number < 2]
    by_track: dict[int, list[_Slice]] = defaultdict(list)
    for each in found:
        by_track[each.track].append(each)
    for slices in by_track.values():
        wrong += [f"{b.name} begins before {a.name} ends" for a, b in pairwise(slices) if b.begin < a.end]
    return wrong


def _against(transfer: _Slice, record: dict[str, Any]) -> Iterator[str]:
    """One transfer against its record."""
    stages = transfer.inside
    for name in ("status", "bytes_done"):
        if transfer.notes[name] != record[name]:
            yield f"{name} is {transfer.notes[name]}, and {record[name]} in the record"
    if not stages or stages[0].begin != transfer.begin or stages[-1].end != transfer.end:
        yield "the stages are not all of it"
        return
    if any(a.end != b.begin for a, b in pairwise(stages)) or any(each.end < each.begin for each in stages):
        yield "the stages are not end to end"
    if sum(each.end - each.begin for each in stages) != transfer.end - transfer.begin:
        yield "the stages' durations do not add up"
    if stages[0].end != record["queued_ns"]:
        yield f"it is queued at {stages[0].end}, and at {record['queued_ns']} in the record"
    if transfer.end != record["completed_ns"]:
        yield f"it completes at {transfer.end}, and at {record['completed_ns']} in the record"
    if record["started_ns"] and stages[1].end != record["started_ns"]:
        yield f"it starts at {stages[1].end}, and at {record['started_ns']} in the record"
    names = [each.name for each in stages]
    if unknown := set(names) - set(ORDER):
        yield f"there is no stage {unknown}"
    # pieces go through the middle of it one after the other
    ranks = [ORDER.index(name) for name in names if name in ORDER]
    for a, b in pairwise(ranks):
        again = ORDER[a] in ("hashed", "landed", "compared", "DMA") and ORDER[b] in (
            "loaded",
            "DMA",
            "hashed",
            "compared",
            "landed",
        )
        if b <= a and not again:
            yield f"{ORDER[b]} comes behind {ORDER[a]}"
    if record["started_ns"] and names[-1] != "retired":
        yield "it was started and not retired"
