# SPDX-License-Identifier: MIT
"""`pynymph hash`, in the manner of b3sum, and `pynymph verify` of two files."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol, cast

import click
from blake3 import blake3

from pynymph.command.terminal import (
    DIFFERS,
    MODEL_ENGINE,
    TROUBLE,
    USERSPACE,
    Advance,
    Failure,
    bar,
    engine_option,
    explain,
    json_option,
    named,
    open_hashing_ring,
    print_json,
    say,
    size,
)
from pynymph.errors import NymphError
from pynymph.openfile import query
from pynymph.operation import Compare, Hash
from pynymph.ring import DEVICE, MODEL, Ring

BLOCK = 8 << 20
CHUNK = 512 << 10
PIPE = "-"
_LINE = re.compile(rb"(\\?)([0-9a-fA-F]{64})  (.+)", re.DOTALL)
_UNESCAPED = {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r"}

comparing_engine = engine_option(
    "auto", MODEL_ENGINE, USERSPACE, default=None,
    help="The engine that reads the bytes, of `pynymph info`; auto; model, the driver's model in Python; or "
    "userspace, this process. Default: auto if the driver is there, else userspace.",
)  # fmt: skip


class Readable(Protocol):
    """An open file, with or without a buffer."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...

    def fileno(self) -> int: ...


class Hasher:
    """Hash files, with the ring where there is one.

    Args:
        engine: as for open_hashing_ring().
    """

    def __init__(self, engine: str | None) -> None:
        self._chosen = engine is not None
        self._ring = open_hashing_ring(engine, 4)
        self._longest = 0
        if self._ring is not None:
            self._longest = query(MODEL if self._ring.is_model else DEVICE).max_length

    def close(self) -> None:
        """Close the ring."""
        if self._ring is not None:
            self._ring.close()

    def file(self, path: str) -> tuple[bytes, int, str]:
        """Hash a file, or standard input.

        Returns:
            BLAKE3-256, the bytes that it is of, and the name of the engine.

        Raises:
            OSError: it can't be read.
            Failure: the engine that was asked for can't hash it.
        """
        if path == PIPE:
            return self._userspace(cast(Readable, sys.stdin.buffer), "standard input")
        with open(path, "rb", buffering=0) as file:
            return self._opened(file, path)

    def _opened(self, file: Readable, name: str) -> tuple[bytes, int, str]:
        found = os.fstat(file.fileno())
        nbytes = found.st_size if stat.S_ISREG(found.st_mode) else 0
        if self._ring is None or not nbytes:
            return self._userspace(file, name)
        if nbytes > self._longest:
            if self._chosen:
                message = f"{named(name)}: a ring hashes {self._longest} bytes at once, and it has {nbytes}"
                raise Failure(f"{message}; give --engine {USERSPACE}")
            return self._userspace(file, name)
        with mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_READ) as mapped:
            try:
                done = self._ring.submit(Hash(src=mapped)).result()
            except NymphError as error:
                raise OSError(error.errno, error.strerror, name) from None
        assert done.src_digest is not None
        return done.src_digest, nbytes, done.engine or ""

    @staticmethod
    def _userspace(file: Readable, name: str) -> tuple[bytes, int, str]:
        hasher, total, block = blake3(max_threads=blake3.AUTO), 0, memoryview(bytearray(BLOCK))
        try:
            while n := file.readinto(block):
                hasher.update(block[:n])
                total += n
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from None
        return hasher.digest(), total, USERSPACE


def line(digest: bytes, path: str | bytes) -> bytes:
    """Write a line as b3sum does."""
    name = os.fsencode(path)
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if escaped != name else b"") + digest.hex().encode() + b"  " + escaped


def parse(text: bytes) -> tuple[bytes, bytes] | None:
    """Read a line of b3sum: the digest and the file's name, or None if it is none."""
    found = _LINE.fullmatch(text)
    if found is None:
        return None
    name = found[3]
    if found[1]:
        if re.search(rb"\\(?![\\nr])", re.sub(rb"\\\\", b"", name)):
            return None
        name = re.sub(rb"\\[\\nr]", lambda match: _UNESCAPED[match[0]], name)
    return bytes.fromhex(found[2].decode()), name


def _print(text: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(text + b"\n")
    sys.stdout.buffer.flush()


@click.command("hash", short_help="Print or check BLAKE3 digests, as b3sum does.")
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(allow_dash=True, readable=False))
@click.option("-c", "--check", is_flag=True, help="Read digests from the files, and check them.")
@click.option("--quiet", is_flag=True, help="With --check, print nothing for files that are right.")
@click.option("--no-names", is_flag=True, help="Print digests alone.")
@comparing_engine
@json_option
def hash_files(
    files: tuple[str, ...], check: bool, quiet: bool, no_names: bool, engine: str | None, as_json: bool
) -> None:
    """Print BLAKE3 digests of files, or of standard input, in the format of b3sum."""
    if quiet and not check:
        raise click.UsageError("--quiet belongs to --check")
    if no_names and check:
        raise click.UsageError("--no-names and --check exclude each other")
    with contextlib.closing(Hasher(engine)) as hasher:
        if check:
            found, status = _check(hasher, files or (PIPE,), quiet=quiet, show=not as_json)
        else:
            found, status = _hash(hasher, files or (PIPE,), names=not no_names, show=not as_json)
    if as_json:
        print_json(found)
    click.get_current_context().exit(status)


def _hash(
    hasher: Hasher, files: tuple[str, ...], *, names: bool, show: bool
) -> tuple[list[dict[str, Any]], int]:
    found, status = list[dict[str, Any]](), 0
    for path in files:
        try:
            digest, nbytes, engine = hasher.file(path)
        except (OSError, Failure) as error:
            message = error.message if isinstance(error, Failure) else explain(error)
            say(message)
            found.append({"file": path, "error": message})
            status = TROUBLE
            continue
        if show:
            _print(line(digest, path) if names else digest.hex().encode())
        found.append({"file": path, "digest": digest.hex(), "bytes": nbytes, "engine": engine})
    return found, status


def _check(
    hasher: Hasher, files: tuple[str, ...], *, quiet: bool, show: bool
) -> tuple[list[dict[str, Any]], int]:
    found, failed, malformed = list[dict[str, Any]](), 0, 0
    for where, text in _lines(files):
        parsed = parse(text)
        if parsed is None:
            malformed += 1
            say(f"{where} is no digest and name as b3sum writes them")
            continue
        expected, name = parsed
        path = os.fsdecode(name)
        result: dict[str, Any] = {"file": path, "ok": False}
        shown = line(b"", name).removeprefix(b"\\").strip()
        try:
            digest, _, result["engine"] = hasher.file(path)
            result["ok"] = digest == expected
            verdict = b"OK" if result["ok"] else b"FAILED"
        except (OSError, Failure) as error:
            result["error"] = error.message if isinstance(error, Failure) else explain(error)
            reason = result["error"] if isinstance(error, Failure) else error.strerror or ""
            verdict = b"FAILED (" + reason.encode(errors="replace") + b")"
        failed += not result["ok"]
        if show and not (quiet and result["ok"]):
            _print(shown + b": " + verdict)
        found.append(result)
    if failed:
        say(f"WARNING: {failed} computed {'digest' if failed == 1 else 'digests'} did NOT match")
    if not found and not malformed:
        say("there are no digests to check")
    return found, DIFFERS if failed else 0 if found and not malformed else TROUBLE


def _lines(files: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Yield each line of files with digests, and where it is."""
    for path in files:
        name = "standard input" if path == PIPE else path
        with contextlib.ExitStack() as stack:
            file = sys.stdin.buffer if path == PIPE else stack.enter_context(open(path, "rb"))
            for number, text in enumerate(file, 1):
                yield f"{named(name)}:{number}", text.removesuffix(b"\n").removesuffix(b"\r")


# --- verify ---


def show_comparison(a: str, b: str, engine: str | None, as_json: bool) -> None:
    """Tell whether two files, devices or pipes have the same bytes, and where they first differ."""
    if a == b == PIPE:
        raise click.UsageError("only one of both can be standard input")
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(_open(path)) for path in (a, b)]
        ring = open_hashing_ring(engine, 1)
        if ring is not None:
            stack.enter_context(ring)
        found = [os.fstat(file.fileno()) for file in files]
        total = found[0].st_size if stat.S_ISREG(found[0].st_mode) else None
        advance = stack.enter_context(bar("verify", total))
        same, at, digest, by = _compare(files, (a, b), ring, advance)
    seconds = time.monotonic() - began
    if as_json:
        report = {"same": same, "first_difference": None if same else at, "bytes": at if same else None,
                  "digest": digest if same else None, "engine": by, "seconds": seconds}  # fmt: skip
        print_json(report)
    elif same:
        click.echo(f"the same: {digest}, {size(at)} by {by}, {seconds:.3g} s")
    else:
        click.echo(f"{named(a)} and {named(b)} differ, first at byte {at}")
    click.get_current_context().exit(0 if same else DIFFERS)


@contextlib.contextmanager
def _open(path: str) -> Iterator[Readable]:
    if path == PIPE:
        yield cast(Readable, sys.stdin.buffer)
    else:
        if os.path.isdir(path):
            raise Failure(f"{named(path)} is a folder; give files")
        with open(path, "rb", buffering=0) as file:
            yield file


def _compare(
    files: list[Readable], names: tuple[str, str], ring: Ring | None, advance: Advance
) -> tuple[bool, int, str, str]:
    """Compare two files from where they stand on.

    Returns:
        Whether they are the same; their length, or where they first differ; the digest; and the engine.
    """
    hasher, at = blake3(), 0
    by = USERSPACE if ring is None else ring.snapshot().engine or ""
    buffers = [bytearray(CHUNK) if ring is None else ring.allocate(CHUNK) for _ in files]
    views = [buffer if isinstance(buffer, bytearray) else buffer.view for buffer in buffers]
    one, other = (memoryview(view) for view in views)
    while True:
        n, m = (_fill(file, view, name) for file, view, name in zip(files, (one, other), names, strict=True))
        common = min(n, m)
        if common:
            if ring is None:
                differs = _first_difference(one[:common], other[:common])
            else:
                a, b = buffers
                differs, by = _compare_in_ring(ring, Compare(a=a[:common], b=b[:common]))
            if differs is not None:
                return False, at + differs, "", by
        at += common
        if n != m:
            return False, at, "", by
        hasher.update(one[:common])
        advance(common)
        if common < CHUNK:
            return True, at, hasher.hexdigest(), by


def _compare_in_ring(ring: Ring, comparison: Compare) -> tuple[int | None, str]:
    """Return where the two differ, if they do, and the engine that found out."""
    try:
        return None, ring.submit(comparison).result().engine or ""
    except NymphError as error:
        if error.errno != errno.EBADMSG or error.completion is None:
            raise
        return error.completion.bytes_done, error.completion.engine or ""


def _first_difference(a: memoryview, b: memoryview) -> int | None:
    if a == b:
        return None
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)


def _fill(file: Readable, view: memoryview, name: str) -> int:
    done = 0
    try:
        while done < len(view) and (n := file.readinto(view[done:])):
            done += n
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None
    return done
