# SPDX-License-Identifier: MIT
"""The tests of Ring that run in the guest, here and on the model; and what the model says of itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pynymph
from pynymph.model import addresses

GUEST = Path(__file__).parents[2] / "guest"


NAMES = ("state", "copy", "waits", "threads", "buffers", "async", "batch", "integers", "examples", "fabric")


@pytest.mark.parametrize("name", NAMES)
def test_guest_tests_pass_on_the_model(name: str) -> None:
    tests = GUEST / f"test_ring_{name}.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--model", tests]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_model_always_says_that_it_is_one() -> None:
    with pynymph.Ring(device="model:") as ring:
        assert ring.is_model
        assert "a model, no driver" in repr(ring)
        assert ring.copy(src=b"1", dst=bytearray(1)).engine == "model"
        assert ring.snapshot().engine == "model"
    assert pynymph.query(device="model:").engines == {1: "model"}
    with pytest.raises(pynymph.NymphError, match="no engine 'cpu'; there are: model"):
        pynymph.Ring(engine="cpu", device="model:")


def test_missing_process_vm_readv_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another process, as one without CROSS_MEMORY_ATTACH refuses it for our own."""
    monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)  # nobody's
    with pytest.raises(OSError, match=r"the model cannot do without process_vm_readv\(\): No such process"):
        addresses.load(0, 1)
