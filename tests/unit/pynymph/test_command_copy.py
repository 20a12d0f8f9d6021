# SPDX-License-Identifier: MIT
"""`pynymph copy`, on the model of the driver: all kinds of sources and targets, and all that goes wrong."""

import errno
import fcntl
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import doc_blocks
import pytest
from blake3 import blake3
from click.testing import CliRunner
from pynymph_command import PYNYMPH, refused, run

from pynymph import Ring
from pynymph.command import cli
from pynymph.command.chunks import CHUNK, SLOTS
from pynymph.command.copying import Copier, part_of
from pynymph.command.terminal import DIFFERS, Failure
from pynymph.ring import DEVICE, MODEL

MIB = 1 << 20
COPY = [*PYNYMPH, "copy", "--engine", "model"]


def data(nbytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(nbytes)


def copy(*arguments: Any, **options: Any) -> "subprocess.CompletedProcess[str]":
    return run("copy", "--engine", "model", *arguments, **options)


def report(*arguments: Any, **options: Any) -> Any:
    done = copy("--json", *arguments, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def left(folder: Path) -> list[str]:
    """The part files in a folder."""
    return sorted(name for name in os.listdir(folder) if name.endswith(".pynymph-part"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(data(3 * CHUNK + 12345))
    return path


# --- files ---


SIZES = [0, 1, 4095, CHUNK - 1, CHUNK, CHUNK + 1, SLOTS * CHUNK, 3 * SLOTS * CHUNK + 7]


@pytest.mark.parametrize("nbytes", SIZES)
def test_a_file_of_any_size_arrives_with_its_digest(tmp_path: Path, nbytes: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data(nbytes))
    (file,) = report(source, target)["files"]
    assert target.read_bytes() == source.read_bytes()
    assert file == {
        "source": str(source), "target": str(target), "state": "copied", "bytes": nbytes, "written": nbytes,
        "digest": blake3(source.read_bytes()).hexdigest(), "reread": True,
    }  # fmt: skip
    assert left(tmp_path) == []


def test_the_line_for_people_has_digest_engine_and_what_was_verified(tmp_path: Path, source: Path) -> None:
    done = copy(source, tmp_path / "target")
    assert (done.returncode, done.stderr) == (0, "")
    digest = blake3(source.read_bytes()).hexdigest()
    expected = rf"{digest}  {tmp_path}/target: 1\.5\d* MiB by model, read again, [\d.]+ s\n"
    assert re.fullmatch(expected, done.stdout)


def test_the_engine_is_named(tmp_path: Path, source: Path) -> None:
    assert report(source, tmp_path / "target")["engines"] == ["model"]


def test_mode_and_times_are_those_of_the_source(tmp_path: Path, source: Path) -> None:
    source.chmod(0o751)
    os.utime(source, ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
    report(source, tmp_path / "target")
    there = (tmp_path / "target").stat()
    assert (there.st_mode & 0o7777, there.st_mtime_ns) == (0o751, 1_100_000_000_987_654_321)


def test_a_target_that_is_there_is_replaced_in_one_step(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    with target.open("rb") as opened:
        report(source, target)
        assert opened.read() == b"old"  # nobody saw a half of it
    assert target.read_bytes() == source.read_bytes()


def test_a_target_that_is_a_folder_gets_the_name_of_the_source(tmp_path: Path, source: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert report(source, tmp_path / "folder")["files"][0]["target"] == str(tmp_path / "folder/source")


def test_a_target_that_is_a_link_stays_one(tmp_path: Path, source: Path) -> None:
    (tmp_path / "there").write_bytes(b"old")
    (tmp_path / "link").symlink_to("there")
    report(source, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_bytes() == source.read_bytes()


def test_the_same_again_writes_nothing(tmp_path: Path, source: Path) -> None:
    report(source, tmp_path / "target")
    (file,) = report(source, tmp_path / "target")["files"]
    assert (file["state"], file["written"]) == ("unchanged", 0)
    assert file["digest"] == blake3(source.read_bytes()).hexdigest()


def test_bytes_count_and_not_the_time(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    report(source, target)
    there = target.stat()
    with target.open("r+b") as file:
        file.seek(CHUNK + 5)
        file.write(b"x")
    os.utime(target, ns=(there.st_atime_ns, there.st_mtime_ns))
    (file,) = report(source, target)["files"]
    assert file["state"] == "copied"
    assert target.read_bytes() == source.read_bytes()


NAMES = ["with space", "-r", "new\nline", "quote'\"", "ünï", "\udcff\udcfe", "%s", "a" * 255]


@pytest.mark.parametrize("name", NAMES)
def test_odd_names(tmp_path: Path, source: Path, name: str) -> None:
    done = copy("--", source, name, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / name).read_bytes() == source.read_bytes()
    assert done.stdout.count("\n") == 1
    done = copy("--json", "--", tmp_path / name, "back", cwd=tmp_path)
    assert json.loads(done.stdout)["files"][0]["source"] == str(tmp_path / name)
    assert left(tmp_path) == []


def test_a_file_without_a_size_is_read_to_its_end(tmp_path: Path) -> None:
    report("/proc/version", tmp_path / "version")
    assert (tmp_path / "version").read_bytes() == Path("/proc/version").read_bytes()


# --- holes ---


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("had", [False, True], ids=["new", "over an old part"])
def test_holes_stay_holes(tmp_path: Path, had: bool) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        for at in (0, 20 * MIB + 8192, 41 * MIB):
            file.seek(at)
            file.write(data(4096, at))
        file.truncate(64 * MIB)
    if allocated(source) > MIB:
        pytest.skip("this file system has no holes")
    if had:
        Path(part_of(str(target))).write_bytes(data(30 * MIB))
    (file,) = report(source, target)["files"]
    assert target.stat().st_size == 64 * MIB
    assert target.read_bytes() == source.read_bytes()
    assert file["digest"] == blake3(source.read_bytes()).hexdigest()
    if not had:
        assert allocated(target) <= allocated(source)
        assert file["written"] == 3 * 4096


def test_a_file_that_is_one_hole(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(3 * MIB + 1)
    (file,) = report(source, target)["files"]
    assert target.read_bytes() == bytes(3 * MIB + 1)
    assert (file["digest"], file["written"]) == (blake3(bytes(3 * MIB + 1)).hexdigest(), 0)


def test_the_file_system_is_asked_once_for_all_of_a_file_without_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for each chunk: where a system call is slow, that takes as long as to copy it."""
    source = tmp_path / "source"
    source.write_bytes(data(3 * SLOTS * CHUNK))
    asked, seek = [], os.lseek
    monkeypatch.setattr(os, "lseek", lambda *of: asked.append(of) or seek(*of))
    with Ring(SLOTS, device=MODEL) as ring:
        Copier(ring, lambda nbytes, total=None: None).any(str(source), str(tmp_path / "target"))
    assert [whence for *_, whence in asked] == [os.SEEK_DATA, os.SEEK_HOLE]


# --- pipes and devices ---


@pytest.mark.parametrize("nbytes", [0, 5, 2 * CHUNK + 3])
def test_a_pipe_to_a_file(tmp_path: Path, nbytes: int) -> None:
    done = copy("-", tmp_path / "target", input=data(nbytes), text=False, errors=None)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "target").read_bytes() == data(nbytes)
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o666 & ~umask


def test_standard_input_is_read_from_where_it_stands(tmp_path: Path, source: Path) -> None:
    with source.open("rb") as file:
        file.seek(1000)
        copy("-", tmp_path / "target", stdin=file)
    assert (tmp_path / "target").read_bytes() == source.read_bytes()[1000:]


def test_a_file_to_a_pipe_and_the_report_beside_it(source: Path) -> None:
    done = copy("--json", source, "-", text=False, errors=None)
    assert done.stdout == source.read_bytes()
    (file,) = json.loads(done.stderr)["files"]
    assert (file["reread"], file["digest"]) == (False, blake3(source.read_bytes()).hexdigest())
    done = copy(source, "-", text=False, errors=None)
    assert done.stdout == source.read_bytes() and b"not read again" in done.stderr


def test_a_pipe_to_a_pipe() -> None:
    done = copy("-", "-", input=data(CHUNK + 1), text=False, errors=None)
    assert done.stdout == data(CHUNK + 1)


def test_a_reader_that_goes_is_one_clear_error(source: Path) -> None:
    command = [*COPY, str(source), "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout and running.stderr
        running.stdout.close()
        assert running.wait(60) == 2
        assert running.stderr.read() == "pynymph: standard output: nobody reads it any more\n"


def test_a_named_pipe_stays_one(tmp_path: Path, source: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with (tmp_path / "read").open("wb") as out, subprocess.Popen(["cat", fifo], stdout=out):
        assert copy(source, fifo).returncode == 0
    assert (tmp_path / "read").read_bytes() == source.read_bytes()
    assert fifo.is_fifo()


def test_a_character_device_is_written_and_not_replaced(source: Path) -> None:
    assert report(source, "/dev/null")["files"][0]["bytes"] == source.stat().st_size
    assert Path("/dev/null").is_char_device()
    refused(copy(source, "/dev/full"), 2, "/dev/full: No space left on device")


# --- what goes wrong ---


def test_without_a_driver_nothing_is_copied_by_a_model_in_secret(tmp_path: Path, source: Path) -> None:
    if Path(DEVICE).exists():
        pytest.skip("there is a driver here")
    for engine in ([], ["--engine", "auto"], ["--engine", "cpu"]):
        refused(run("copy", *engine, source, tmp_path / "target"), 3, DEVICE, "modprobe", "--engine model")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["source", "source"], ["source and source are the same file"]),
        (["source", "link"], ["source and link are the same file"]),
        (["folder", "x"], ["folder is a folder; give -r"]),
        (["-r", "folder", "-"], ["folder is a folder, which standard output can't take"]),
        (["-r", "folder", "folder/inside"], ["folder/inside is in folder"]),
        (["-r", "folder", "source"], ["source is no folder"]),
        (["nothing", "x"], ["nothing: No such file or directory"]),
        (["source", "no/x"], ["there is no folder no"]),
        (["source", "no/"], ["there is no folder no/"]),
        (["-", "folder"], ["folder is a folder; name the file"]),
        (["", "x"], ["name is empty"]),
        (["source"], ["Missing argument 'DST'", "pynymph copy --help"]),
        (["source", "x", "y"], ["unexpected extra argument"]),
        (["--guess", "source", "x"], ["No such option"]),
        (["source", "evil\x1b[31m/x"], [r"'evil\x1b[31m'"]),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line(
    tmp_path: Path, source: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "link").hardlink_to(source)
    (tmp_path / "folder").mkdir()
    before = sorted(os.listdir(tmp_path))
    refused(copy(*arguments, cwd=tmp_path), 2, *words)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.fixture
def as_user(tmp_path: Path) -> list[str]:
    """What runs a command without the right to read everything."""
    if os.geteuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is not installed")
    return ["setpriv", "--reuid=0", "--bounding-set=-all", "--inh-caps=-all"]


def test_no_permission_is_one_clear_line(tmp_path: Path, source: Path, as_user: list[str]) -> None:
    source.chmod(0)
    (tmp_path / "folder").mkdir(mode=0o555)
    (tmp_path / "readable").write_bytes(b"x")

    def attempt(*arguments: Any) -> "subprocess.CompletedProcess[str]":
        command = [*as_user, *PYNYMPH, "copy", "--engine", "model", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    if as_user and attempt(source, tmp_path / "t").returncode == 0:
        pytest.skip("root reads everything here")
    refused(attempt(source, tmp_path / "target"), 2, f"{source}: Permission denied")
    expected = "folder/.readable.pynymph-part: Permission denied"
    refused(attempt(tmp_path / "readable", tmp_path / "folder"), 2, expected)


def test_a_full_file_system_keeps_the_old_target_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """On a tmpfs of its own; the command runs in the namespace where that is mounted."""
    source, small = tmp_path / "source", tmp_path / "small"
    source.write_bytes(data(3 * MIB))
    small.mkdir()
    pynymph = " ".join(map(str, PYNYMPH))
    script = f"""
        mount -t tmpfs -o size=2m small {small} || exit 77
        echo old > {small}/target
        {pynymph} copy --engine model {source} {small}/target
        echo "status $?"
        cat {small}/target
        mount -o remount,size=8m {small}
        {pynymph} copy --engine model --json {source} {small}/target
        cmp {source} {small}/target && ls -A {small}
    """
    enter = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    done = subprocess.run([*enter, "sh", "-c", script], capture_output=True, text=True, timeout=120)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    full = f"{small}/.target.pynymph-part: No space left on device"
    assert done.stderr == f"pynymph: {full}; make room, and the same command goes on from there\n"
    first, _, rest = done.stdout.partition("{")
    assert first == "status 2\nold\n"
    made, _, names = rest.rpartition("}")
    (file,) = json.loads("{" + made + "}")["files"]
    assert (file["state"], names.strip()) == ("resumed", "target")
    assert 0 < file["written"] < 3 * MIB


def test_a_copy_that_was_killed_goes_on(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data(64 * MIB))
    part = Path(part_of(str(target)))
    with subprocess.Popen([*COPY, source, target]) as running:
        wait_for(lambda: part.exists() and part.stat().st_size >= 4 * MIB)
        running.kill()
    assert running.returncode == -signal.SIGKILL
    assert not target.exists()
    there = part.stat().st_size
    assert there < 64 * MIB
    (file,) = report(source, target)["files"]
    assert (file["state"], file["written"]) == ("resumed", 64 * MIB - there)
    assert target.read_bytes() == source.read_bytes()
    assert left(tmp_path) == []


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data(64 * MIB))
    with subprocess.Popen([*COPY, source, target], stderr=subprocess.PIPE, text=True) as running:
        wait_for(Path(part_of(str(target))).exists)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
        assert running.stderr
        assert running.stderr.read() == "pynymph: interrupted; the same command goes on from there\n"
    assert not target.exists()


def test_ctrl_c_while_a_pipe_is_read(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    command = [*COPY, fifo, tmp_path / "target"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running, fifo.open("wb") as writer:
        writer.write(b"x")
        writer.flush()
        wait_for(Path(part_of(str(tmp_path / "target"))).exists)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
        assert running.stderr and running.stderr.read() == "pynymph: interrupted\n"
    assert not (tmp_path / "target").exists()


def test_of_an_old_part_only_what_differs_is_written(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    part = bytearray(source.read_bytes()[: 2 * CHUNK + 100])
    part[CHUNK] ^= 1
    Path(part_of(str(target))).write_bytes(part)
    (file,) = report(source, target)["files"]
    assert target.read_bytes() == source.read_bytes()
    assert (file["state"], file["written"]) == ("resumed", source.stat().st_size - CHUNK)


def test_a_part_that_is_longer_than_the_source_is_cut(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    Path(part_of(str(target))).write_bytes(data(5 * MIB, 1))
    report(source, target)
    assert target.read_bytes() == source.read_bytes()


def test_a_part_that_is_a_link_is_not_followed(tmp_path: Path, source: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    part = Path(part_of(str(tmp_path / "target")))
    part.symlink_to("victim")
    assert copy(source, tmp_path / "target").returncode == 2
    part.unlink()
    part.hardlink_to(tmp_path / "victim")
    refused(copy(source, tmp_path / "target"), 2, "is in the way")
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_two_copies_to_one_target_do_not_mix(tmp_path: Path, source: Path) -> None:
    with open(part_of(str(tmp_path / "target")), "wb") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        refused(copy(source, tmp_path / "target"), 2, "another copy writes")


def test_a_part_that_has_got_its_name_meanwhile_is_not_written(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    part = part_of(str(target))

    def finish(fd: int, operation: int) -> None:
        """What another copy does between our open() and flock()."""
        os.replace(part, target)

    Path(part).write_bytes(b"whole")
    monkeypatch.setattr(fcntl, "flock", finish)
    with Ring(SLOTS, device=MODEL) as ring, pytest.raises(Failure, match="another copy writes"):
        Copier(ring, lambda nbytes, total=None: None).any(str(source), str(target))
    assert target.read_bytes() == b"whole"


def copier_that(change: Callable[[], None]) -> tuple[Ring, Copier]:
    """A copier that does something else after the second chunk."""
    calls = 0

    def advance(nbytes: int, total: int | None = None) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            change()

    ring = Ring(SLOTS, device=MODEL)
    return ring, Copier(ring, advance)


def test_a_source_that_changes_meanwhile_is_no_success(tmp_path: Path, source: Path) -> None:
    def change() -> None:
        with source.open("ab") as file:
            file.write(b"more")

    (tmp_path / "target").write_bytes(b"old")
    ring, copier = copier_that(change)
    with ring, pytest.raises(Failure, match="changed while it was copied"):
        copier.any(str(source), str(tmp_path / "target"))
    assert (tmp_path / "target").read_bytes() == b"old"


def test_a_source_that_is_removed_meanwhile_is_copied(tmp_path: Path, source: Path) -> None:
    expected = source.read_bytes()
    ring, copier = copier_that(source.unlink)
    with ring:
        copier.any(str(source), str(tmp_path / "target"))
    assert (tmp_path / "target").read_bytes() == expected


def test_what_the_disk_changed_is_found_by_reading_again(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"

    def change() -> None:
        with open(part_of(str(target)), "r+b") as file:
            file.write(b"flipped")

    ring, copier = copier_that(change)
    expected = f"bytes 0 to {CHUNK}, read again, are not what was written"
    with ring, pytest.raises(Failure, match=expected) as caught:
        copier.any(str(source), str(target))
    assert caught.value.status == DIFFERS
    assert not target.exists()


def test_a_refusal_of_the_ring_is_told(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pynymph.errors import error

    def refuse(*arguments: object) -> None:
        raise error(errno.EBADMSG, "dst is not what was sent")

    monkeypatch.setattr(Ring, "submit", refuse)
    result = CliRunner().invoke(cli, ["copy", "--engine", "model", str(source), str(tmp_path / "target")])
    assert (result.exit_code, result.stderr) == (1, "pynymph: dst is not what was sent\n")
    assert not (tmp_path / "target").exists()


def test_too_little_memory_to_lock_says_so(tmp_path: Path, source: Path, as_user: list[str]) -> None:
    command = ["prlimit", "--memlock=65536", *as_user, *COPY]
    done = subprocess.run([*command, source, tmp_path / "target"], capture_output=True, text=True)
    refused(done, 2, "RLIMIT_MEMLOCK (65536 bytes for all pinned)", "ulimit -l")


# --- folders ---


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "deep/er").mkdir(parents=True)
    (root / "empty").mkdir(mode=0o750)
    (root / "a").write_bytes(data(CHUNK + 1))
    (root / "deep/b").write_bytes(b"b")
    (root / "deep/er/\udcff\n").write_bytes(b"odd")
    (root / "zero").touch()
    (root / "deep/link").symlink_to("b")
    (root / "dangling").symlink_to("/nowhere/at/all")
    (root / "to-folder").symlink_to("deep")
    (root / "hard").hardlink_to(root / "a")
    os.utime(root / "deep", ns=(1, 1_200_000_000_000_000_001))
    return root


def listing(root: Path) -> dict[str, Any]:
    """All that a copy has to have of a folder."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder) / name
            there = path.lstat()
            what = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
            found[str(path.relative_to(root))] = (there.st_mode, there.st_mtime_ns, what)
    return found


def test_a_folder_arrives_whole(tmp_path: Path, tree: Path) -> None:
    made = report("-r", tree, tmp_path / "copy")
    assert listing(tmp_path / "copy") == listing(tree)
    assert (len(made["files"]), made["links"], made["folders"]) == (5, 3, 4)
    assert left(tmp_path) == []
    done = copy("-r", tree, tmp_path / "copy2")
    assert re.match(r"5 files, 3 links and 4 folders: 1 MiB by model, read again", done.stdout)


def test_a_folder_into_a_folder_has_its_name(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "backup").mkdir()
    report("-r", tree, tmp_path / "backup")
    report("-r", ".", tmp_path / "backup", cwd=tree / "deep")
    assert sorted(os.listdir(tmp_path / "backup")) == ["deep", "tree"]
    assert listing(tmp_path / "backup/tree") == listing(tree)


def test_a_folder_that_is_there_keeps_its_own_files(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "backup/tree").mkdir(parents=True)
    (tmp_path / "backup/tree/own").write_bytes(b"own")
    report("-r", tree, tmp_path / "backup")
    made = report("-r", tree, tmp_path / "backup")
    assert {file["state"] for file in made["files"]} == {"unchanged"}
    assert listing(tmp_path / "backup/tree").keys() == {*listing(tree), "own"}


def test_a_folder_has_its_name_only_when_it_is_whole(tmp_path: Path, tree: Path, as_user: list[str]) -> None:
    (tree / "deep/b").chmod(0)
    command = [*as_user, *PYNYMPH, "copy", "--engine", "model", "-r", tree, tmp_path / "copy"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        pytest.skip("root reads everything here")
    assert done.returncode == 2
    assert f"{tree}/deep/b: Permission denied\n" in done.stderr
    assert done.stderr.endswith("1 of its files could not be copied; the same command goes on from there\n")
    assert not (tmp_path / "copy").exists()
    (tree / "deep/b").chmod(0o644)
    (tree / "zero").unlink()  # what the source has no more, the copy must not have
    (tree / "deep/link").unlink()
    (tree / "deep/link").mkdir()
    made = report("-r", tree, tmp_path / "copy")
    assert {file["state"] for file in made["files"]} == {"copied", "unchanged"}
    assert listing(tmp_path / "copy") == listing(tree)


def test_a_link_in_the_target_is_not_written_through(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "copy/tree").mkdir(parents=True)
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "copy/tree/a").symlink_to(tmp_path / "victim")
    report("-r", tree, tmp_path / "copy")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert listing(tmp_path / "copy/tree") == listing(tree)


def test_what_no_copy_can_have_is_said(tmp_path: Path, tree: Path) -> None:
    os.mkfifo(tree / "fifo")
    done = copy("--json", "-r", tree, tmp_path / "copy")
    assert done.returncode == 0
    assert done.stderr == f"pynymph: {tree}/fifo is a socket, pipe or device, and is not copied\n"
    assert json.loads(done.stdout)["skipped"] == [f"{tree}/fifo"]


def test_a_folder_where_a_file_is_and_a_file_where_a_folder_is(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "copy/tree/a").mkdir(parents=True)
    (tmp_path / "copy/tree/deep").write_bytes(b"file")
    done = copy("-r", tree, tmp_path / "copy")
    assert done.returncode == 2
    assert "tree/a: is a folder, and a file has to be there" in done.stderr
    assert "tree/deep: is no folder, and one has to be there" in done.stderr


# --- the guide ---


def test_the_guide_works(tmp_path: Path) -> None:
    """Its commands, in their order, on the model."""
    blocks = doc_blocks.run_by(doc_blocks.COPY)
    assert len(blocks) == 3
    (tmp_path / "film.mkv").write_bytes(data(MIB))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one").write_bytes(data(1000))
    (tmp_path / "backup").mkdir()
    script = "".join(block.text for block in blocks)
    script = re.sub(r"pynymph (copy|hash|verify)", rf"{' '.join(PYNYMPH)} \1 --engine model", script)
    done = subprocess.run(["sh", "-e"], input=script, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "backup/film.mkv").read_bytes() == data(MIB)
    assert "film.mkv: OK\n" in done.stdout and "the same: " in done.stdout
    assert done.stdout.endswith("photos/\nphotos/one\n")
    assert "not read again" in done.stderr


# --- on a terminal ---


def test_a_terminal_sees_a_bar_and_others_do_not(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(data(16 * MIB))
    ours, theirs = pty.openpty()
    command = [*COPY, tmp_path / "source", tmp_path / "target"]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, env=environment) as running:
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 4096):
                seen += chunk
        except OSError:  # the other side has closed
            pass
        assert running.stdout
        running.stdout.read()
    os.close(ours)
    assert running.returncode == 0
    assert b"copy" in seen and b"%" in seen
