# SPDX-License-Identifier: MIT
"""examples/: each does what it says."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(request: pytest.FixtureRequest) -> object:
    device = ["--device", "model:"] if request.config.getoption("--model") else []

    def example(name: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, EXAMPLES / name, *map(str, arguments), *device]
        return subprocess.run(command, capture_output=True, text=True)

    return example


@pytest.mark.parametrize("size", [0, 1, 8 << 20, (17 << 20) + 7])
def test_copy_file(tmp_path: Path, run, size: int) -> None:  # type: ignore[no-untyped-def]
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(size))
    done = run("copy_file.py", source, target)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{size} bytes, all verified\n", "")
    assert target.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_copy_file_says_what_is_wrong(tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    done = run("copy_file.py", tmp_path / "nothing", tmp_path / "target")
    assert done.returncode == 1
    assert done.stderr.startswith("copy_file: [Errno 2] No such file")
    assert list(tmp_path.iterdir()) == []


def test_prefetch(tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    array = np.random.default_rng(1).random((10_001, 16), dtype=np.float32)
    np.save(tmp_path / "array.npy", array)
    done = run("prefetch.py", tmp_path / "array.npy", "--rows", 1000)
    assert (done.returncode, done.stderr) == (0, "")
    found = np.fromstring(done.stdout.split("[")[1].rstrip("]\n"), sep=" ")
    assert np.allclose(found, array.mean(axis=0, dtype=np.float64), atol=1e-5)
    assert run("prefetch.py", tmp_path / "array.npz").stderr.startswith("prefetch: [Errno 2]")


@pytest.mark.parametrize(("size", "blocks"), [(1, 1), (1_000_000, 10), (4 << 20, 2)])
def test_producer_consumer(run, size: int, blocks: int) -> None:  # type: ignore[no-untyped-def]
    done = run("producer_consumer.py", "--size", size, "--blocks", blocks)
    said = f"{size * blocks} bytes in {blocks} blocks, all verified by the consumer\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_producer_consumer_says_what_is_wrong(run) -> None:  # type: ignore[no-untyped-def]
    done = run("producer_consumer.py", "--size", 2 << 30)
    assert done.returncode == 1
    assert "producer_consumer: producer: " in done.stderr and "1073741824 bytes" in done.stderr
