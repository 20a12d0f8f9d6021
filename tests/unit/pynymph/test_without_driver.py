# SPDX-License-Identifier: MIT
"""What pynymph says where there is no driver, and of arguments that it need not ask the driver about."""

import errno
import gc
import mmap
import os
import resource
from pathlib import Path

import numpy as np
import pytest

import pynymph
from pynymph.operation import Job


def test_missing_device_says_how_to_load_the_module(tmp_path: Path) -> None:
    for opened in (pynymph.Ring, pynymph.query):
        with pytest.raises(pynymph.NymphError, match="modprobe pcie_nymph") as caught:
            opened(device=str(tmp_path / "none"))
        assert caught.value.errno == errno.ENOENT


def test_missing_permission_names_the_group(tmp_path: Path) -> None:
    forbidden = tmp_path / "device"
    forbidden.touch(0)
    user = os.geteuid()
    if user == 0:
        # Root may open every file; nobody may not.
        os.seteuid(65534)
    try:
        with pytest.raises(pynymph.NymphError, match="group nymph") as caught:
            pynymph.Ring(device=str(forbidden))
    finally:
        os.seteuid(user)
    assert caught.value.errno == errno.EACCES


def test_other_device_is_refused_and_closed() -> None:
    gc.collect()  # what other tests left
    before = os.listdir("/proc/self/fd")
    with pytest.raises(pynymph.NymphError, match="/dev/null is not a device of pcie_nymph") as caught:
        pynymph.Ring(device="/dev/null")
    assert caught.value.errno == errno.ENOTTY
    del caught
    gc.collect()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"entries": 0}, "entries is 0; give a whole number from 1 to 4096"),
        ({"entries": -1}, "entries is -1; .* from 1 to 4096"),
        ({"entries": 4097}, "entries is 4097; .* from 1 to 4096"),
        ({"label": -1}, "label is -1; .* from 0 to 18446744073709551615"),
        ({"label": 2**64}, "label is 18446744073709551616"),
        ({"engine": "x" * 32}, "no engine has a name like"),
    ],
)
def test_wrong_ring_arguments_are_refused(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(pynymph.ArgumentError, match=words) as caught:
        pynymph.Ring(**arguments)  # type: ignore[arg-type]
    assert caught.value.errno == errno.EINVAL
    assert isinstance(caught.value, ValueError)


def transfer(src: object, dst: object, **flags: bool) -> Job:
    return Job(pynymph.Copy(src=src, dst=dst, **flags), table=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("src", "dst", "words"),
    [
        (b"12", bytearray(3), "src has 2 bytes, dst has 3"),
        (b"", bytearray(), "1 to 1073741824 bytes, and this one 0"),
        (b"12", b"34", "dst is read-only"),
        (b"12", memoryview(bytearray(2)).toreadonly(), "dst is read-only"),
        (b"12", mmap.mmap(-1, 2, prot=mmap.PROT_READ), "dst is read-only"),
        (b"12", memoryview(bytearray(4))[::2], "dst is not C-contiguous"),
        (np.zeros((4, 4))[:, 0], bytearray(32), "src is not C-contiguous"),
    ],
)
def test_wrong_buffers_are_refused(src: object, dst: object, words: str) -> None:
    with pytest.raises(pynymph.ArgumentError, match=words) as caught:
        transfer(src, dst)
    assert caught.value.errno == errno.EINVAL


def test_oversized_transfer_is_refused() -> None:
    # Untouched memory: neither of them takes any.
    with mmap.mmap(-1, 2**30 + 1) as src, mmap.mmap(-1, 2**30 + 1) as dst:
        with pytest.raises(pynymph.ArgumentError, match="split it"):
            transfer(src, dst)
        gc.collect()


def test_other_objects_are_refused_as_buffers() -> None:
    with pytest.raises(TypeError):
        transfer("text", bytearray(4))
    with pytest.raises(TypeError):
        transfer(b"1234", 4)


def test_other_objects_are_refused_as_operations() -> None:
    with pytest.raises(pynymph.ArgumentError, match="is no operation"):
        Job((b"1", bytearray(1)), table=None)  # type: ignore[arg-type]


def test_verify_and_digest_exclude_each_other() -> None:
    with pytest.raises(pynymph.ArgumentError, match="leave out digest"):
        transfer(b"1", bytearray(1), verify=True, digest=True)


def test_transfer_holds_its_buffers_until_released() -> None:
    src, dst = np.arange(100, dtype="u4"), bytearray(400)
    moving = transfer(src, dst)
    assert moving.entry.src == src.ctypes.data
    assert moving.entry.length == 400
    with pytest.raises(BufferError):
        dst.append(0)
    moving.release()
    moving.release()
    dst.append(0)


def test_refused_zero_copy_says_what_to_do() -> None:
    hints = transfer(b"1", bytearray(1), zero_copy=True).hints()
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} bytes"
    assert f"RLIMIT_MEMLOCK ({limit}" in hints[errno.ENOMEM]
    assert "shared mapping of a file; do it without" in hints[errno.EOPNOTSUPP]
    assert errno.ENOMEM not in transfer(b"1", bytearray(1)).hints()


@pytest.mark.filterwarnings("error")
def test_failed_ring_is_collected_silently() -> None:
    with pytest.raises(TypeError):
        pynymph.Ring(size=1)  # type: ignore[call-arg]
    gc.collect()


def test_every_error_is_a_nymph_error() -> None:
    for name in pynymph.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(pynymph, name), pynymph.NymphError)
    assert issubclass(pynymph.NymphError, OSError)
    assert issubclass(pynymph.RingTimeoutError, TimeoutError)


def test_package_is_typed() -> None:
    assert (Path(pynymph.__file__).parent / "py.typed").exists()
