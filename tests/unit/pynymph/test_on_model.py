# SPDX-License-Identifier: MIT
"""The tests of Ring that run in the guest, here and on the model; and what the model says of itself."""

import errno
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


def test_missing_process_vm_readv_is_enosys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another process, as one without CROSS_MEMORY_ATTACH refuses it for our own."""
    monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)  # nobody's
    with pytest.raises(OSError) as failed:
        addresses.load(0, 1)
    assert failed.value.errno == errno.ENOSYS


WITHOUT_PROC = """
import pynymph
with pynymph.Ring(device="model:") as ring:
    ring.copy(src=b"x" * 4096, dst=bytearray(4096))
"""


def test_model_says_what_it_lacks() -> None:
    """It took a missing /proc for a buffer that another thread freed."""
    script = 'mount -t tmpfs none /proc || exit 77; exec "$@"'
    enter = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    command = [*enter, "sh", "-c", script, "sh", sys.executable, "-c", WITHOUT_PROC]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    assert "NymphError: [Errno 38] the model needs /proc" in done.stderr
