# SPDX-License-Identifier: MIT
"""`pynymph hash` and `pynymph verify`: formats, statuses and errors, by the model and by this process."""

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from blake3 import blake3
from click.testing import CliRunner
from pynymph_command import refused, run

from pynymph.command import cli
from pynymph.command.sums import Hasher, line, parse
from pynymph.command.terminal import Failure
from pynymph.ring import DEVICE

ENGINES = ["model", "userspace"]
NAMES = ["plain", "with space", "back\\slash", "new\nline", "return\r", " leading", "trailing "]
NAMES += ["\udcff", "a\\n"]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Files with names of all kinds, the first of them empty."""
    made = [tmp_path / name for name in NAMES]
    for number, path in enumerate(made):
        path.write_bytes(os.urandom(number * 100_000))
    return made


@pytest.mark.parametrize("engine", ENGINES)
def test_the_output_is_that_of_b3sum_and_can_be_checked(
    tmp_path: Path, files: list[Path], engine: str
) -> None:
    done = run("hash", "--engine", engine, *NAMES, cwd=tmp_path, text=False, errors=None)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = [line(blake3(path.read_bytes()).digest(), path.name) for path in files]
    assert done.stdout == b"".join(each + b"\n" for each in lines)
    (tmp_path / "sums").write_bytes(done.stdout)
    checked = run("hash", "--engine", engine, "--check", "sums", cwd=tmp_path, text=False, errors=None)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count(b": OK\n") == len(NAMES)


def test_b3sum_itself_agrees(tmp_path: Path, files: list[Path]) -> None:
    if not shutil.which("b3sum"):
        pytest.skip("b3sum is not installed")
    names = [name for name in NAMES if name.isascii()]
    ours = run("hash", *names, cwd=tmp_path, text=False, errors=None).stdout
    assert subprocess.run(["b3sum", *names], cwd=tmp_path, capture_output=True).stdout == ours


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("plain", b"  plain"),
        ("a b", b"  a b"),
        ("new\nline", b"  new\\nline"),
        ("back\\slash", b"  back\\\\slash"),
        ("\udcff", b"  \xff"),
    ],
)
def test_a_line(name: str, written: bytes) -> None:
    digest = blake3(b"").digest()
    escaped = b"\\" if b"\\" in written else b""
    assert line(digest, name) == escaped + digest.hex().encode() + written
    assert parse(line(digest, name)) == (digest, os.fsencode(name))


@pytest.mark.parametrize(
    "text",
    [b"", b"x", b"0" * 64, b"0" * 64 + b" name", b"0" * 63 + b"  name", b"g" * 64 + b"  name",
     b"0" * 64 + b"  ", b"\\" + b"0" * 64 + b"  bad\\escape", b"\\" + b"0" * 64 + b"  end\\"],
)  # fmt: skip
def test_what_is_no_line(text: bytes) -> None:
    assert parse(text) is None


def test_digests_in_upper_case_are_digests() -> None:
    digest = blake3(b"x").digest()
    assert parse(digest.hex().upper().encode() + b"  x") == (digest, b"x")


def test_standard_input_and_no_names() -> None:
    digest = blake3(b"text").hexdigest()
    assert run("hash", input="text").stdout == f"{digest}  -\n"
    assert run("hash", "--no-names", "-", input="text").stdout == f"{digest}\n"


def test_the_engine_is_named_for_each_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 5000)
    for engine in ENGINES:
        (found,) = json.loads(run("hash", "--json", "--engine", engine, tmp_path / "file").stdout)
        assert found == {
            "file": str(tmp_path / "file"), "digest": blake3(b"x" * 5000).hexdigest(), "bytes": 5000,
            "engine": engine,
        }  # fmt: skip


def test_without_a_driver_this_process_hashes_unless_an_engine_was_asked_for(tmp_path: Path) -> None:
    if Path(DEVICE).exists():
        pytest.skip("there is a driver here")
    (tmp_path / "file").write_bytes(b"x")
    (found,) = json.loads(run("hash", "--json", tmp_path / "file").stdout)
    assert found["engine"] == "userspace"
    for command in (["hash", tmp_path / "file"], ["verify", tmp_path / "file", tmp_path / "file"]):
        refused(run(*command, "--engine", "auto"), 3, DEVICE, "modprobe")


def test_a_file_too_long_for_a_ring_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(2000))
    hasher = Hasher("model")
    monkeypatch.setattr(hasher, "_longest", 1000)
    with pytest.raises(Failure, match="hashes 1000 bytes at once, and it has 2000; give --engine userspace"):
        hasher.file(str(tmp_path / "file"))
    monkeypatch.setattr(hasher, "_chosen", False)
    assert hasher.file(str(tmp_path / "file")) == (blake3(bytes(2000)).digest(), 2000, "userspace")
    hasher.close()


def test_unreadable_files_do_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    done = run("hash", "nothing", ".", "file", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, f"{blake3(b'x').hexdigest()}  file\n")
    assert done.stderr == "pynymph: nothing: No such file or directory\npynymph: .: Is a directory\n"


def test_check_tells_files_that_are_not_right(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"good")
    (tmp_path / "bad").write_bytes(b"bad")
    sums = "".join(f"{blake3(b'good').hexdigest()}  {name}\n" for name in ("good", "bad", "gone"))
    done = run("hash", "--check", "-", input=sums, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (
        1, "good: OK\nbad: FAILED\ngone: FAILED (No such file or directory)\n",
    )  # fmt: skip
    assert done.stderr == "pynymph: WARNING: 2 computed digests did NOT match\n"
    quiet = run("hash", "--check", "--quiet", "-", input=sums, cwd=tmp_path)
    assert "good" not in quiet.stdout and quiet.returncode == 1
    found = json.loads(run("hash", "--check", "--json", "-", input=sums, cwd=tmp_path).stdout)
    assert [each["ok"] for each in found] == [True, False, False]


def test_check_of_what_has_no_digests(tmp_path: Path) -> None:
    refused(run("hash", "--check", "-", input=""), 2, "there are no digests to check")
    refused(run("hash", "--check", "-", input="nonsense\n"), 2, "standard input:1 is no digest and name")
    refused(run("hash", "--check", tmp_path / "none"), 2, "none: No such file or directory")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hash", "--quiet", "x"], "--quiet belongs to --check"),
        (["hash", "--check", "--no-names", "x"], "exclude each other"),
        (["hash", "--length", "5"], "No such option"),
        (["verify", "x"], "x can't be read: No such file or directory"),
        (["verify", "-", "-"], "only one of both can be standard input"),
        (["verify", ".", "x"], ". is a folder; give files"),
        (["verify", "/nowhere", "x"], "/nowhere: No such file or directory"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr and result.stderr.count("\n") == 1


# --- verify ---


def test_verify_reads_a_pipe_from_its_start(tmp_path: Path) -> None:
    """Nothing looks at its first bytes before that, as whether a file is evidence."""
    pipe, file, content = tmp_path / "pipe", tmp_path / "file", b"the same bytes" * 100
    os.mkfifo(pipe)
    file.write_bytes(content)
    writer = threading.Thread(target=pipe.write_bytes, args=(content,))
    writer.start()
    result = CliRunner().invoke(cli, ["verify", str(pipe), str(file)])
    writer.join()
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("nbytes", [0, 1, (512 << 10) - 1, 512 << 10, 2_000_000])
def test_two_files_with_the_same_bytes(tmp_path: Path, engine: str, nbytes: int) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x" * nbytes)
    arguments = ["verify", "--json", "--engine", engine, str(tmp_path / "a"), str(tmp_path / "b")]
    result = CliRunner().invoke(cli, arguments)
    found = json.loads(result.stdout)
    del found["seconds"]
    assert (result.exit_code, found) == (
        0,
        {"same": True, "first_difference": None, "bytes": nbytes, "digest": blake3(b"x" * nbytes).hexdigest(),
         "engine": engine},
    )  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("at", [0, 524_287, 524_288, 1_999_999])
def test_the_first_difference_is_found(tmp_path: Path, engine: str, at: int) -> None:
    one = os.urandom(2_000_000)
    other = bytearray(one)
    other[at] ^= 0x80
    (tmp_path / "a").write_bytes(one)
    (tmp_path / "b").write_bytes(other)
    result = CliRunner().invoke(cli, ["verify", "--engine", engine, str(tmp_path / "a"), str(tmp_path / "b")])
    assert result.exit_code == 1
    assert result.stdout == f"{tmp_path}/a and {tmp_path}/b differ, first at byte {at}\n"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("nbytes", [0, 1000, 512 << 10])
def test_a_file_that_goes_on_differs_where_the_other_ends(tmp_path: Path, engine: str, nbytes: int) -> None:
    (tmp_path / "a").write_bytes(b"x" * nbytes)
    (tmp_path / "b").write_bytes(b"x" * (nbytes + 1))
    for one, other in (("a", "b"), ("b", "a")):
        arguments = ["verify", "--json", "--engine", engine, str(tmp_path / one), str(tmp_path / other)]
        result = CliRunner().invoke(cli, arguments)
        assert (result.exit_code, json.loads(result.stdout)["first_difference"]) == (1, nbytes)


def test_a_pipe_against_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"text")
    assert run("verify", "-", tmp_path / "a", input="text").stdout.startswith("the same: ")
    assert run("verify", tmp_path / "a", "-", input="test").returncode == 1
