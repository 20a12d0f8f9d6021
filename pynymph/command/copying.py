# SPDX-License-Identifier: MIT
"""`pynymph copy`: files, folders, block devices and pipes, through the ring.

Each chunk of the source is read into memory of the driver. The ring copies it to other memory of the driver,
with a digest of what was sent and of what arrived, and the target gets what arrived. Then the target is
flushed and read again, and the ring hashes that: a chunk whose digest is not that of what was sent is an
error. A file gets its name only after that.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import count

import click
from blake3 import blake3

from pynymph.command.chunks import (
    AGAIN,
    CHUNK,
    SLOTS,
    Conveyor,
    Source,
    Spans,
    about,
    hash_zeros,
    opened,
    stamp,
    write,
    write_at,
)
from pynymph.command.proofs import nonce_option
from pynymph.command.terminal import (
    DIFFERS,
    MODEL_ENGINE,
    Advance,
    Failure,
    bar,
    engine_option,
    explain,
    json_option,
    named,
    open_ring,
    print_json,
    say,
    size,
)
from pynymph.evidence import Log, Part, Transfer
from pynymph.evidence.form import MOST_RECORDS
from pynymph.ring import Ring

SUFFIX = ".pynymph-part"
PIPE = "-"
MOST_OF_EVIDENCE = MOST_RECORDS // 2 * CHUNK
"""Bytes of which there can be evidence: a record of each chunk, and one of it when it is read again."""
_ABORT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors after which the other files of a folder have no chance."""


@dataclass
class Copied:
    """Tell what became of one file."""

    source: str
    target: str
    state: str
    """"copied"; "resumed", some of it was there; "unchanged", all of it was there."""
    bytes: int
    written: int
    """Bytes that were written now."""
    digest: str
    """BLAKE3 of all its bytes, of what arrived in the driver's memory; the same as b3sum's."""
    reread: bool
    """Whether the target was read again after the copy, and its digests were those of what was sent."""


@dataclass
class Report:
    """Tell what a whole command did."""

    engines: list[str] = field(default_factory=list)
    bytes: int = 0
    folders: int = 0
    links: int = 0
    seconds: float = 0.0
    files: list[Copied] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Sockets, pipes and devices in folders."""
    errors: list[str] = field(default_factory=list)


class Copier:
    """Copy files and folders through one ring.

    Args:
        ring: with room for SLOTS entries.
        advance: called with the bytes of sources that were copied, and of targets that were read again.
        log: what records the ring, or None.
    """

    def __init__(self, ring: Ring, advance: Advance, log: Log | None = None) -> None:
        self._conveyor = Conveyor(ring, log)
        self._advance = advance
        self._sent: list[Part] = []
        self._found: list[Part] = []
        self.transfers: list[Transfer] = []
        """Each file as evidence has it, also one that failed."""
        self.report = Report()

    @property
    def engines(self) -> list[str]:
        """The engines that did something."""
        return sorted(self._conveyor.engines)

    def any(self, path: str, target: str) -> None:
        """Copy a file, device or pipe to a file, device or pipe.

        Raises:
            Failure: it could not be done, or the target is not the source.
            OSError: a file can't be read or written.
        """
        if path == PIPE:
            return self._one(Source(0, "standard input", os.fstat(0), stream=True), target)
        with opened(path, os.O_RDONLY) as fd:
            found = os.fstat(fd)
            seeks = stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)
            self._one(Source(fd, path, found, stream=not seeks), target)

    def _one(self, source: Source, target: str) -> None:
        self._sent, self._found = [], []
        name = "standard output" if target == PIPE else target
        try:
            self._choose(source, target)
        except (Failure, OSError) as error:
            number = error.errno if isinstance(error, OSError) else None
            differs = isinstance(error, Failure) and error.status == DIFFERS
            self._note(source, name, -(number or (errno.EBADMSG if differs else errno.EIO)))
            raise
        self._note(source, name, 0, self.report.files[-1])

    def _note(self, source: Source, target: str, status: int, copied: Copied | None = None) -> None:
        """Keep what evidence has of a file. `copied`: None if it failed."""
        names = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in (source.name, target)]
        nbytes = max(source.end(), self._conveyor.reached) if copied is None else copied.bytes
        digest = None if copied is None else bytes.fromhex(copied.digest)
        sent, found = tuple(self._sent), tuple(self._found)
        transfer = Transfer(names[0], names[1], nbytes, status, digest, digest, sent, found, time.time_ns())
        self.transfers.append(transfer)

    def _choose(self, source: Source, target: str) -> None:
        if target == PIPE:
            return self._to_stream(source, 1, "standard output")
        try:
            now = os.stat(target)
        except FileNotFoundError:
            now = None
        if now is None or stat.S_ISREG(now.st_mode):
            if now and not source.stream and os.path.samestat(source.found, now):
                raise Failure(f"{named(source.name)} and {named(target)} are the same file")
            self._to_file(source, os.path.realpath(target), now)
        elif stat.S_ISBLK(now.st_mode):
            self._to_device(source, target)
        else:
            with opened(target, os.O_WRONLY) as out:
                self._to_stream(source, out, target)

    # --- to a file ---

    def _to_file(self, source: Source, target: str, now: os.stat_result | None) -> None:
        if source.regular and now and stamp(source.found) == stamp(now):
            digest = self._same(source, target)
            if digest is not None:
                if (mode := _mode(source.found, now)) != stat.S_IMODE(now.st_mode):
                    with about(target):
                        os.chmod(target, mode)
                self._done(Copied(source.name, target, "unchanged", source.found.st_size, 0, digest, True))
                return
        path = part_of(target)
        with _open_part(path) as part:
            if source.stream:
                os.ftruncate(part, 0)
            had = os.fstat(part).st_size
            total, written, digest, digests = self._fill(source, part, path)
            if source.changed():
                raise Failure(f"{named(source.name)} changed while it was copied; copy it again")
            with about(path, part=not source.stream):
                os.ftruncate(part, total)
                if source.regular:
                    os.fchmod(part, _mode(source.found, os.fstat(part)))
                    os.utime(part, ns=(source.found.st_atime_ns, source.found.st_mtime_ns))
                else:
                    os.fchmod(part, stat.S_IMODE(now.st_mode) if now else 0o666 & ~_umask())
                os.fsync(part)
            self._reread(part, target, digests, total)
            with about(target):
                os.replace(path, target)
                _sync_folder(os.path.dirname(target))
        state = "resumed" if had and written < total else "copied"
        self._done(Copied(source.name, target, state, total, written, digest, True))

    def _fill(self, source: Source, part: int, path: str) -> tuple[int, int, str, list[tuple[int, bytes]]]:
        """Copy all to the part file, and write what it does not have.

        Returns:
            The bytes there are, the bytes written, the digest of all, and offset and digest of each chunk.
        """
        hasher, digests, written, hashed = blake3(), list[tuple[int, bytes]](), 0, 0
        had, end, spans = os.fstat(part).st_size, source.end(), Spans(source.fd)
        # Some files of the kernel have contents, and no size.
        offsets: Iterable[int] = spans.offsets(end, had) if end else count(0, CHUNK)
        with self._conveyor.copy(source.read, offsets, self._sent) as chunks:
            for at, view, digest in chunks:
                self._advance(at - hashed + len(view))
                hash_zeros(hasher, at - hashed)
                hasher.update(view)
                hashed = at + len(view)
                digests.append((at, digest))
                with about(path, part=not source.stream):
                    if at < had:
                        if os.pread(part, len(view), at) != view:
                            written += write_at(part, view, at)
                    else:
                        for begin, stop in spans.data(at, hashed) if end else [(at, hashed)]:
                            written += write_at(part, view[begin - at : stop - at], begin)
        total = hashed
        if end and source.end() == end and not spans.holds_data(hashed, end):
            total = end  # the rest is a hole
        hash_zeros(hasher, total - hashed)
        self._advance(total - hashed)
        return total, written, hasher.hexdigest(), digests

    def _same(self, source: Source, target: str) -> str | None:
        """Return the digest of both files if they have the same bytes. The ring hashes both."""
        hasher, ours = blake3(), []
        with self._conveyor.hash(source.read, count(0, CHUNK), self._sent) as chunks:
            for at, view, digest in chunks:
                hasher.update(view)
                ours.append((at, digest))
        with opened(target, os.O_RDONLY) as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            other = Source(fd, target, source.found, stream=False)
            with self._conveyor.hash(other.read, count(0, CHUNK), self._found) as chunks:
                if [(at, digest) for at, _, digest in chunks] != ours:
                    self._sent, self._found = [], []
                    return None
        self._advance(2 * source.found.st_size)
        return hasher.hexdigest()

    def _reread(self, fd: int, target: str, digests: list[tuple[int, bytes]], total: int) -> None:
        """Read the first `total` bytes of a target again, and have the ring hash them.

        The kernel is asked to drop its page cache of them before.

        Raises:
            Failure: they are not what was sent.
        """
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        written = Source(fd, target, os.fstat(fd), stream=False)

        def read(view: memoryview, at: int) -> int:
            return written.read(view[: max(0, total - at)], at)

        found = 0
        with self._conveyor.hash(read, (at for at, _ in digests), self._found) as chunks:
            for (at, view, digest), (_, sent) in zip(chunks, digests, strict=False):
                if digest != sent:
                    what = f"bytes {at} to {at + len(view)}, read again, are not what was written"
                    raise Failure(f"{named(target)}: {what}; distrust the disk", DIFFERS)
                found += 1
                self._advance(len(view))
        if found != len(digests):
            raise Failure(f"{named(target)} is shorter than what was written; distrust the disk", DIFFERS)

    # --- to what has its name already ---

    def _to_device(self, source: Source, target: str) -> None:
        with opened(target, os.O_RDWR | os.O_EXCL) as out:  # EBUSY if it is mounted
            room, needed = os.lseek(out, 0, os.SEEK_END), source.end()
            if needed > room:
                raise Failure(f"{named(target)} has {room} bytes, and {named(source.name)} has {needed}")
            hasher, digests, total = blake3(), list[tuple[int, bytes]](), 0
            with self._conveyor.copy(source.read, count(0, CHUNK), self._sent) as chunks:
                for at, view, digest in chunks:
                    hasher.update(view)
                    digests.append((at, digest))
                    with about(target):
                        total += write_at(out, view, at)
                    self._advance(len(view))
            if source.changed():
                raise Failure(f"{named(source.name)} changed while it was copied; copy it again")
            with about(target):
                os.fsync(out)
            self._reread(out, target, digests, total)
        self._done(Copied(source.name, target, "copied", total, total, hasher.hexdigest(), True))

    def _to_stream(self, source: Source, out: int, target: str) -> None:
        hasher, total = blake3(), 0
        with self._conveyor.copy(source.read, count(0, CHUNK), self._sent) as chunks:
            for _, view, _ in chunks:
                hasher.update(view)
                with about(target):
                    total += write(out, view)
                self._advance(len(view))
        if source.changed():
            raise Failure(f"{named(source.name)} changed while it was copied; copy it again")
        self._done(Copied(source.name, target, "copied", total, total, hasher.hexdigest(), False))

    def _done(self, copied: Copied) -> None:
        self.report.files.append(copied)
        self.report.bytes += copied.bytes

    # --- folders ---

    def folder(self, source: str, target: str) -> None:
        """Copy a folder with all that is in it.

        A folder that is not there yet is made under another name, and gets its own if all went well. One
        that is there gets the files of the source beside its own.

        Raises:
            Failure: it could not be done.
            OSError: no file can be written any more.
        """
        inside = os.path.join(os.path.realpath(source), "")
        if os.path.join(os.path.realpath(target), "").startswith(inside):
            raise Failure(f"{named(target)} is in {named(source)}: a folder can't be copied into itself")
        if os.path.lexists(target):
            self._tree(source, target, alone=False)
        else:
            made = part_of(os.path.join(os.path.realpath(os.path.dirname(target)), os.path.basename(target)))
            self._tree(source, made, alone=True)
            if not self.report.errors:
                with about(target):
                    os.rename(made, target)
                    _sync_folder(os.path.dirname(target))
                self.transfers = [
                    replace(each, target=target + each.target.removeprefix(made)) for each in self.transfers
                ]
        if failed := len(self.report.errors):
            left = f"{named(source)}: {failed} of its files could not be copied; {AGAIN}"
            raise Failure(left)

    def _tree(self, source: str, target: str, *, alone: bool) -> None:
        """Copy a folder; if `alone`, nothing but its files is in the target afterwards."""
        with about(target):
            with contextlib.suppress(FileExistsError):
                os.mkdir(target, 0o700)
            if not os.path.isdir(target) or os.path.islink(target):
                raise NotADirectoryError(errno.ENOTDIR, "is no folder, and one has to be there", target)
        there = os.stat(source)
        with os.scandir(source) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
        if alone:
            os.chmod(target, 0o700)  # an earlier try may have given it the source's mode
            _remove_others(target, entries)
        for entry in entries:
            to = os.path.join(target, entry.name)
            try:
                self._entry(entry, to, alone=alone)
            except Failure as failure:
                if failure.status == DIFFERS:
                    raise
                self._failed(failure.message)
            except OSError as error:
                if error.errno in _ABORT or error.filename is None:
                    raise
                self._failed(explain(error))
        self.report.folders += 1
        with about(target):
            os.chmod(target, _mode(there, os.stat(target)))
            os.utime(target, ns=(there.st_atime_ns, there.st_mtime_ns))
            _sync_folder(target)

    def _entry(self, entry: os.DirEntry[str], target: str, *, alone: bool) -> None:
        if entry.is_symlink():
            self._link(entry.path, target)
        elif entry.is_dir():
            self._tree(entry.path, target, alone=alone)
        elif entry.is_file():
            if os.path.islink(target):
                os.unlink(target)  # a copy through it could be anywhere
            if os.path.isdir(target):
                raise IsADirectoryError(errno.EISDIR, "is a folder, and a file has to be there", target)
            self.any(entry.path, target)
        else:
            self.report.skipped.append(entry.path)
            say(f"{named(entry.path)} is a socket, pipe or device, and is not copied")

    def _link(self, source: str, target: str) -> None:
        leads = os.readlink(source)
        self.report.links += 1
        with contextlib.suppress(OSError):
            if os.readlink(target) == leads:
                return
        part = part_of(target)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        there = os.lstat(source)
        os.symlink(leads, part)
        os.utime(part, ns=(there.st_atime_ns, there.st_mtime_ns), follow_symlinks=False)
        os.replace(part, target)

    def _failed(self, message: str) -> None:
        self.report.errors.append(message)
        say(message)


def part_of(target: str) -> str:
    """Return where a file or folder is made before it gets its name: beside it."""
    folder, name = os.path.split(target)
    short = f".{name}{SUFFIX}"
    if len(os.fsencode(short)) > 255:
        short = f".{blake3(os.fsencode(name)).hexdigest()[:32]}{SUFFIX}"
    return os.path.join(folder, short)


@contextlib.contextmanager
def _open_part(path: str) -> Iterator[int]:
    """Open a part file, old or new, and lock it."""
    with opened(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
            raise Failure(f"{named(path)} is in the way, and is no part of a copy of yours; remove it")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(found, os.lstat(path)):  # it has got its name meanwhile
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            raise Failure(f"another copy writes {named(path)}; wait until it has ended") from None
        yield fd


def _mode(source: os.stat_result, target: os.stat_result) -> int:
    """The source's mode. A file of somebody else's must not run as its new owner."""
    same = (source.st_uid, source.st_gid) == (target.st_uid, target.st_gid)
    return stat.S_IMODE(source.st_mode) & (0o7777 if same else 0o1777)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _remove_others(folder: str, entries: list[os.DirEntry[str]]) -> None:
    """Remove what an earlier try has left in a folder that is being made, and the source does not have."""
    kinds = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    kinds |= {os.path.basename(part_of(name)): False for name in kinds}
    with os.scandir(folder) as scanned:
        for entry in scanned:
            is_folder = entry.is_dir(follow_symlinks=False)
            if kinds.get(entry.name) != is_folder:
                if is_folder:
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)


def _sync_folder(path: str) -> None:
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _place(source: str, target: str) -> str:
    """Where the copy goes: into a folder, under the source's name, or to the target itself."""
    if target == PIPE:
        return target
    if os.path.isdir(target):
        if source == PIPE:
            raise Failure(f"{named(target)} is a folder; name the file that standard input goes to")
        name = os.path.basename(os.path.abspath(source))
        if not name:
            raise Failure(f"{named(source)} has no name; name the folder that it goes to")
        return os.path.join(target, name)
    if target.endswith("/") and not (source != PIPE and os.path.isdir(source)):
        raise Failure(f"there is no folder {named(target)}")
    target = target.rstrip("/") or target
    if not os.path.isdir(os.path.dirname(target) or "."):
        raise Failure(f"there is no folder {named(os.path.dirname(target))}")
    return target


def _total(source: str) -> int | None:
    """Bytes of a file or folder, or None where nobody knows."""
    if source == PIPE:
        return None
    if not os.path.isdir(source):
        found = os.stat(source)
        return found.st_size if stat.S_ISREG(found.st_mode) else None
    total = 0
    for folder, _, names in os.walk(source):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


@click.command(short_help="Copy files, folders, devices and pipes, verified.")
@click.argument("source", metavar="SRC", type=click.Path(allow_dash=True, readable=False))
@click.argument("target", metavar="DST", type=click.Path(allow_dash=True, readable=False))
@click.option("-r", "--recursive", is_flag=True, help="Copy a folder with all that is in it.")
@engine_option(
    "auto", MODEL_ENGINE, default="auto",
    help="The engine that moves the bytes, of `pynymph info`; auto; or model, the driver's model in Python.",
)  # fmt: skip
@click.option("--evidence", metavar="FILE", help="Write evidence of the copy to FILE.")
@click.option("--by", metavar="NAME", help="Who makes the evidence (default: your user name).")
@nonce_option("Have the driver attest the evidence, in answer to this nonce.")
@json_option
def copy(
    source: str,
    target: str,
    recursive: bool,
    engine: str,
    evidence: str | None,
    by: str | None,
    nonce: bytes | None,
    as_json: bool,
) -> None:
    """Copy SRC to DST through the ring, and verify the copy.

    SRC and DST are files, block devices, or - for standard input and output. A DST that is a folder gets a
    copy under the name of SRC. The copy of a file gets its name only once it is whole and verified; after an
    interruption the same command goes on where it stopped.
    """
    if evidence is None and (by is not None or nonce is not None):
        raise click.UsageError("--by and --nonce belong to --evidence")
    for path in (source, target):
        if not path:
            raise Failure("a file's name is empty")
    is_folder = source != PIPE and os.path.isdir(source)
    if is_folder and not recursive:
        raise Failure(f"{named(source)} is a folder; give -r")
    if is_folder and target == PIPE:
        raise Failure(f"{named(source)} is a folder, which standard output can't take; tar can")
    if source != PIPE:
        os.stat(source)
    place = _place(source, target)
    if is_folder and os.path.lexists(place) and not os.path.isdir(place):
        raise Failure(f"{named(place)} is no folder")
    total = _total(source)
    log = None if evidence is None else Log(_user() if by is None else by)
    if log is not None and (total or 0) > MOST_OF_EVIDENCE:
        most = size(MOST_OF_EVIDENCE)
        raise Failure(
            f"evidence is of at most {most}, and {named(source)} has {size(total or 0)}; copy parts"
        )
    began = time.monotonic()
    with open_ring(engine, SLOTS, log) as ring, bar("copy", total and 2 * total) as advance:
        if log is not None and nonce is not None:
            log.evidence(nonce)  # before all else, if nobody can attest
        copier = Copier(ring, advance, log)
        failed: Failure | OSError | None = None
        try:
            if is_folder:
                copier.folder(source, place)
            else:
                copier.any(source, place)
        except (Failure, OSError) as error:
            failed = error
        except KeyboardInterrupt:
            again = f"; {AGAIN}" if is_folder or os.path.isfile(source) else ""
            raise KeyboardInterrupt(f"interrupted{again}") from None
        if log is not None and evidence is not None:
            try:
                for transfer in copier.transfers:
                    log.add_transfer(transfer)
                log.save(evidence, nonce)
            except OSError as error:
                if failed is not None:
                    say(explain(error))
                failed = failed or error
        if failed is not None:
            if as_json:
                message = failed.message if isinstance(failed, Failure) else explain(failed)
                copier.report.errors.append(message)
                _show(copier, began, target, as_json)
            raise failed
    _show(copier, began, target, as_json)


def _user() -> str:
    """Return the name of the user, or the number of one without a name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _show(copier: Copier, began: float, target: str, as_json: bool) -> None:
    report, aside = copier.report, target == PIPE
    report.seconds, report.engines = time.monotonic() - began, copier.engines
    if as_json:
        print_json(asdict(report), err=aside)
        return
    by = ", ".join(report.engines) or "no engine"
    if report.folders or len(report.files) != 1:
        counts = ((len(report.files), "file"), (report.links, "link"), (report.folders, "folder"))
        files, links, folders = (f"{number} {name}{'s' * (number != 1)}" for number, name in counts)
        line = f"{files}, {links} and {folders}"
    else:
        one = report.files[0]
        line = f"{one.digest}  {named(one.target)}"
    reread = "read again" if all(one.reread for one in report.files) else "not read again"
    click.echo(f"{line}: {size(report.bytes)} by {by}, {reread}, {report.seconds:.3g} s", err=aside)
    if not aside:
        sys.stdout.flush()
