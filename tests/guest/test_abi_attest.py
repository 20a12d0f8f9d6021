# SPDX-License-Identifier: MIT
"""Transcripts and attestations, by the words of the header: who has the records computes both again."""

import contextlib
import errno
import os
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import abi
import blake3
import pytest
from abi import (
    BARRIER,
    COMPLETE_SYNC,
    DIGEST_ONLY,
    LINK,
    PAGE,
    RECORD,
    VERIFY_HASH,
    ZERO_COPY,
    AttestKey,
    Child,
    Context,
    Entry,
    Memory,
    Record,
    as_ordinary,
    copy,
    fails,
    needs_root,
)
from rsa_keys import ON_P256, RSAKey

SOURCE, TARGET = Memory(64 * PAGE).randomize(), Memory(64 * PAGE)
PARAMETERS = Path("/sys/module/pcie_nymph/parameters")
STATEMENT = struct.Struct("<16s32sIIQ32sQQQ32sIIIIQIIQiIII")
STATEMENT_FIELDS = """
    magic nonce size text_offset realtime_ns transcript transcript_count transcript_id dma_bytes ring_hash
    ring_size head tail reserved ring_addr active_descriptors unread_records errors first_error state engine
    uid
"""


def transcribed(
    entry: Entry,
    status: int = 0,
    done: int = 0,
    engine: int = 0,
    digests: Sequence[bytes | None] = (None, None),
) -> bytes:
    """What the transcript has of an entry that ended so."""
    has = sum(1 << i for i, digest in enumerate(digests) if digest is not None)
    e = entry
    head = struct.pack("<iIHHI", status, e.flags, e.opcode, has, engine)
    rest = struct.pack("<QQQIIQQ", e.length, e.src, e.dst, e.src_buffer, e.dst_buffer, e.cookie, done)
    return head + rest + b"".join(digest or bytes(32) for digest in digests)


def recorded(entry: Entry, record: Record) -> bytes:
    """The same, of what the record says."""
    assert record.cookie == entry.cookie
    digests = [
        bytes(digest) if record.flags & flag else None
        for digest, flag in (
            (record.src_digest, abi.RECORD_SRC_DIGEST),
            (record.dst_digest, abi.RECORD_DST_DIGEST),
        )
    ]
    return transcribed(entry, record.status, record.bytes_done, record.engine, digests)


def transcript(records: Sequence[bytes]) -> bytes:
    return blake3.blake3(b"".join(records), derive_key_context=abi.TRANSCRIPT_CONTEXT).digest()


def check(context: Context, records: Sequence[bytes]) -> None:
    now = context.snapshot()
    assert now.transcript_count == len(records)
    assert now.transcript == transcript(records)


def run_dry(context: Context) -> None:
    """Return when all have retired; Context.drain() would add an entry of its own."""
    while context.snapshot().active:
        time.sleep(0.001)


def payload(offset: int, length: int) -> bytes:
    return blake3.blake3(SOURCE.read(offset, length)).digest()


def some(first: int, count: int, flags: int = RECORD) -> list[Entry]:
    """Copies of different lengths, of which no two touch."""
    return [
        copy(SOURCE.address + 256 * i, TARGET.address + 256 * i, 64 + i % 100, flags, i)
        for i in range(first, first + count)
    ]


# --- transcripts ------------------------------------------------------------------------------------------


def test_transcript_is_of_entries_and_records(context: Context) -> None:
    """Every opcode and flag that a record can tell of; also failures and what they cancel."""
    context.setup(64, paused=True)
    region = context.alloc(2 * PAGE)
    other = Memory(PAGE)
    gone = Memory(PAGE)
    s, t = SOURCE.address, TARGET.address
    entries = [
        copy(s, t, 100, RECORD, 1),
        copy(s + 1, t + 1, 5000, RECORD | VERIFY_HASH, 2),
        copy(s + 2, t + 2, 77, RECORD | DIGEST_ONLY, 3),
        copy(s + PAGE, t + PAGE, 3000, RECORD | ZERO_COPY | VERIFY_HASH, 4),
        abi.hash_only(s + 3, 70000, RECORD, 5),
        abi.fill(0x0102030405060708, t, 99, RECORD | VERIFY_HASH, 6),
        abi.compare(s, other.address, 500, RECORD, 7),
        abi.in_buffers(copy(0, PAGE, 64, RECORD | VERIFY_HASH, 8), region.handle, region.handle),
        abi.in_buffers(copy(s, 64, 64, RECORD | VERIFY_HASH, 9), dst=region.handle),
        abi.nop(10, RECORD | BARRIER),
        copy(gone.address, t, 100, RECORD | LINK, 11),
        copy(s, t, 100, RECORD | LINK, 12),
        copy(s, t, 100, RECORD, 13),
        copy(s, t, 100, RECORD, 14),
    ]
    assert context.enter(entries).submitted == len(entries)
    context.cancel(14)
    gone.unmap(0, PAGE)
    check(context, [])
    context.enable()
    records = context.reap(len(entries))
    ends = [record.status for record in records]
    canceled = [-errno.ECANCELED] * 3
    assert ends == [*[0] * 6, -errno.EBADMSG, *[0] * 3, -errno.EFAULT, *canceled]
    check(context, [recorded(entry, record) for entry, record in zip(entries, records, strict=True)])


@pytest.mark.parametrize("flags", [0, VERIFY_HASH, DIGEST_ONLY], ids=["plain", "verify", "digest"])
def test_transcript_of_many_entries(context: Context, flags: int) -> None:
    """More than the driver hashes at once, read at odd moments; in batches where entries can be."""
    context.setup(300)
    region = context.alloc(300 * 256)
    records: list[bytes] = []
    for count in (1, 7, 127, 128, 129, 256, 300, 3):
        entries = some(0, count, RECORD | flags)
        if flags:
            entries = [
                abi.in_buffers(copy(e.src, 256 * i, e.length, e.flags, i), dst=region.handle)
                for i, e in enumerate(entries)
            ]
        assert context.enter(entries).submitted == count
        records += map(recorded, entries, context.reap(count))
        check(context, records)


def test_lost_records_are_in_the_transcript(context: Context) -> None:
    """What leaves no record, is never read, or was canceled: who knows how it ended can show it."""
    context.setup(8, paused=True)
    silent = copy(SOURCE.address, TARGET.address, 100, VERIFY_HASH, 1)
    canceled = copy(SOURCE.address, TARGET.address, 100, 0, 2)
    unread = abi.nop(3, RECORD)
    context.enter([silent, canceled, unread])
    context.cancel(2)
    context.enable()
    run_dry(context)
    assert context.snapshot().unread_records == 1
    engine = context.snapshot().engine
    digest = payload(0, 100)
    records = [
        transcribed(silent, 0, 100, engine, (digest, digest)),
        transcribed(canceled, -errno.ECANCELED),
        transcribed(unread, 0, 0, engine),
    ]
    check(context, records)
    for wrong in (
        [records[0], records[2]],
        [records[1], records[0], records[2]],
        [*records, records[2]],
        records[:2],
        [transcribed(silent, 0, 100, engine, (digest, None)), *records[1:]],
    ):
        assert context.snapshot().transcript != transcript(wrong)


def test_legacy_descriptor_is_an_entry_of_the_transcript(context: Context) -> None:
    context.setup(4)
    context.submit(SOURCE.address, TARGET.address, 4000, COMPLETE_SYNC | VERIFY_HASH, 2**64 - 1)
    entry = copy(SOURCE.address, TARGET.address, 4000, COMPLETE_SYNC | VERIFY_HASH, 2**64 - 1)
    digest = payload(0, 4000)
    check(context, [transcribed(entry, 0, 4000, context.snapshot().engine, (digest, digest))])


def test_refused_entry_is_not_in_the_transcript(context: Context) -> None:
    context.setup(4)
    with context.refuses(errno.EFAULT):
        context.submit(16, TARGET.address, 100)
    check(context, [])


def test_setup_goes_on_with_the_transcript_and_reset_begins_another(context: Context) -> None:
    context.setup(4)
    first = context.snapshot()
    entries, records = some(0, 3), []
    for entry in entries:
        records.append(recorded(entry, context.run(entry)))
        context.setup(5)
        check(context, records)
    assert context.snapshot().transcript_id == first.transcript_id
    context.reset()
    assert context.snapshot() == abi.UNTOUCHED
    context.setup(4)
    check(context, [])
    assert context.snapshot().transcript_id > first.transcript_id
    with Context() as other:
        other.setup(4)
        assert other.snapshot().transcript_id > context.snapshot().transcript_id


def test_transcript_and_state_are_of_one_moment(context: Context) -> None:
    """While entries retire, the transcript is that of as many as have, and the count says so."""
    context.setup(256)
    ends = threading.Event()
    seen: list[abi.Snapshot] = []

    def look() -> None:
        while not ends.wait(0.001):
            seen.append(context.snapshot(256))

    looking = threading.Thread(target=look)
    looking.start()
    records: list[bytes] = []
    for _ in range(20):
        entries = some(0, 256)
        context.enter(entries)
        records += map(recorded, entries, context.reap(256))
    ends.set()
    looking.join()
    seen.append(context.snapshot())
    assert seen[-1].transcript_count == len(records)
    hasher, count, by_count = blake3.blake3(derive_key_context=abi.TRANSCRIPT_CONTEXT), 0, {}
    for now in seen:
        for record in records[count : now.transcript_count]:
            hasher.update(record)
        count = now.transcript_count
        by_count[count] = now.transcript
        assert now.transcript == hasher.digest()
        assert now.tail == count % 256
        assert now.dma_bytes == sum(64 + i % 256 % 100 for i in range(count))
    assert len(by_count) > 1


# --- attestations -----------------------------------------------------------------------------------------


def parse(statement: bytes) -> tuple[dict[str, object], dict[str, str]]:
    """The fields of a statement, and the lines of its text."""
    fields = dict(zip(STATEMENT_FIELDS.split(), STATEMENT.unpack_from(statement), strict=True))
    assert fields["text_offset"] == STATEMENT.size and fields["size"] == len(statement)
    lines = statement[STATEMENT.size :].decode().splitlines()
    text = dict(line.split("=", 1) for line in lines)
    assert len(text) == len(lines)
    return fields, text


@needs_root
def test_statement_says_what_is(context: Context, attest_key: bytes) -> None:
    context.setup(8, paused=True, label=0x0123456789ABCDEF)
    context.enter([*some(0, 3), copy(SOURCE.address, TARGET.address, 10, 0, 9)])
    context.cancel(9)
    context.enable()
    run_dry(context)
    nonce = os.urandom(32)
    before = time.clock_gettime_ns(time.CLOCK_REALTIME)
    statement, digest = context.attest(nonce)
    after = time.clock_gettime_ns(time.CLOCK_REALTIME)
    assert digest == blake3.blake3(statement, key=attest_key).digest()
    fields, text = parse(statement)
    now = context.snapshot()
    assert fields["magic"] == b"nymph attest v1\0"
    assert fields["nonce"] == nonce
    assert before <= fields["realtime_ns"] <= after  # type: ignore[operator]
    assert fields["uid"] == os.getuid()
    assert fields["reserved"] == 0
    assert fields["active_descriptors"] == now.active
    same = set(fields) & set(now._fields)
    assert same >= {"transcript", "transcript_count", "transcript_id", "ring_hash", "errors", "first_error"}
    assert {name: fields[name] for name in same} == {name: getattr(now, name) for name in same}
    assert (now.transcript_count, now.unread_records, now.errors) == (4, 3, 1)
    kernel = os.uname()
    told = (text["kernel"], text["kernel_version"], text["machine"])
    assert told == (kernel.release, kernel.version, kernel.machine)
    module = PARAMETERS.parent
    assert (text["version"], text["srcversion"]) == tuple(
        (module / name).read_text().strip() for name in ("version", "srcversion")
    )
    assert text["blake3"] == (abi.SYSFS / "blake3").read_text().strip()
    parameters = {path.name: path.read_text().strip() for path in PARAMETERS.iterdir()}
    assert {name: text[f"parameter.{name}"] for name in parameters} == parameters
    engines = {f"engine.{engine.id}": engine.name.decode() for engine in context.query(16)[1]}
    assert {name: text[name] for name in text if name.startswith("engine.")} == engines
    if "build_id" in text:  # where the kernel keeps it
        note = (module / "notes/.note.gnu.build-id").read_bytes()
        assert bytes.fromhex(text["build_id"]) == note[16:36]


@needs_root
def test_statement_is_of_the_nonce_the_key_and_the_moment(context: Context, attest_key: bytes) -> None:
    context.setup(4)
    one, other = context.attest(b"a" * 32), context.attest(b"b" * 32)
    assert one[0][16:48] == b"a" * 32 and other[0][16:48] == b"b" * 32
    key = os.urandom(32)
    AttestKey.replace(key)
    statement, digest = context.attest()
    assert digest == blake3.blake3(statement, key=key).digest()
    assert digest != blake3.blake3(statement, key=attest_key).digest()
    context.run(abi.nop(1))
    assert parse(context.attest()[0])[0]["transcript_count"] == 1


@needs_root
def test_attest_needs_a_key_of_the_right_size(context: Context) -> None:
    context.setup(4)
    with context.refuses(errno.ENOKEY):
        context.attest()
    try:
        for size in (1, 31, 33, 64):
            AttestKey.replace(bytes(size))
            with context.refuses(errno.EKEYREJECTED):
                context.attest()
        AttestKey.replace(bytes(32))
        context.attest()
        for command, argument, number, after in (
            (AttestKey.SET_TIMEOUT, 1, errno.EKEYEXPIRED, 1.2),  # nothing tells that it has expired
            (AttestKey.REVOKE, 0, errno.EKEYREVOKED, 0),
        ):
            AttestKey.remove()
            key = AttestKey.add(bytes(32), AttestKey.OWN)  # who has it may do that to it
            AttestKey.control(AttestKey.LINK, key, AttestKey.keyring())
            context.attest()
            AttestKey.control(command, key, argument)
            time.sleep(after)
            with context.refuses(number):
                context.attest()
    finally:
        AttestKey.remove()
    with context.refuses(errno.ENOKEY):
        context.attest()


@needs_root
@pytest.mark.usefixtures("attest_key")
def test_attest_with_too_little_room_or_none(context: Context) -> None:
    context.setup(4)
    size = len(context.attest()[0])
    memory = Memory(2 * PAGE)
    memory.protect(abi.PROT_NONE, PAGE)
    end = memory.address + PAGE
    for room, at, number in (
        (0, 0, errno.ENOSPC),
        (STATEMENT.size, end - STATEMENT.size, errno.ENOSPC),
        (size - 1, end - size, errno.ENOSPC),
        (size, 0, errno.EFAULT),
        (size, 1 << 63, errno.EFAULT),
        (size, end - size + 1, errno.EFAULT),
    ):
        argument = abi.AttestArg(size=104, statement=at, max_statement=room)
        with context.refuses(number):
            context.ioctl(abi.ATTEST, argument)
        assert argument.statement_size == 0 and not any(argument.digest)
    argument = abi.AttestArg(size=104, statement=end - size, max_statement=size)
    assert context.ioctl(abi.ATTEST, argument) == 0
    assert argument.statement_size == size


def _as_user(function: Callable[[], str | None]) -> str:
    """What the function returns to somebody who is not root."""
    return Child(lambda: as_ordinary(function)).result()


@needs_root
def test_user_is_attested_and_has_no_access_to_the_key(attest_key: bytes) -> None:
    number = AttestKey.keyring()

    def attests() -> str:
        with Context() as context:
            context.setup(4)
            statement, digest = context.attest()
        return f"{statement.hex()} {digest.hex()} {os.getuid()}"

    def meddles() -> str:
        tried: list[Callable[[], object]] = [
            lambda: AttestKey.add(bytes(32), number),
            lambda: AttestKey.control(AttestKey.CLEAR, number),
            lambda: AttestKey.control(AttestKey.REVOKE, number),
        ]
        for act in tried:
            with fails(errno.EACCES):
                act()
        with contextlib.suppress(OSError):
            return f"sees keyring {AttestKey.keyring()}"
        return ""

    statement, digest, uid = _as_user(attests).split()
    assert bytes.fromhex(digest) == blake3.blake3(bytes.fromhex(statement), key=attest_key).digest()
    assert parse(bytes.fromhex(statement))[0]["uid"] == int(uid) != 0
    assert _as_user(meddles) == ""


def test_key_of_a_user_does_not_count(context: Context) -> None:
    """A key of the same name in one's own keyring is not the administrator's."""
    context.setup(4)
    AttestKey.add(bytes(32), AttestKey.OWN)
    with context.refuses(errno.ENOKEY):
        context.attest()


# --- signatures -------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_statement_is_signed(context: Context, bits: int) -> None:
    """Without a logon key; and with one, which makes no difference."""
    context.setup(4)
    context.run(abi.nop(1))
    key, nonce = RSAKey.of(bits), os.urandom(32)
    AttestKey.add_signer(key.private())
    try:
        for has_logon_key in (False, True):
            if has_logon_key:
                AttestKey.add(bytes(32))
            statement, signature = context.sign(nonce, room=bits // 8)
            assert len(signature) == bits // 8 and key.has_signed(signature, statement)
            assert not RSAKey.of(1024).has_signed(signature, statement)
            for other in (statement[:-1], statement + b"\0", b"N" + statement[1:]):
                assert not key.has_signed(signature, other)
            fields, text = parse(statement)
            assert (fields["nonce"], fields["transcript_count"]) == (nonce, 1)
            assert text["kernel"] == os.uname().release
        other, digest = context.attest(nonce)
        assert digest == blake3.blake3(other, key=bytes(32)).digest()
    finally:
        AttestKey.remove()


@needs_root
def test_no_key_stands_in_for_one_of_the_other_kind(context: Context) -> None:
    context.setup(4)
    try:
        AttestKey.add_signer(RSAKey.of().private())
        with context.refuses(errno.ENOKEY):
            context.attest()
        AttestKey.replace(bytes(32))
        with context.refuses(errno.ENOKEY):
            context.sign()
        AttestKey.add_signer(RSAKey.of().private())
        AttestKey.add_signer(RSAKey.of(3072).private())  # in place of the one before
        assert len(context.sign()[1]) == 3072 // 8
    finally:
        AttestKey.remove()
    with context.refuses(errno.ENOKEY):
        context.sign()


@needs_root
def test_key_that_cannot_sign_is_rejected(context: Context) -> None:
    """One that is too short; and in certificates, public keys, of RSA and of a curve."""
    context.setup(4)
    issuer = RSAKey.of()
    tried = []
    for payload in (
        RSAKey.of(1024).private(),
        issuer.certificate(issuer.public()),
        issuer.certificate(ON_P256),
    ):
        AttestKey.add_signer(issuer.private())
        AttestKey.remove()
        try:
            AttestKey.add(payload, kind=b"asymmetric")
        except OSError as error:
            assert error.errno in (
                errno.EBADMSG,
                errno.ENOPKG,
            )  # the kernel has no certificates, or no curves
            continue
        tried.append(payload)
        try:
            with context.refuses(errno.EKEYREJECTED):
                context.sign()
        finally:
            AttestKey.remove()
    assert tried


@needs_root
def test_key_that_was_taken_signs_nothing(context: Context, sign_key: RSAKey) -> None:
    context.setup(4)
    for command, argument, number, after in (
        (AttestKey.SET_TIMEOUT, 1, errno.EKEYEXPIRED, 1.2),  # nothing tells that it has expired
        (AttestKey.REVOKE, 0, errno.EKEYREVOKED, 0),
    ):
        AttestKey.remove()
        key = AttestKey.add_signer(sign_key.private(), AttestKey.OWN)  # who has it may do that to it
        AttestKey.control(AttestKey.LINK, key, AttestKey.keyring())
        context.sign()
        AttestKey.control(command, key, argument)
        time.sleep(after)
        with context.refuses(number):
            context.sign()


@needs_root
def test_signature_with_too_little_room_or_none(context: Context, sign_key: RSAKey) -> None:
    """Nothing is told in the struct then, and nothing is written where there is too little room."""
    context.setup(4)
    statement = len(context.sign()[0])
    memory, stated = Memory(2 * PAGE), Memory(abi.STATEMENT_MAX)
    at = stated.address
    memory.protect(abi.PROT_NONE, PAGE)
    end, size = memory.address + PAGE, sign_key.size
    for told, room, to, number in (
        (statement, 0, 0, errno.ENOSPC),
        (statement, size - 1, end - size, errno.ENOSPC),
        (statement - 1, size, end - size, errno.ENOSPC),
        (statement, size, 0, errno.EFAULT),
        (statement, size, 1 << 63, errno.EFAULT),
        (statement, 2**32 - 1, end - size + 1, errno.EFAULT),
    ):
        memory.write(b"\xee" * size, PAGE - size)
        argument = abi.AttestArg(
            size=104, flags=1, statement=at, max_statement=told, signature=to, max_signature=room
        )
        before = bytes(argument)
        with context.refuses(number):
            context.ioctl(abi.ATTEST, argument)
        assert bytes(argument) == before
        if number == errno.ENOSPC:
            assert memory.read(PAGE - size, size) == b"\xee" * size
    argument = abi.AttestArg(
        size=104, flags=1, statement=at, max_statement=statement, signature=end - size, max_signature=size
    )
    assert context.ioctl(abi.ATTEST, argument) == 0
    assert (argument.statement_size, argument.signature_size) == (statement, size)
    argument.statement = 16
    with context.refuses(errno.EFAULT):
        context.ioctl(abi.ATTEST, argument)


@needs_root
@pytest.mark.usefixtures("attest_key", "sign_key")
def test_fields_of_a_signature_go_with_the_flag(context: Context) -> None:
    """A program from before signatures has a shorter struct, and gets what it knows."""
    context.setup(4)
    room = Memory(abi.STATEMENT_MAX)
    memory = Memory(PAGE)

    def ask(number: int, size: int, **fields: int) -> int:
        argument = abi.AttestArg(size=size, statement=room.address, max_statement=abi.STATEMENT_MAX, **fields)
        memory.write(bytes(argument)[:size] + b"\xee" * (PAGE - size))
        return abi.ioctl(context.fd, number, memory.address)

    for number in (abi.ATTEST, abi.OLD_ATTEST):
        for size in (88, 96, 100, 104):
            assert ask(number, size, signature_size=7) == 0
            assert memory.read(size, 64) == b"\xee" * 64
            assert any(memory.read(56, 32))
            assert size < 104 or memory.read(100, 4) == bytes(4)
        for size in (88, 96, 100, 103):
            with context.refuses(errno.EINVAL):
                ask(number, size, flags=1, signature=memory.address, max_signature=512)
        for size, name in ((96, "signature"), (104, "signature"), (104, "max_signature")):
            with context.refuses(errno.EINVAL):
                ask(number, size, **{name: 1})
        with context.refuses(errno.EINVAL):
            ask(number, 104, flags=3, signature=memory.address, max_signature=512)


@needs_root
def test_user_gets_a_signature_and_not_the_key(sign_key: RSAKey) -> None:
    AttestKey.remove()
    key = AttestKey.add_signer(sign_key.private())

    def signs() -> str:
        with Context() as context:
            context.setup(4)
            statement, signature = context.sign()
        return f"{statement.hex()} {signature.hex()} {os.getuid()}"

    def meddles() -> str:
        tried: list[Callable[[], object]] = [
            lambda: AttestKey.sign(key, bytes(32)),
            lambda: AttestKey.control(AttestKey.READ, key),
            lambda: AttestKey.control(AttestKey.REVOKE, key),
            lambda: AttestKey.control(AttestKey.LINK, key, AttestKey.OWN),
        ]
        for act in tried:
            with fails(errno.EACCES):
                act()
        return ""

    statement, signature, uid = _as_user(signs).split()
    assert sign_key.has_signed(bytes.fromhex(signature), bytes.fromhex(statement))
    assert parse(bytes.fromhex(statement))[0]["uid"] == int(uid) != 0
    assert _as_user(meddles) == ""


@needs_root
def test_signing_key_of_a_user_does_not_count(context: Context) -> None:
    context.setup(4)
    AttestKey.add_signer(RSAKey.of().private(), AttestKey.OWN)
    with context.refuses(errno.ENOKEY):
        context.sign()


@needs_root
def test_keyctl_adds_the_key(context: Context, tmp_path: Path) -> None:
    """The command of docs/how-to/evidence.md."""
    context.setup(4)
    AttestKey.add_signer(RSAKey.of(3072).private())  # loads the parser
    (tmp_path / "attest.der").write_bytes(RSAKey.of().private())
    command = "keyctl padd asymmetric pcie_nymph:attest %keyring:.pcie_nymph < attest.der"
    try:
        subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        statement, signature = context.sign()
    finally:
        AttestKey.remove()
    assert RSAKey.of().has_signed(signature, statement)
