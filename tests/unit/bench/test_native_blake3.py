# SPDX-License-Identifier: MIT
"""bench/native_blake3.py, short: its digests are right and its figures are there, whatever they are."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import native_blake3 as tool

CHECKOUT = Path(__file__).parents[3]
SHORT = ["--rounds", "1", "--seconds", "1e-6", "--largest", "64K"]


def bench(folder: Path, *arguments: str) -> tuple["subprocess.CompletedProcess[str]", dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", tool.__name__, *SHORT, *arguments],
        cwd=folder,
        text=True,
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
    )
    return done, json.loads((folder / "dist/blake3.json").read_text())


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, of portable C alone."""
    monkeypatch.setattr(tool, "VARIANTS", {"portable": tool.VARIANTS["portable"]})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [tool.__name__, *SHORT])


def test_short_run_passes_with_all_figures(tmp_path: Path) -> None:
    done, report = bench(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("PASS: all digests agree with the official ones\n")
    assert report["status"] == "PASS" and report["failures"] == []
    assert report["cpu"] and report["kernel"] and report["compiler"] and report["pypi"]
    # One of the two: the official C may be out of reach.
    assert (report["official"] is None) == isinstance(report["official_missing_because"], str)
    rows = report["rows"]
    series = {"hash", "python", "batch", "copy"} | ({"threads"} if tool.CPUS > 1 else set())
    assert {row["series"] for row in rows} == series
    assert {row["variant"] for row in rows} == set(report["variants"])
    others = {
        "hash": [],
        "python": ["pypi"],
        "batch": ["one by one"],
        "copy": ["hash alone", "bounce"],
        "threads": ["one thread"],
    }
    for row in rows:
        expected = set(others[row["series"]])
        if report["official"] and row["series"] != "python":
            expected.add("official")
        assert set(row["ratio"]) == expected and set(row["ns"]) == expected | {"ours"}
        assert len(row["rounds"]) == 1
    assert [row["bytes"] for row in rows if (row["series"], row["variant"]) == ("hash", "portable")] == [
        64,
        256,
        1024,
        2048,
        3072,
        4096,
        7168,
        8192,
        16384,
        31744,
        65536,
    ]


def test_two_threads_share_large_inputs(tmp_path: Path, short: None) -> None:
    """Two chunks and a rest: the digest is the official one."""
    sys.argv[sys.argv.index("64K")] = "2500K"
    assert tool.main() == 0
    report = json.loads((tmp_path / "dist/blake3.json").read_text())
    threads = [row["bytes"] for row in report["rows"] if row["series"] == "threads"]
    assert threads == ([2500 << 10] if tool.CPUS > 1 else [])


def test_source_that_does_not_compile_is_a_failure(
    tmp_path: Path, short: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "blake3.c").write_text("no C")
    sys.argv += ["--official", "."]
    assert tool.main() == 1
    assert capsys.readouterr().out.endswith("FAIL\n")
    report = json.loads((tmp_path / "dist/blake3.json").read_text())
    assert report["status"] == "FAIL" and "blake3.c" in report["failures"][0]


def test_wrong_digest_is_a_failure(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong word of the table, in a copy of the sources."""
    sources = tmp_path / "blake3"
    shutil.copytree(tool.OURS, sources)
    table = sources / "constants.h"
    table.write_text(table.read_text().replace("{ 2, 6, 3, 10, 7,", "{ 2, 6, 10, 3, 7,"))
    monkeypatch.setattr(tool, "OURS", sources)
    assert tool.main() == 1
    report = json.loads((tmp_path / "dist/blake3.json").read_text())
    assert any(failure.startswith("ours, portable, 1024 bytes: digest") for failure in report["failures"])
