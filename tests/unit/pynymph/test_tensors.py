# SPDX-License-Identifier: MIT
"""Memory that has no letter in the buffer protocol, or is not what its values say: taken, or refused.

Tests of torch and JAX need them installed; what they lead through is tested by producers made here, too.
"""

import array
import ctypes
import gc
import mmap
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from blake3 import blake3

import pynymph
from pynymph import digest, dlpack

CPU, CUDA, PINNED = 1, 2, 3
BFLOAT, FLOAT, UINT, FLOAT8, FLOAT4 = 4, 2, 1, 10, 17


@pytest.fixture
def ring() -> Iterator[pynymph.Ring]:
    with pynymph.Ring(8, device="model:") as ring:
        yield ring


ended: list[str] = []


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def end(capsule: int) -> None:
    ended.append("a capsule")


class Producer:
    """A tensor of `dtype` (code, bits, lanes) over `memory`, as far as DLPack goes: by a capsule of ours."""

    def __init__(
        self,
        memory: bytearray,
        shape: tuple[int, ...],
        dtype: tuple[int, int, int],
        *,
        device: int = CPU,
        strides: tuple[int, ...] | None = None,
        flags: int = 0,
        versioned: bool = True,
        offset: int = 0,
    ) -> None:
        self.memory, self.device, self.versioned = memory, device, versioned
        self.held = (ctypes.c_char * len(memory)).from_buffer(memory)
        self.shape = (ctypes.c_int64 * len(shape))(*shape)
        self.strides = None if strides is None else (ctypes.c_int64 * len(shape))(*strides)
        at = ctypes.addressof(self.held)
        tensor = dlpack._Tensor(at, device, 0, len(shape), *dtype, self.shape, self.strides, offset)
        self.managed = dlpack._Versioned(1, 0, None, None, flags, tensor) if versioned else tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.device, 0)

    def __dlpack__(self, **wanted: Any) -> Any:
        if not self.versioned and wanted:
            raise TypeError("unexpected keyword argument 'max_version'")
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, type(end)]
        self.name = b"dltensor_versioned" if self.versioned else b"dltensor"
        return new(ctypes.addressof(self.managed), self.name, end)


def tensors(nbytes: int) -> dict[str, Producer]:
    """By what they are: all have `nbytes` bytes, which can be written to."""
    memory = bytearray(nbytes)
    return {
        "bfloat16": Producer(memory, (nbytes // 2,), (BFLOAT, 16, 1)),
        "float8": Producer(memory, (2, nbytes // 2), (FLOAT8, 8, 1)),
        "complex32": Producer(memory, (nbytes // 4,), (5, 32, 1)),
        "float4 by two": Producer(memory, (nbytes,), (FLOAT4, 4, 2)),
        "int4, packed": Producer(memory, (2 * nbytes,), (0, 4, 1)),
        "int4, padded": Producer(memory, (nbytes,), (0, 4, 1), flags=4),
        "no dimensions": Producer(memory, (), (UINT, 8, nbytes)),
        "with strides": Producer(memory, (1, 2, nbytes // 4), (BFLOAT, 16, 1), strides=(7, nbytes // 4, 1)),
        "pinned": Producer(memory, (nbytes,), (UINT, 8, 1), device=PINNED),
        "further on": Producer(memory + bytearray(8), (nbytes,), (UINT, 8, 1), offset=8),
    }


@pytest.mark.parametrize("kind", tensors(64))
def test_tensors_of_any_dtype_are_bytes(ring: pynymph.Ring, kind: str) -> None:
    data = np.random.default_rng(1).bytes(64)
    tensor: Any = tensors(64)[kind]
    start = len(tensor.memory) - 64
    ring.copy(src=data, dst=tensor, verify=True)
    assert tensor.memory[start:] == data
    back = bytearray(64)
    ring.copy(src=tensor, dst=back)
    assert back == data
    assert digest.payload(tensor) == ring.digest(src=tensor) == blake3(data).digest()
    with ring.register(tensor) as registered:
        ring.fill(dst=registered, pattern=b"\x07")
        assert bytes(registered.view) == tensor.memory[start:] == b"\x07" * 64


def test_tensor_lives_until_the_driver_is_done() -> None:
    """By its capsule, whose end is what tells the producer."""
    with pynymph.Ring(8, device="model:", paused=True) as ring:
        tensor: Any = tensors(64)["bfloat16"]
        gc.collect()
        ended.clear()
        transfer = ring.submit(pynymph.Copy(src=b"x" * 64, dst=tensor))
        gc.collect()
        assert ended == []
        ring.enable()
        transfer.result()
        assert ended == ["a capsule"]
        registered = ring.register(tensor)
        view = registered.view
        registered.free()
        assert ended == ["a capsule"]
        assert bytes(view) == b"x" * 64
        del view
        assert ended == ["a capsule"] * 2


def test_read_only_tensors_are_only_sources(ring: pynymph.Ring) -> None:
    for tensor in (
        Producer(bytearray(8), (4,), (BFLOAT, 16, 1), flags=1),
        Producer(bytearray(8), (4,), (BFLOAT, 16, 1), flags=2),  # a copy: what is written there is lost
        Producer(bytearray(8), (4,), (BFLOAT, 16, 1), versioned=False),  # does not say
    ):
        thing: Any = tensor
        ring.copy(src=thing, dst=bytearray(8), verify=True)
        with pytest.raises(pynymph.ArgumentError, match="dst is read-only"):
            ring.copy(src=bytes(8), dst=thing)
        with pytest.raises(pynymph.ArgumentError, match="read_only=True"):
            ring.register(thing)
        with ring.register(thing, read_only=True) as registered:
            assert registered.view.readonly


class Lazy(Producer):
    def __init__(self, **state: Any) -> None:
        super().__init__(bytearray(8), (2,), (FLOAT, 32, 1))
        vars(self).update(state)


class Refusing(Producer):
    def __init__(self, error: Exception) -> None:
        super().__init__(bytearray(8), (8,), (UINT, 8, 1))
        self.error = error

    def __dlpack__(self, **wanted: Any) -> Any:
        raise self.error


class Odd(Producer):
    def __init__(self, given: object) -> None:
        super().__init__(bytearray(8), (8,), (UINT, 8, 1))
        self.given = given

    def __dlpack__(self, **wanted: Any) -> Any:
        return self.given


def closed() -> mmap.mmap:
    memory = mmap.mmap(-1, 100)
    memory.close()
    return memory


def released() -> memoryview:
    view = memoryview(bytearray(8))
    view.release()
    return view


other_version = Producer(bytearray(8), (8,), (UINT, 8, 1))
other_version.managed.major = 2
elsewhere = Producer(bytearray(8), (8,), (UINT, 8, 1))
elsewhere.managed.tensor.device_type = CUDA
REFUSED: dict[str, tuple[Any, str]] = {
    "on a GPU": (Lazy(device=CUDA), "is on a device .*type 2.*bring it to the CPU"),
    "secretly on a GPU": (elsewhere, "says that it is on the CPU"),
    "negated": (Lazy(is_neg=lambda: True), r"is negated lazily; give tensor.resolve_neg\(\)"),
    "conjugated": (Lazy(is_conj=lambda: True), r"is conjugated lazily; give tensor.resolve_conj\(\)"),
    "with gradient": (Lazy(requires_grad=True), r"requires a gradient; give tensor.detach\(\)"),
    "sparse": (Lazy(is_sparse=True), r"is sparse; give tensor.to_dense\(\)"),
    "quantized": (Lazy(is_quantized=True), r"is quantized; give tensor.int_repr\(\)"),
    "F-ordered": (Producer(bytearray(8), (2, 4), (UINT, 8, 1), strides=(1, 2)), "give its transpose"),
    "with gaps": (Producer(bytearray(8), (4,), (UINT, 8, 1), strides=(2,)), "without gaps"),
    "broadcast": (Producer(bytearray(8), (4,), (UINT, 8, 1), strides=(0,)), "without gaps"),
    "refusing": (Refusing(BufferError("not today")), "by DLPack: not today; give a dense array"),
    "of no device": (Refusing(ValueError("meta")), "by DLPack: meta"),
    "no capsule": (Odd(5), "no DLPack capsule"),
    "of another DLPack": (other_version, "DLPack 2, and 1 is known"),
    "objects": (np.array([{}, None]), "Python objects"),
    "objects in a struct": (np.zeros(2, [("Other", "i4"), ("it", object)]), "Python objects"),
    "objects beside times": (np.zeros(2, [("at", "M8[s]"), ("it", object)]), "Python objects"),
    "objects of ctypes": ((ctypes.py_object * 2)(1, 2), "Python objects"),
    "F-ordered array": (np.zeros((3, 4)).T, "F-ordered; give its transpose"),
    "F-ordered times": (np.zeros((3, 4), "M8[s]").T, "F-ordered; give its transpose"),
    "array with gaps": (np.zeros(8)[::2], "without gaps"),
    "times with gaps": (np.zeros(8, "M8[s]")[::2], "without gaps"),
    "bfloat16 with gaps": (np.zeros(8, ml_dtypes.bfloat16)[::-1], "without gaps"),
    "closed": (closed(), "closed"),
    "released": (released(), "released"),
    "text": ("text", "give bytes, an array or a tensor"),
    "a number": (5, "give bytes, an array or a tensor"),
    "None": (None, "give bytes, an array or a tensor"),
    "a list": ([1, 2], "give bytes, an array or a tensor"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_tensors_say_what_to_do(ring: pynymph.Ring, kind: str) -> None:
    thing, said = REFUSED[kind]
    uses: list[Callable[[], object]] = [
        lambda: ring.copy(src=thing, dst=bytearray(8)),
        lambda: ring.copy(src=bytes(8), dst=thing),
        lambda: ring.fill(dst=thing),
        lambda: ring.digest(src=thing),
        lambda: ring.compare(a=bytes(8), b=thing),
        lambda: ring.submit(pynymph.Hash(src=thing)),
        lambda: ring.register(thing),
        lambda: ring.register(thing, read_only=True),
        lambda: digest.payload(thing),
    ]
    for use in uses:
        with pytest.raises(pynymph.ArgumentError, match=said):
            use()
    assert ring.status().active_descriptors == 0


DTYPES = [
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e8m0fnu",
    "int4",
    "uint4",
    "int2",
    "float4_e2m1fn",
]
STRANGE: dict[str, Any] = {
    **{name: lambda name=name: np.zeros((2, 8), getattr(ml_dtypes, name)) for name in DTYPES},
    "datetime64": lambda: np.zeros(4, "M8[ns]"),
    "timedelta64": lambda: np.zeros((2, 2), "m8[s]"),
    "struct with a time": lambda: np.zeros(4, [("at", "M8[s]"), ("n", "i4")]),
    "bfloat16 without dimensions": lambda: np.zeros((), ml_dtypes.bfloat16),
    "time without dimensions": lambda: np.zeros((), "M8[s]"),
    "big-endian": lambda: np.zeros(4, ">i4"),
    "complex": lambda: np.zeros(4, "c16"),
    "long double": lambda: np.zeros(4, "g"),
    "half": lambda: np.zeros(4, "f2"),
    "bool": lambda: np.zeros(4, "?"),
    "void": lambda: np.zeros(4, "V3"),
    "text": lambda: np.zeros(4, "U5"),
    "struct": lambda: np.zeros(4, [("O", "i4"), (":O", "c8")]),
    "array": lambda: array.array("d", [0.0] * 4),
    "ctypes": lambda: (ctypes.c_longdouble * 3)(),
    "matrix": lambda: np.zeros((2, 2), "M8[s]").view(np.matrix),
}


@pytest.mark.parametrize("name", STRANGE)
def test_memory_of_any_dtype_is_bytes(ring: pynymph.Ring, name: str) -> None:
    """Also through register(), whose view and digest took native single letters alone."""
    thing: Any = STRANGE[name]()
    length = thing.nbytes if hasattr(thing, "nbytes") else len(bytes(thing))
    data = np.random.default_rng(2).bytes(length)
    ring.copy(src=data, dst=thing, verify=True)
    assert (thing.tobytes() if hasattr(thing, "tobytes") else bytes(thing)) == data
    assert digest.payload(thing) == ring.digest(src=thing) == blake3(data).digest()
    with ring.register(thing) as registered:
        assert bytes(registered.view) == data
        assert digest.payload(registered) == blake3(data).digest()
        assert digest.payload(registered[:1]) == blake3(data[:1]).digest()
        assert bytes(np.asarray(registered)) == data


@pytest.mark.parametrize(
    "scalar", [np.float32(1), np.datetime64(5, "s"), ml_dtypes.bfloat16(1), np.void(b"12")]
)
def test_scalars_are_only_sources(ring: pynymph.Ring, scalar: Any) -> None:
    assert ring.digest(src=scalar) == digest.payload(scalar) == blake3(scalar.tobytes()).digest()
    with pytest.raises(pynymph.ArgumentError, match="dst is read-only"):
        ring.fill(dst=scalar)


@pytest.mark.parametrize(
    "empty",
    [b"", bytearray(), np.zeros(0), np.zeros((0, 3), "M8[s]"), np.zeros((3, 0), ml_dtypes.bfloat16),
     Producer(bytearray(8), (0, 4), (BFLOAT, 16, 1), strides=(9, 9))],
    ids=lambda each: type(each).__name__,
)  # fmt: skip
def test_empty_memory_is_refused_but_hashed(ring: pynymph.Ring, empty: Any) -> None:
    with pytest.raises(pynymph.ArgumentError, match="1 to 1073741824 bytes, and this one 0"):
        ring.copy(src=empty, dst=bytearray())
    with pytest.raises(pynymph.ArgumentError, match="nbytes is 0; give a whole number"):
        ring.register(empty, read_only=True)
    assert digest.payload(empty) == blake3(b"").digest()


@pytest.mark.parametrize("readonly", [True, False])
def test_an_array_interface_is_enough(ring: pynymph.Ring, readonly: bool) -> None:
    memory = np.arange(16, dtype=np.uint8)
    interface = memory.view("<V2").__array_interface__ | {"data": (memory.ctypes.data, readonly)}
    thing: Any = SimpleNamespace(__array_interface__=interface)
    assert ring.digest(src=thing) == digest.payload(thing) == blake3(memory.tobytes()).digest()
    if readonly:
        with pytest.raises(pynymph.ArgumentError, match="dst is read-only"):
            ring.fill(dst=thing)
    else:
        ring.fill(dst=thing, pattern=b"\1")
        assert (memory == 1).all()


def test_ring_buffer_cannot_be_registered(ring: pynymph.Ring) -> None:
    with pytest.raises(pynymph.ArgumentError, match="RingBuffer already"):
        ring.register(ring.allocate(8))  # type: ignore[arg-type]


# --- the real ones ---


TORCH = "float8_e4m3fn float8_e5m2 float8_e8m0fnu float4_e2m1fn_x2 bfloat16 float16 complex32 uint64 bool"


@pytest.mark.parametrize("name", TORCH.split())
def test_torch_dtypes_are_bytes(ring: pynymph.Ring, name: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.empty((4, 16), dtype=getattr(torch, name))
    octets = tensor.view(torch.uint8)
    data = np.random.default_rng(3).bytes(octets.numel())
    ring.copy(src=data, dst=tensor, verify=True)
    assert octets.numpy().tobytes() == data
    assert digest.payload(tensor) == ring.digest(src=tensor) == blake3(data).digest()
    with ring.register(tensor) as registered:
        ring.fill(dst=registered, pattern=b"\3")
    assert (octets == 3).all()


def test_lazy_torch_tensors_are_refused(ring: pynymph.Ring) -> None:
    torch = pytest.importorskip("torch")
    z = torch.tensor([1 + 2j, 3 + 4j])
    for tensor, said in [
        (z.conj().imag, r"resolve_neg\(\)"),
        (torch._neg_view(torch.ones(4)), r"resolve_neg\(\)"),
        (z.conj(), r"resolve_conj\(\)"),
        (torch.zeros(4, requires_grad=True), r"detach\(\)"),
        (torch.nn.Parameter(torch.zeros(4)), r"detach\(\)"),
        (torch.eye(3).to_sparse(), r"to_dense\(\)"),
        (torch.eye(3).to_sparse_csr(), "give a dense array"),
        (torch.zeros(3, device="meta"), "does not give its memory"),
        (torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.quint8), r"int_repr\(\)"),
        (torch.zeros(3, 4).T, r"its transpose, .T"),
        (torch.zeros(8)[::2], "without gaps"),
        (torch.zeros(1).expand(8), "without gaps"),
    ]:
        uses: list[Callable[[Any], object]] = [lambda it: ring.digest(src=it), lambda it: ring.fill(dst=it)]
        for use in [*uses, digest.payload, ring.register]:
            with pytest.raises(pynymph.ArgumentError, match=said):
                use(tensor)
    imag = z.conj().imag.resolve_neg()
    back = torch.zeros(2)
    ring.copy(src=imag.contiguous(), dst=back, verify=True)
    assert back.tolist() == [-2.0, -4.0]


def test_torch_writes_to_read_only_memory(ring: pynymph.Ring) -> None:
    """What docs say of torch.from_dlpack(). NumPy does not."""
    torch = pytest.importorskip("torch")
    data = bytearray(b"12345678")
    with ring.register(memoryview(data).toreadonly(), read_only=True) as buffer:
        assert not np.from_dlpack(buffer).flags.writeable  # type: ignore[arg-type]
        torch.from_dlpack(buffer)[0] = 0x41
    assert data == b"A2345678"


@pytest.mark.parametrize(
    "name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "float32", "complex64", "bool", "int8"]
)
def test_jax_arrays_are_only_sources(ring: pynymph.Ring, name: str) -> None:
    jax = pytest.importorskip("jax")
    tensor = jax.numpy.arange(16).astype(name if name != "bool" else "bool_")
    data = np.asarray(tensor).tobytes()
    assert digest.payload(tensor) == ring.digest(src=tensor) == blake3(data).digest()
    with pytest.raises(pynymph.ArgumentError, match="dst is read-only"):
        ring.fill(dst=tensor)


def test_packed_jax_int4_is_refused(ring: pynymph.Ring) -> None:
    jax = pytest.importorskip("jax")
    tensor = jax.numpy.arange(4).astype("int4")
    with pytest.raises(pynymph.ArgumentError, match=r"give a dense array of it, such as numpy.asarray\(\)"):
        ring.digest(src=tensor)
    assert ring.digest(src=np.asarray(tensor)) == blake3(np.asarray(tensor).tobytes()).digest()
