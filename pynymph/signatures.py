# SPDX-License-Identifier: MIT
"""Signatures of a model's files, with a key or a certificate, and without a network.

>>> signatures.sign("model/", "model.sig", key="key.pem")
>>> signatures.verify("model/", "model.sig", key="public.pem")                     # or a SignatureError
>>> tensors = signatures.load("model/", "model.sig", key="public.pem", device="cuda:0")     # or the same

A signature is a bundle of OpenSSF model signing (OMS), which the program `model-signing` writes and verifies,
too. It lists every file below the model's folder with its digest. SHA-256 digests are for other programs;
BLAKE3 digests beside them are verified here, since they are faster, and a GPU makes them of its memory.

The module needs the extra `pynymph[signatures]`. It is long because what signs and what verifies are of
the same private types.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from blake3 import blake3

from pynymph import bundles, signing_keys, weights
from pynymph.errors import ArgumentError, NymphError, VerifyError
from pynymph.weights import Progress, Wrong

PREDICATE = "https://model_signing/signature/v1.0"

GIT = (".git", ".gitattributes", ".github", ".gitignore")
"""Names of the model's folder that are not signed: model-signing ignores them when it verifies."""

_SINGLE = "."
"""Name in a statement of a model that is one file."""
_DIGEST_BYTES = {"sha256": 32, "blake2b": 64, "blake3": 32}
_BUFFER = 8 << 20

Path_ = str | os.PathLike[str]


@dataclass(frozen=True)
class Part:
    """Describe the digest of a file, or of a shard of it."""

    algorithm: str
    digest: bytes
    begin: int = 0
    end: int | None = None
    """End of the shard in bytes; None if the digest is of the whole file."""


@dataclass(frozen=True)
class Statement:
    """Describe what a signature says."""

    model: str
    """Name that the model's folder had. It may have another one now."""
    signer: str
    files: Mapping[str, tuple[Part, ...]]
    """Digests by name in the folder, with "/"; "." if the model is one file."""
    links: bool = False
    """Whether some of the names may be symbolic links."""
    ignored: tuple[str, ...] = ()
    """Names of files and folders that are not signed."""


@dataclass
class Report:
    """Keep the result of verify()."""

    model: str
    signer: str
    algorithms: list[str] = field(default_factory=list)
    files: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    wrong: list[Wrong] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    """Names of files that are not signed."""
    renamed: dict[str, str] = field(default_factory=dict)
    """By signed name: the name of the file that has the same bytes."""
    ignored: list[str] = field(default_factory=list)
    """Names that are there, and that the signature leaves out by its own words."""

    @property
    def ok(self) -> bool:
        """Whether the folder has all signed files as they were signed, and no others."""
        return not (self.wrong or self.missing or self.unexpected or self.renamed)

    def lines(self) -> list[str]:
        """Describe each fault in one line."""
        lines = [
            f"{signing_keys.shown(each.name)}: {each.problem}{weights.spans(each.ranges)}"
            for each in self.wrong
        ]
        lines += [f"{signing_keys.shown(name)}: missing" for name in self.missing]
        lines += [f"{signing_keys.shown(name)}: not signed" for name in self.unexpected]
        return lines + [
            f"{signing_keys.shown(name)}: is {signing_keys.shown(now)} here"
            for name, now in self.renamed.items()
        ]


class SignatureError(VerifyError):
    """EBADMSG: a model is not what its signature says; `report` has the details.

    Args:
        report: what verify() found.
    """

    def __init__(self, report: Report) -> None:
        lines = report.lines()
        some = "; ".join(lines[:5]) + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")
        super().__init__(errno.EBADMSG, f"this model is not as signed: {some}; do not use it, get it again")
        self.report = report


def sign(
    model: Path_,
    signature: Path_,
    *,
    key: Path_,
    certificates: Path_ | None = None,
    progress: Progress | None = None,
) -> Statement:
    """Sign all files of a model.

    Args:
        model: a folder, or a file.
        signature: path of the signature to write; an older signature is replaced.
        key: PEM file of a private key on the curve P-256, P-384 or P-521.
        certificates: PEM file of the key's certificate, and then of those between it and the root.
        progress: callback with the bytes done and all bytes.

    Returns:
        What was signed.

    Raises:
        ArgumentError: EINVAL, the key, a certificate or a file is not of a kind that can be signed with, or
            signed; or `signature` is another file, which would be lost.
        NymphError: a file can't be read or written; `errno` is that of the failure. ENOSYS, `cryptography` is
            not installed.
    """
    signer = bundles.Signer(key, certificates)
    bundles.keep_other_files(signature)
    root = _root(model)
    ignored = [*GIT, *_name_below(root, signature)] if root.is_dir() else []
    found = {entry.name: entry for entry in _walk(root, ignored)}
    if problems := [
        f"{signing_keys.shown(entry.name)} {entry.problem}" for entry in found.values() if entry.problem
    ]:
        raise ArgumentError(errno.EINVAL, f"{'; '.join(problems[:5])}; remove this, or replace it by a file")
    if not found:
        raise NymphError(errno.ENOENT, f"{model} has no files; give a model's folder")
    # In the order of model-signing, so that the digest of the subject is the same, too.
    names = sorted(found, key=lambda name: PurePosixPath(name).parts)
    wanted = [_Job(found[name].path, 0, None, ("sha256", "blake3")) for name in names]
    digests = dict(zip(names, _hash_all(wanted, progress), strict=True))
    # model-signing does not look below links to folders: such names are in our own field alone.
    plain = [name for name in names if not found[name].below_link]
    predicate: dict[str, Any] = {
        "serialization": {
            "method": "files",
            "hash_type": "sha256",
            "allow_symlinks": any(entry.link for entry in found.values()),
        },
        "resources": _resources(plain, "sha256", digests),
        "blake3_resources": _resources(names, "blake3", digests),
    }
    if ignored:
        predicate["serialization"]["ignore_paths"] = ignored
    of_all = hashlib.sha256(b"".join(digests[name]["sha256"] for name in plain)).hexdigest()
    name = os.fsencode(root.name).decode("utf-8", "replace")
    payload = bundles.canonical_json(
        {
            "_type": bundles.STATEMENT,
            "subject": [{"name": name, "digest": {"sha256": of_all}}],
            "predicateType": PREDICATE,
            "predicate": predicate,
        }
    )
    weights.replace_file(signature, signer.sign(payload))
    return _statement(str(signature), payload, signer.name)


def read(signature: Path_, *, key: Path_ | None = None, ca: Path_ | None = None) -> Statement:
    """Verify a signature itself, and read what it says. No file of the model is looked at.

    Args:
        signature: path of the signature.
        key: PEM file of the signer's public key.
        ca: PEM file of root certificates, one of which the signer's certificate must descend from. The chain
            is verified for the time at which the signer's certificate begins to be valid, as model-signing
            does it: a signature outlives its certificate.

    Returns:
        What was signed.

    Raises:
        VerifyError: EBADMSG, the signature was not made with this key, or with a certificate of these roots.
        ArgumentError: EINVAL, the signature, the key or a certificate is damaged, or of an unknown kind.
        NymphError: a file can't be read; `errno` is that of the failure. ENOSYS, `cryptography` is not
            installed.
    """
    return _statement(str(signature), *bundles.read(signature, key=key, ca=ca))


def verify(
    model: Path_,
    signature: Path_,
    *,
    key: Path_ | None = None,
    ca: Path_ | None = None,
    progress: Progress | None = None,
) -> Report:
    """Verify all files of a model against a signature, of this module or of model-signing.

    Args:
        model: a folder, or a file.
        signature: path of the signature.
        key: as for read().
        ca: as for read().
        progress: callback with the bytes done and all bytes.

    Returns:
        A Report without faults.

    Raises:
        SignatureError: EBADMSG, a file is missing, not signed, changed, renamed or a link; `report` says
            which.
        VerifyError: as read() raises it.
        ArgumentError: as read() raises it.
        NymphError: as read() raises it.
    """
    return _compare(_root(model), signature, read(signature, key=key, ca=ca), {}, progress)


def load(
    path: Path_,
    signature: Path_,
    *,
    key: Path_ | None = None,
    ca: Path_ | None = None,
    device: str = "cuda:0",
    loader: str = "safetensors",
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Load a signed model, and verify its tensors in the memory that they were loaded to.

    Digests of whole safetensors files are made from the tensors, and the files themselves are not read for
    it: by the GPU where the signature has BLAKE3 digests; else by the CPU, SHA-256 of bytes that it reads
    back. All other files are verified as verify() does it. Later, `weights.manifest(tensors)` is of tensors
    that the signature covers, and BLAKE3 by the GPU alone verifies them.

    Args:
        path: folder of safetensors files.
        signature: path of the signature.
        key: as for read().
        ca: as for read().
        device: name of the device in torch.
        loader: as for weights.load(), of safetensors files.
        progress: callback with the bytes done and all bytes.
        options: options of the loader.

    Returns:
        Tensors by name.

    Raises:
        SignatureError: as verify() raises it.
        VerifyError: as read() raises it.
        ArgumentError: as read() and weights.file_digest() raise it; EINVAL also if the signature has digests
            of shards alone, or the model is no safetensors files.
        NymphError: as read() and weights.load() raise it.
    """
    return load_and_report(
        path, signature, key=key, ca=ca, device=device, loader=loader, progress=progress, **options
    )[0]


def load_and_report(
    path: Path_,
    signature: Path_,
    *,
    key: Path_ | None = None,
    ca: Path_ | None = None,
    device: str = "cuda:0",
    loader: str = "safetensors",
    progress: Progress | None = None,
    **options: Any,
) -> tuple[dict[str, Any], Report]:
    """Do what load() does, and return the Report, too."""
    statement = read(signature, key=key, ca=ca)
    root = _root(path)
    live: dict[str, Callable[..., bytes]] = {}
    tensors: dict[str, Any] = {}
    for file in weights.shards(root):
        name = file.relative_to(root).as_posix() if root.is_dir() else _SINGLE
        parts = statement.files.get(name, ())
        if any(part.end is not None or part.algorithm == "blake2b" for part in parts):
            why = f"{signature} has no BLAKE3 or SHA-256 of {signing_keys.shown(name)} as a whole"
            raise ArgumentError(errno.EINVAL, f"{why}; have it signed again, or verify files")
        header = weights.read_header(file)
        live[name] = partial(weights.file_digest, header, tensors)
    tensors.update(weights.loaded(path, device, loader, **options))
    return tensors, _compare(root, signature, statement, live, progress)


# ---- files ----


@dataclass(frozen=True)
class _Entry:
    """Describe a file below a model's folder, or something that is none."""

    name: str
    path: Path
    link: bool = False
    """Whether the name, or a folder of it, is a symbolic link."""
    below_link: bool = False
    problem: str = ""


def _root(model: Path_) -> Path:
    try:
        return Path(model).resolve(strict=True)
    except (OSError, RuntimeError) as error:  # the latter is a loop of links, before Python 3.13
        number = getattr(error, "errno", None) or errno.ELOOP
        raise NymphError(number, f"{model} can't be read: {os.strerror(number)}") from None


def _name_below(root: Path, path: Path_) -> Iterator[str]:
    """Yield the name of a file below a folder, if it is there."""
    place = Path(path).parent.resolve() / Path(path).name
    if place.is_relative_to(root):
        yield place.relative_to(root).as_posix()


def _walk(root: Path, ignored: Iterable[str]) -> Iterator[_Entry]:
    """Yield all that is below a folder. Links are followed within the folder, and named if they leave it."""
    if not root.is_dir():
        yield _Entry(_SINGLE, root, problem="" if root.is_file() else "is no file")
        return
    leave_out = set(ignored)
    folders = [(root, "", False)]
    while folders:
        folder, prefix, linked = folders.pop()
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            raise signing_keys.unreadable(folder, error) from error
        for entry in entries:
            name, path, link = prefix + entry.name, Path(entry.path), entry.is_symlink()
            if name in leave_out:
                continue
            problem = ""
            if link:
                try:
                    path = path.resolve(strict=True)
                    if not path.is_relative_to(root):
                        problem = "is a link that leaves the model's folder"
                except (OSError, RuntimeError):
                    problem = "is a link that leads to nothing"
            if not problem and path.is_dir():
                if not (link and linked):
                    folders.append((path, f"{name}/", linked or link))
                    continue
                # Else a few links to folders could make more names than there is time for, or endless ones.
                problem = "is a link to a folder, in a folder that is reached by a link"
            elif not problem and not path.is_file():
                problem = "is no file"
            elif not problem and not _is_text(name):
                problem = "has a name that is no UTF-8"
            yield _Entry(name, path, link or linked, linked, problem)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Hasher(Protocol):
    def update(self, data: memoryview, /) -> object: ...

    def digest(self) -> bytes: ...


def _hasher(algorithm: str) -> _Hasher:
    if algorithm == "blake3":
        hasher: _Hasher = blake3(max_threads=blake3.AUTO)
        return hasher
    return hashlib.new(algorithm)


@dataclass(frozen=True)
class _Job:
    """Describe a range of a file to hash, by several algorithms in one pass."""

    path: Path
    begin: int
    end: int | None
    algorithms: tuple[str, ...]

    def run(self, tell: Callable[[int], None]) -> dict[str, bytes]:
        """Hash the range. A file that ends before the range does has other digests, and no error."""
        made = {algorithm: _hasher(algorithm) for algorithm in self.algorithms}
        try:
            # Not to wait for a writer, should it have become a pipe.
            opened = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(opened, "rb", buffering=0) as file, ThreadPoolExecutor(len(made)) as pool:
                before = os.fstat(opened)
                if not stat.S_ISREG(before.st_mode):
                    raise NymphError(
                        errno.EINVAL, f"{signing_keys.shown(str(self.path))} is no file any more"
                    )
                rest = before.st_size - self.begin if self.end is None else self.end - self.begin
                buffer = memoryview(bytearray(max(0, min(_BUFFER, rest))))
                file.seek(self.begin)
                while rest > 0 and (n := file.readinto(buffer[:rest])):
                    part = buffer[:n]
                    if len(made) > 1:
                        list(pool.map(lambda hasher, part=part: hasher.update(part), made.values()))
                    else:
                        for hasher in made.values():
                            hasher.update(part)
                    tell(n)
                    rest -= n
                after = os.fstat(opened)
        except OSError as error:
            raise signing_keys.unreadable(self.path, error) from error
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise NymphError(
                errno.EBUSY, f"{signing_keys.shown(str(self.path))} changed while it was read; try again"
            )
        return {algorithm: hasher.digest() for algorithm, hasher in made.items()}


def _hash_all(jobs: Sequence[_Job], progress: Progress | None) -> list[dict[str, bytes]]:
    """Hash ranges of files, several at a time."""
    done, total = 0, 0
    if progress is not None:
        total = sum((_size(job.path) if job.end is None else job.end) - job.begin for job in jobs)

    def tell(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(min(done, total), total)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda job: job.run(tell), jobs))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise signing_keys.unreadable(path, error) from error


def _compare(
    root: Path,
    signature: Path_,
    statement: Statement,
    live: Mapping[str, Callable[..., bytes]],
    progress: Progress | None,
) -> Report:
    """Compare a model's files with a statement.

    Args:
        root: the model.
        signature: path of the signature, which is no part of the model.
        statement: what was signed.
        live: by name: makes the digest of the file, by an algorithm, without reading it.
        progress: as for verify().
    """
    began = time.monotonic()
    report = Report(statement.model, statement.signer, files=len(statement.files))
    # What was signed is looked at, whatever a list of other names says.
    signed = map(PurePosixPath, statement.files)
    above = {str(each) for path in signed for each in (path, *path.parents)}
    ignored = {name for name in (*statement.ignored, *_name_below(root, signature)) if name not in above}
    found = {entry.name: entry for entry in _walk(root, ignored)}
    if root.is_dir():
        report.ignored = sorted(name for name in ignored if os.path.lexists(root / name))
    jobs: list[tuple[str, Part, _Job | None]] = []
    for name, parts in statement.files.items():
        entry = found.pop(name, None)
        if entry is None:
            report.missing.append(name)
        elif entry.problem:
            report.wrong.append(Wrong(name, entry.problem))
        elif entry.link and not statement.links:
            report.wrong.append(Wrong(name, "is a link, and a file was signed"))
        else:
            report.nbytes += _size(entry.path)
            if name in live:
                jobs.append((name, parts[0], None))
            elif parts[-1].end not in (None, _size(entry.path)):
                problem = f"has {_size(entry.path)} bytes instead of {parts[-1].end}"
                report.wrong.append(Wrong(name, problem))
            else:
                jobs += [(name, part, _job(entry.path, part)) for part in parts]
    report.algorithms = sorted({part.algorithm for _, part, _ in jobs})
    made = iter(_hash_all([job for _, _, job in jobs if job is not None], progress))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        of_live = pool.map(
            lambda each: live[each[0]](algorithm=each[1].algorithm),
            [each for each in jobs if each[2] is None],
        )
        for name, part, job in jobs:
            now = next(of_live) if job is None else next(made)[part.algorithm]
            if now != part.digest:
                ranges = () if part.end is None else ((part.begin, part.end),)
                report.wrong.append(Wrong(name, "differs" + (" in memory" if job is None else ""), ranges))
    report.wrong += [Wrong(entry.name, entry.problem) for entry in found.values() if entry.problem]
    spare = {name: entry for name, entry in found.items() if not entry.problem}
    _find_renamed(report, statement, spare)
    report.unexpected = sorted(spare)
    report.seconds = time.monotonic() - began
    if not report.ok:
        raise SignatureError(report)
    return report


def _job(path: Path, part: Part) -> _Job:
    return _Job(path, part.begin, part.end, (part.algorithm,))


def _find_renamed(report: Report, statement: Statement, spare: dict[str, _Entry]) -> None:
    """Find missing files among those that are not signed, by their digests."""
    digests: dict[_Job, bytes] = {}
    for missing in list(report.missing):
        parts = statement.files[missing]
        for name, entry in spare.items():
            if parts[-1].end not in (None, _size(entry.path)):
                continue
            for part in parts:
                job = _job(entry.path, part)
                if job not in digests:
                    digests[job] = job.run(lambda nbytes: None)[part.algorithm]
                if digests[job] != part.digest:
                    break
            else:
                report.renamed[missing] = name
                report.missing.remove(missing)
                del spare[name]
                break


# ---- statements ----


def _resources(
    names: Iterable[str], algorithm: str, digests: Mapping[str, Mapping[str, bytes]]
) -> list[dict[str, str]]:
    return [
        {"name": name, "algorithm": algorithm, "digest": digests[name][algorithm].hex()} for name in names
    ]


def _statement(name: str, payload: bytes, signer: str) -> Statement:
    """Read a payload whose signature was verified."""
    statement = bundles.parse(name, payload)
    try:
        kinds = statement["_type"], statement["predicateType"]
        if kinds != (bundles.STATEMENT, PREDICATE):
            raise ValueError(f"it is a {kinds[1]!r} instead of {PREDICATE!r}")
        (subject,) = statement["subject"]
        predicate = statement["predicate"]
        serialization = predicate["serialization"]
        method = serialization["method"]
        if method not in ("files", "shards"):
            raise ValueError(f"{method!r} is no known method")
        files: dict[str, list[Part]] = {}
        listed = hashlib.sha256()
        for resource in predicate["resources"]:
            path, part = _part(resource, method == "shards")
            files.setdefault(path, []).append(part)
            listed.update(part.digest)
        if listed.hexdigest() != subject["digest"]["sha256"]:
            raise ValueError("the digest of its subject is not that of its resources")
        for path, parts in files.items():
            parts.sort(key=lambda part: part.begin)
            ends = [0, *(part.end for part in parts)]
            if [part.begin for part in parts] != ends[:-1]:
                raise ValueError(f"the parts of {path!r} leave gaps, or are there twice")
        quick = [_part(resource, False) for resource in predicate.get("blake3_resources", [])]
        if len(dict(quick)) != len(quick) or (quick and not files.keys() <= dict(quick).keys()):
            raise ValueError("its BLAKE3 digests are not of all files, or some are there twice")
        files |= {path: [part] for path, part in quick}
        if not files:
            raise ValueError("it is of no file")
        if _SINGLE in files and len(files) > 1:
            raise ValueError("it is of a folder and of a file")
        ignored = [str(path) for path in serialization.get("ignore_paths", [])]
        return Statement(
            str(subject["name"]),
            signer,
            {path: tuple(files[path]) for path in sorted(files)},
            serialization["allow_symlinks"] is True,
            tuple(path for path in ignored if _is_name(path) and path != _SINGLE),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise bundles.damaged(name, bundles.why(error)) from None


def _part(resource: Any, sharded: bool) -> tuple[str, Part]:
    """Read a resource. Returns the name of the file, and the Part."""
    path, named = resource["name"], resource["algorithm"]
    begin, end = 0, None
    if sharded:
        path, *numbers = path.rsplit(":", 2)
        if len(numbers) != 2 or not all(re.fullmatch("[0-9]{1,18}", number) for number in numbers):
            raise ValueError(f"{resource['name']!r} is no name of a shard")
        begin, end = map(int, numbers)
        named = re.sub(r"-sharded-[0-9]+(\.0)?$", "", named)
    if not isinstance(path, str) or not _is_name(path):
        raise ValueError(f"{path!r} is no name of a file")
    if named not in _DIGEST_BYTES:
        raise ValueError(f"{named!r} is no known digest")
    digest = bytes.fromhex(resource["digest"])
    if len(digest) != _DIGEST_BYTES[named] or (end is not None and end <= begin):
        raise ValueError(f"the digest of {resource['name']!r} is not of its length")
    return path, Part(named, digest, begin, end)


def _is_name(path: str) -> bool:
    """Tell whether a path is in its shortest form, and leads to below the model's folder."""
    pure = PurePosixPath(path)
    return str(pure) == path and not pure.is_absolute() and ".." not in pure.parts and "\0" not in path
