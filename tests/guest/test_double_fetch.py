# SPDX-License-Identifier: MIT
"""The driver reads every argument once: what it checks is what it uses, whatever other threads write."""

import ctypes
import struct

import pytest
from abi import (
    ATTEST,
    ATTEST_SIGN,
    COMPLETE_SYNC,
    ENTER,
    NO_DEADLINE,
    OLD_LABEL,
    PAGE,
    QUERY,
    RECORD,
    SETUP2,
    SETUP_RING,
    SIGNATURE_MAX,
    SNAPSHOT,
    STATEMENT_MAX,
    SUBMIT_DMA,
    AttestArg,
    Context,
    Desc,
    EngineInfo,
    Enter,
    Entry,
    Memory,
    Query,
    Record,
    RingInfo,
    Setup2,
    SnapshotArg,
    address_of,
    copy,
    ioctl,
    needs_root,
)
from nymph_vm.double_fetch import WORD, Argument, DoubleFetchError

pytestmark = [needs_root, pytest.mark.usefixtures("attest_key")]

SOURCE, DESTINATION = Memory(PAGE).randomize(), Memory(PAGE)
COUNT = 3
ENTRIES = (Entry * COUNT)(
    *(
        copy(SOURCE.address + 64 * i, DESTINATION.address + 64 * i, 64, RECORD | COMPLETE_SYNC, i)
        for i in range(COUNT)
    )
)
ROOM = (Entry * 8)()
RECORDS = (Record * COUNT)()
ENGINES = (EngineInfo * COUNT)()
STATEMENT, SIGNATURE = Memory(STATEMENT_MAX), Memory(PAGE)


def enter(entries: int) -> Enter:
    return Enter(
        size=ctypes.sizeof(Enter),
        entries=entries,
        records=address_of(RECORDS),
        to_submit=COUNT,
        max_records=COUNT,
        min_records=COUNT,
        deadline_ns=NO_DEADLINE,
    )


ARGUMENTS: dict[int, ctypes.Structure] = {
    SUBMIT_DMA: Desc(SOURCE.address, DESTINATION.address, 64, COMPLETE_SYNC, 1),
    SETUP_RING: RingInfo(8, 0, 0, 0, OLD_LABEL),
    QUERY: Query(size=ctypes.sizeof(Query), engines=address_of(ENGINES), max_engines=COUNT),
    SETUP2: Setup2(size=ctypes.sizeof(Setup2), entries=8, ring_addr=OLD_LABEL),
    ENTER: enter(address_of(ENTRIES)),
    SNAPSHOT: SnapshotArg(size=ctypes.sizeof(SnapshotArg), entries=address_of(ROOM), max_entries=len(ROOM)),
    ATTEST: AttestArg(
        size=ctypes.sizeof(AttestArg), statement=STATEMENT.address, max_statement=STATEMENT_MAX
    ),
}
SIZED = [QUERY, SETUP2, ENTER, SNAPSHOT, ATTEST]


def name(request: int) -> str:
    return type(ARGUMENTS[request]).__name__


def ready(request: int) -> Context:
    """An open file that will grant the request."""
    context = Context()
    if request not in (SETUP_RING, SETUP2):
        context.setup(8)
    return context


@pytest.mark.parametrize("request_number", ARGUMENTS, ids=name)
def test_argument_is_read_once(request_number: int) -> None:
    content = bytes(ARGUMENTS[request_number])
    for split in range(WORD, len(content), WORD):
        with ready(request_number) as context, Argument(content, split) as argument:
            assert ioctl(context.fd, request_number, argument.address) >= 0


@pytest.mark.usefixtures("sign_key")
def test_argument_of_a_signature_is_read_once() -> None:
    signing = AttestArg.from_buffer_copy(ARGUMENTS[ATTEST])
    signing.flags, signing.signature, signing.max_signature = ATTEST_SIGN, SIGNATURE.address, SIGNATURE_MAX
    content = bytes(signing)
    for split in range(WORD, len(content), WORD):
        with ready(ATTEST) as context, Argument(content, split) as argument:
            assert ioctl(context.fd, ATTEST, argument.address) == 0


def test_entries_are_read_once() -> None:
    content = bytes(ENTRIES)
    for split in range(WORD, len(content), WORD):
        with ready(ENTER) as context, Argument(content, split) as argument:
            assert context.ioctl(ENTER, enter(argument.address)) == COUNT
        assert [record.cookie for record in RECORDS] == [entry.cookie for entry in ENTRIES]
        assert [record.status for record in RECORDS] == [0] * COUNT


@pytest.mark.parametrize("request_number", SIZED, ids=name)
def test_first_value_of_a_size_counts(request_number: int) -> None:
    """The one thing that is read twice: the size, first alone, to know how much there is to read."""
    content = bytearray(bytes(ARGUMENTS[request_number]) + bytes(WORD))
    size = struct.Struct("=I")
    size.pack_into(content, 0, len(content))
    later = bytearray(content)
    size.pack_into(later, 0, 1)
    with ready(request_number) as context:
        # It looks first at what it does not know, at the end, and so comes to the beginning a second time.
        argument = Argument(bytes(content), WORD, bytes(later))
        with pytest.raises(DoubleFetchError, match=f"byte 0 of {len(content)}$"), argument:
            assert ioctl(context.fd, request_number, argument.address) >= 0
        assert size.unpack_from(argument.content()) == (len(content),)
