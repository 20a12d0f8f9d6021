# SPDX-License-Identifier: MIT
"""RingBuffer: memory of a ring, by a handle, and who sees its bytes."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pynymph
from pynymph import Copy, batch, digest

KIB = 2**10


@pytest.fixture
def ring() -> Iterator[pynymph.Ring]:
    with pynymph.Ring(8) as ring:
        yield ring


def test_allocated_memory_is_zeroed_and_can_be_both_sides(ring: pynymph.Ring) -> None:
    data = os.urandom(100 * KIB + 1)
    with ring.allocate(len(data)) as one, ring.allocate(len(data)) as other:
        assert len(one) == one.nbytes == len(data)
        assert bytes(one.view) == bytes(len(data))
        done = ring.copy(src=data, dst=one, verify=True)
        assert done.src_digest == digest.payload(one.view)
        ring.copy(src=one, dst=other, zero_copy=True)
        assert ring.compare(a=one, b=other) is None
        assert ring.digest(src=other) == digest.payload(data)
        dst = bytearray(len(data))
        ring.copy(src=other, dst=dst)
        assert dst == data
        assert "102401 bytes" in repr(one)


def test_cpu_engine_refuses_card_memory() -> None:
    cpu = pynymph.query().engines[1]  # or the model of it
    with pynymph.Ring(8, engine=cpu) as ring:
        with pytest.raises(pynymph.NymphError, match="no channel of a card") as refused:
            ring.allocate_on_card(KIB)
        assert refused.value.errno == errno.EOPNOTSUPP


def test_parts_of_buffers_are_buffers(ring: pynymph.Ring) -> None:
    with ring.allocate(10_000) as whole:
        ring.fill(dst=whole[100:9_000][10:20], pattern=b"\xff")
        assert bytes(whole.view) == bytes(110) + b"\xff" * 10 + bytes(9_880)
        ring.copy(src=whole[110:130], dst=whole[5_000:5_020])
        assert bytes(whole[5_000:5_020].view) == b"\xff" * 10 + bytes(10)
        with pytest.raises(pynymph.ArgumentError, match="overlap"):
            ring.copy(src=whole[0:20], dst=whole[10:30])
        with pytest.raises(pynymph.ArgumentError, match="step is 2"):
            whole[::2]
        with pytest.raises(pynymph.ArgumentError, match="parts"):
            whole[3]  # type: ignore[index]
        with pytest.raises(pynymph.ArgumentError, match="1 to 1073741824 bytes"):
            ring.copy(src=whole[5:5], dst=bytearray())


def test_numpy_and_dlpack_share_the_bytes(ring: pynymph.Ring) -> None:
    with ring.allocate(4 * 1000) as buffer:
        array = np.asarray(buffer)
        words = array.view("u4")
        words[:] = np.arange(1000)
        assert buffer.view[4:8] == b"\x01\0\0\0"
        ring.fill(dst=buffer[0:4], pattern=b"\xee")
        assert words[0] == 0xEEEEEEEE
        shared = np.from_dlpack(buffer)
        shared[5] = 77
        assert array[5] == 77
    # Views stay what they are.
    assert array[5] == 77
    assert np.asarray(array).sum() > 0


class Tensor:
    """Has DLPack, and no buffer protocol."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    def __dlpack__(self, **wanted: Any) -> Any:
        return self.array.__dlpack__(**wanted)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


class Elsewhere(Tensor):
    """As memory of a GPU is."""

    def __dlpack__(self, **wanted: Any) -> Any:
        raise BufferError("it is on another device")


def test_tensors_are_taken(ring: pynymph.Ring) -> None:
    src, dst = np.arange(1000), np.zeros(1000, np.int64)
    ring.copy(src=Tensor(src), dst=Tensor(dst), verify=True)  # type: ignore[arg-type]
    assert (src == dst).all()
    with ring.register(Tensor(dst)) as buffer:  # type: ignore[arg-type]
        ring.fill(dst=buffer, pattern=b"\1")
    assert (dst == 0x0101010101010101).all()
    with pytest.raises(pynymph.ArgumentError, match="does not give its memory by DLPack: it is on another"):
        ring.copy(src=Elsewhere(src), dst=dst)  # type: ignore[arg-type]
    with pytest.raises(pynymph.ArgumentError, match="C-contiguous"):
        ring.copy(src=Tensor(src[::2]), dst=bytearray(4000))  # type: ignore[arg-type]


def test_registered_memory_is_held_until_freed(ring: pynymph.Ring) -> None:
    data = os.urandom(50_000)
    memory = bytearray(50_000)
    buffer = ring.register(memory)
    ring.copy(src=data, dst=buffer, verify=True)
    assert memory == data
    with pytest.raises(BufferError):
        memory.append(0)
    ring.copy(src=memory, dst=bytearray(50_000))  # by address goes as well
    buffer.free()
    buffer.free()
    memory.append(0)


def test_read_only_memory_is_only_a_source(ring: pynymph.Ring) -> None:
    data = os.urandom(5000)
    with pytest.raises(pynymph.ArgumentError, match="read_only=True"):
        ring.register(data)
    with ring.register(data, read_only=True) as buffer:
        assert buffer.readonly and buffer.view.readonly
        dst = bytearray(5000)
        ring.copy(src=buffer, dst=dst)
        assert dst == data
        with pytest.raises(pynymph.ArgumentError, match="dst is read-only"):
            ring.copy(src=bytes(5000), dst=buffer)


def test_exported_buffer_is_imported_by_another_ring(ring: pynymph.Ring) -> None:
    data = os.urandom(5 * KIB)
    with pynymph.Ring(8) as other:
        with ring.allocate(len(data)) as one:
            ring.copy(src=data, dst=one)
            fds = [one.export(), one[100:200].export()]
            kept = one.view
        assert not any(os.get_inheritable(fd) for fd in fds)
        two, same = (other.import_dmabuf(fd) for fd in fds)
        source = other.import_dmabuf(fds[0], read_only=True)
        for fd in fds:
            os.close(fd)
        assert (len(two), two.readonly, source.readonly) == (8 * KIB, False, True)  # whole pages
        assert two.view[: len(data)] == same.view[: len(data)] == source.view[: len(data)] == data
        assert source.view.readonly
        done = other.copy(src=b"answer", dst=two[10:16], verify=True)
        assert done.src_digest == digest.payload(b"answer")
        assert bytes(kept[10:16]) == bytes(np.asarray(same)[10:16]) == b"answer"
        assert other.digest(src=source[:6]) == digest.payload(data[:6])
        assert other.compare(a=source, b=same) is None
        with pytest.raises(pynymph.ArgumentError, match="read-only"):
            other.copy(src=b"x", dst=source[:1])
        two.free()
        same.free()
        with pytest.raises(pynymph.NymphError, match="it was freed"):
            two.export()


def test_other_files_are_refused_as_dmabufs(ring: pynymph.Ring, tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b") as file:
        with pytest.raises(pynymph.NymphError, match="is no dma-buf") as refused:
            ring.import_dmabuf(file.fileno())
        assert refused.value.errno == errno.EINVAL
    with pytest.raises(pynymph.NymphError, match="no open file -1") as refused:
        ring.import_dmabuf(-1)
    assert refused.value.errno == errno.EBADF
    with ring.register(bytearray(100)) as buffer:
        with pytest.raises(pynymph.NymphError, match="only memory of allocate") as refused:
            buffer.export()
        assert refused.value.errno == errno.EINVAL
    with ring.allocate(100) as buffer:
        fd = buffer.export()
        imported = ring.import_dmabuf(fd)
        os.close(fd)
        with pytest.raises(pynymph.NymphError, match="only memory of allocate"):
            imported.export()


def test_freed_buffer_refuses_use(ring: pynymph.Ring) -> None:
    buffer = ring.allocate(100)
    view = buffer.view
    buffer.free()
    for use in (
        lambda: ring.copy(src=buffer, dst=bytearray(100)),
        lambda: ring.submit(Copy(src=bytes(100), dst=buffer[0:100])),
        lambda: buffer.view,
        lambda: np.asarray(buffer),
    ):
        with pytest.raises(pynymph.NymphError, match="it was freed; make another") as caught:
            use()
        assert caught.value.errno == errno.EBADF
    assert "freed" in repr(buffer)
    assert bytes(view) == bytes(100)


def test_transfers_in_flight_finish_after_free() -> None:
    memory = bytearray(5000)
    with pynymph.Ring(paused=True) as ring:
        allocated, registered = ring.allocate(5000), ring.register(memory)
        view = allocated.view
        copies = [Copy(src=b"x" * 5000, dst=allocated), Copy(src=b"y" * 5000, dst=registered)]
        transfers = ring.submit_all(copies)
        allocated.free()
        registered.free()
        # The driver still writes to it.
        with pytest.raises(BufferError):
            memory.append(0)
        ring.enable()
        assert [transfer.result().status for transfer in transfers] == [0, 0]
        assert bytes(view) == b"x" * 5000
        assert memory == b"y" * 5000
        memory.append(0)


def test_reset_and_close_end_buffers(ring: pynymph.Ring) -> None:
    buffer = ring.allocate(100)
    ring.reset()
    with pytest.raises(pynymph.NymphError, match="its ring was reset"):
        ring.fill(dst=buffer)
    memory = bytearray(10)
    with pynymph.Ring() as other:
        buffer = other.register(memory)
        with pytest.raises(pynymph.ArgumentError, match="buffer of another ring"):
            ring.fill(dst=buffer)
    with pytest.raises(pynymph.NymphError, match="its ring was closed"):
        ring.fill(dst=buffer)
    memory.append(0)


def test_collected_buffer_returns_its_handle(ring: pynymph.Ring) -> None:
    memory = bytearray(10)
    for _ in range(200):
        handle = ring.register(memory)._memory.handle
        assert (ring._core.garbage, ring._core.known) == ([], {})
        assert handle == 1
    memory.append(0)


def test_collected_buffer_returns_its_memory_at_once(ring: pynymph.Ring) -> None:
    """It was charged until something was submitted: for ever in who only looked at the ring."""
    before = held_by(ring)
    buffer = ring.allocate(6 << 20)
    assert held_by(ring) != before
    part = buffer[10:]
    del buffer
    assert held_by(ring) != before
    del part
    assert held_by(ring) == before


def held_by(ring: pynymph.Ring) -> object:
    """What the driver says of the memory of a ring's buffers, or what the model has."""
    if isinstance(ring._core.file, pynymph.model.Model):
        state = ring._core.file._get_ring_state()
        assert state is not None
        return list(state.carried.regions)
    fdinfo = Path(f"/proc/self/fdinfo/{ring.fileno()}").read_text()
    return [line for line in fdinfo.splitlines() if "buffer" in line]


USES = {
    "status": pynymph.Ring.status,
    "hash": pynymph.Ring.hash,
    "snapshot": pynymph.Ring.snapshot,
    "latency": pynymph.Ring.latency,
    "enable": pynymph.Ring.enable,
    "copy": lambda ring: ring.copy(src=b"1", dst=bytearray(1)),
    "allocate": lambda ring: ring.allocate(1).free(),
    "completions": lambda ring: list(ring.completions()),
    "run_many": lambda ring: ring.run_many(np.zeros(0, batch.ENTRY)),
    "notify": lambda ring: ring.notify(None),
    "reset": pynymph.Ring.reset,
}


@pytest.mark.parametrize("name", USES)
def test_next_call_frees_buffers_collected_during_another(ring: pynymph.Ring, name: str) -> None:
    before = held_by(ring)
    buffer = ring.allocate(KIB)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with ring._core.lock():
            held.set()
            done.wait()

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    del buffer  # does not wait for the other thread
    assert len(ring._core.garbage) == 1
    done.set()
    other.join()
    USES[name](ring)
    assert (ring._core.garbage, held_by(ring)) == ([], before)
    if name != "reset":
        buffer = ring.allocate(KIB)
        with ring._core.lock():
            del buffer  # and of this thread's own use
            assert len(ring._core.garbage) == 1
        USES[name](ring)
        assert (ring._core.garbage, held_by(ring)) == ([], before)


def test_buffer_collected_in_flight_is_freed_at_its_end() -> None:
    with pynymph.Ring(8, paused=True) as ring:
        before = held_by(ring)
        ring.submit(Copy(src=bytes(100), dst=ring.allocate(100)))
        buffer = ring.allocate(100)
        many = ring.submit_many(batch.copies(buffer, buffer, src_at=0, dst_at=50, length=50))
        del buffer
        assert held_by(ring) != before
        ring.enable()
        ring.copy(src=b"1", dst=bytearray(1))  # ends after both
        assert many.done and len(list(ring.completions())) == 1
        assert (ring._core.garbage, held_by(ring)) == ([], before)


def test_buffer_collected_in_a_child_stays_with_the_parent(ring: pynymph.Ring) -> None:
    buffer = ring.allocate(KIB)
    before = held_by(ring)
    pid = os.fork()
    if pid == 0:
        del buffer
        os._exit(len(ring._core.garbage) - 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert held_by(ring) == before
    assert bytes(buffer.view) == bytes(KIB)


NO_ROOM = """
import resource, sys, pynymph
from pathlib import Path
ring = pynymph.Ring(8, device=sys.argv[1])
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (2 << 20), -1))
for _ in range(3):
    try:
        ring.allocate(6 << 20)
    except pynymph.NymphError as error:
        print(error.errno, error.strerror)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
assert ring._core.garbage == []
assert len(ring.allocate(6 << 20).view) == 6 << 20
"""


def test_full_address_space_is_enomem_naming_the_limit(ring: pynymph.Ring) -> None:
    command = [sys.executable, "-c", NO_ROOM, ring._core.device]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    refused = done.stdout.splitlines()
    assert len(refused) == 3
    assert all(line.startswith("12 ") and ("RLIMIT_AS" in line or "MEMLOCK" in line) for line in refused)


def test_buffers_refuse_wrong_arguments(ring: pynymph.Ring) -> None:
    for nbytes in (0, -1, 2**30 + 1):
        with pytest.raises(pynymph.ArgumentError, match=f"nbytes is {nbytes}; give .* from 1 to 1073741824"):
            ring.allocate(nbytes)
    with pytest.raises(pynymph.ArgumentError, match="C-contiguous"):
        ring.register(memoryview(bytearray(10))[::2])
    with pytest.raises(TypeError):
        ring.register("text")  # type: ignore[arg-type]


def is_mapped(at: int) -> bool:
    maps = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    return any(int(start, 16) <= at < int(end, 16) for start, end in maps)


def test_freed_memory_stays_mapped_while_it_has_views(ring: pynymph.Ring) -> None:
    buffer = ring.allocate(100)
    array = np.asarray(buffer)
    at = array.ctypes.data
    buffer.free()
    assert is_mapped(at)
    array[:] = 1
    del array
    # Although `buffer` is still there, as after every `with`.
    assert not is_mapped(at)


def test_ctrl_c_during_free_still_frees(ring: pynymph.Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = ring.allocate(100)
    assert ring._core.file is not None
    ioctl = ring._core.file.ioctl

    def press_behind(request: int, argument: object = None) -> int:
        ioctl(request, argument)
        raise KeyboardInterrupt

    monkeypatch.setattr(ring._core.file, "ioctl", press_behind)
    with pytest.raises(KeyboardInterrupt):
        buffer.free()
    monkeypatch.undo()
    with ring.allocate(100) as other:
        assert other._memory.handle == buffer._memory.handle
        buffer.free()
        ring.fill(dst=other, pattern=b"x")


@pytest.mark.usefixtures("driver")
def test_close_ends_the_ring_even_if_a_child_has_the_file() -> None:
    """Else its registered memory would stay pinned, and its thread be there, as long as the child is."""
    counter = Path("/sys/class/misc/pcie_nymph/counters/rings")
    before = counter.read_text()
    release, hold = os.pipe()
    ring = pynymph.Ring()
    ring.register(bytearray(100))
    pid = os.fork()
    if pid == 0:
        os.close(hold)
        os.read(release, 1)
        os._exit(0)
    try:
        os.close(release)
        ring.close()
        assert counter.read_text() == before
    finally:
        os.close(hold)
        os.waitpid(pid, 0)


@pytest.mark.skipif(os.getuid() == 0, reason="RLIMIT_MEMLOCK is no limit for root")
def test_freed_memory_is_no_longer_charged(ring: pynymph.Ring) -> None:
    for _ in range(3):
        with ring.allocate(6 << 20) as buffer:
            assert len(buffer.view) == 6 << 20


@pytest.mark.skipif(os.getuid() == 0, reason="RLIMIT_MEMLOCK is no limit for root")
def test_memory_with_views_stays_charged(ring: pynymph.Ring) -> None:
    array = np.asarray(ring.allocate(6 << 20))
    with pytest.raises(pynymph.NymphError, match="RLIMIT_MEMLOCK"):
        ring.allocate(4 << 20)
    array[-1] = 1
    del array
    ring.allocate(4 << 20)


@pytest.mark.skipif(os.getuid() == 0, reason="RLIMIT_MEMLOCK is no limit for root")
def test_allocate_beyond_the_limit_names_it(ring: pynymph.Ring) -> None:
    with ring.allocate(6 << 20):
        with pytest.raises(pynymph.NymphError, match="RLIMIT_MEMLOCK") as caught:
            ring.allocate(4 << 20)
        assert caught.value.errno == errno.ENOMEM
    del caught
    with ring.allocate(4 << 20) as buffer:
        assert buffer.nbytes == 4 << 20
