# SPDX-License-Identifier: MIT
"""Checks a Perfetto trace of pynymph.command.story against the rings' records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

from pynymph.command.story import ORDER


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
    # chunks go through the middle of it one after the other
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
