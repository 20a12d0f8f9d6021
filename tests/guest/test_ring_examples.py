# SPDX-License-Identifier: MIT
"""examples/: each does what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pynymph

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(request: pytest.FixtureRequest) -> object:
    device = ["--device", "model:"] if request.config.getoption("--model") else []

    def example(name: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, EXAMPLES / name, *map(str, arguments), *device]
        return subprocess.run(command, capture_output=True, text=True)

    return example


@pytest.mark.parametrize("size", [0, 1, 8 << 20, (17 << 20) + 7])
def test_copy_file_copies_files_of_any_size(  # type: ignore[no-untyped-def]
    tmp_path: Path, run, size: int
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(size))
    done = run("copy_file.py", source, target)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{size} bytes, all verified\n", "")
    assert target.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_copy_file_reports_a_missing_file(tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    done = run("copy_file.py", tmp_path / "nothing", tmp_path / "target")
    assert done.returncode == 1
    assert done.stderr.startswith("copy_file: [Errno 2] No such file")
    assert list(tmp_path.iterdir()) == []


def test_prefetch_computes_the_means(tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    array = np.random.default_rng(1).random((10_001, 16), dtype=np.float32)
    np.save(tmp_path / "array.npy", array)
    done = run("prefetch.py", tmp_path / "array.npy", "--rows", 1000)
    assert (done.returncode, done.stderr) == (0, "")
    found = np.fromstring(done.stdout.split("[")[1].rstrip("]\n"), sep=" ")
    assert np.allclose(found, array.mean(axis=0, dtype=np.float64), atol=1e-5)
    assert run("prefetch.py", tmp_path / "array.npz").stderr.startswith("prefetch: [Errno 2]")


@pytest.mark.parametrize(("size", "blocks"), [(1, 1), (1_000_000, 10), (4 << 20, 2)])
def test_producer_consumer_passes_verified_blocks(  # type: ignore[no-untyped-def]
    run, size: int, blocks: int
) -> None:
    done = run("producer_consumer.py", "--size", size, "--blocks", blocks)
    said = f"{size * blocks} bytes in {blocks} blocks, all verified by the consumer\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_producer_consumer_reports_a_wrong_size(run) -> None:  # type: ignore[no-untyped-def]
    done = run("producer_consumer.py", "--size", 2 << 30)
    assert done.returncode == 1
    assert "producer_consumer: producer: " in done.stderr and "from 1 to 1073741824" in done.stderr


def test_hello_prints_the_digest(request: pytest.FixtureRequest) -> None:
    code = (EXAMPLES / "hello.py").read_text()
    if request.config.getoption("--model"):
        code = code.replace("pynymph.Ring()", 'pynymph.Ring(device="model:")')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    digest = pynymph.digest.payload(b"every byte arrived").hex()
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"every byte arrived by \S+ with digest {digest}\n", done.stdout)


@pytest.mark.parametrize("size", [0, 1, (3 << 20) + 1])
def test_hash_file_prints_the_digest(tmp_path: Path, run, size: int) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_bytes(data := os.urandom(size))
    done = run("hash_file.py", tmp_path / "file")
    said = f"{pynymph.digest.payload(data).hex()}  {tmp_path}/file\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    assert "No such file" in run("hash_file.py", tmp_path / "nothing").stderr


def test_batch_copies_verifies_every_copy(run) -> None:  # type: ignore[no-untyped-def]
    done = run("batch_copies.py", "--blocks", 100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "100 copies, 102400 bytes, all verified\n", "")


def test_async_copies_verifies_every_copy(run) -> None:  # type: ignore[no-untyped-def]
    done = run("async_copies.py", "--count", 20)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("20 copies, all verified; during them the loop had ")


def test_numpy_rows_are_verified(run) -> None:  # type: ignore[no-untyped-def]
    done = run("numpy_rows.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("256 rows, 1048576 bytes, verified by ")


def test_torch_tensor_is_verified(run) -> None:  # type: ignore[no-untyped-def]
    """`make gpu` runs it: only there is torch installed."""
    pytest.importorskip("torch")
    done = run("torch_tensor.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("65536 numbers of torch.bfloat16, 131072 bytes, verified by ")


def test_every_example_has_a_test() -> None:
    tests = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in tests] == []
