# SPDX-License-Identifier: MIT
"""What reads bytes of others, for libFuzzer: python tests/fuzz/readers.py READER [LIBFUZZER OPTION]...

Whatever the bytes are, a reader takes them or raises the error that its users know. It needs atheris.
"""

import contextlib
import os
import random
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

if __name__ == "__main__":
    import atheris

    sys.path[:0] = [
        str(Path(__file__).parents[2]),
        *(str(Path(__file__).parents[2] / at) for at in ("vm", "nymphd")),
    ]
    instrumented = atheris.instrument_imports(include=["pynymph", "nymphd", "nymph_vm"])
else:
    instrumented = contextlib.nullcontext()

with instrumented:
    from nymph_vm.endpoint import CARD_OFFSET, BusMemory, Worker
    from nymphd.gate import Refused
    from nymphd.open_inference import InferenceRequest, _tensors
    from nymphd.parsing import _parse, _validate
    from nymphd.tensors import BadInput, Tensor, unpack_bytes

    from pynymph import signatures, weights
    from pynymph.errors import NymphError

_FILE = os.memfd_create("read")
_PATH = f"/proc/self/fd/{_FILE}"


def _file(data: bytes) -> str:
    os.ftruncate(_FILE, 0)
    os.pwrite(_FILE, data, 0)
    return _PATH


def manifest(data: bytes) -> None:
    """A manifest of weights."""
    weights.Manifest.parse(data.decode("utf-8", "replace"))


def safetensors(data: bytes) -> None:
    """The header of a safetensors file. Its length is put right, or no more of it would be read."""
    weights.read_header(_file(len(data[8:]).to_bytes(8, "little") + data[8:]))


def bundle(data: bytes) -> None:
    """A signature's file, as far as no key is needed."""
    signatures.read(_file(data), key="/dev/null")


def statement(data: bytes) -> None:
    """What a signature signs."""
    signatures._statement("a signature", data, "somebody")


def inference(data: bytes) -> None:
    """A request of the Open Inference Protocol: JSON, a zero byte, and what is behind it."""
    text, _, behind = data.partition(b"\0")
    request = _validate(InferenceRequest, _parse(text))
    for tensor in _tensors(request, memoryview(behind)):
        tensor.array()


def elements(data: bytes) -> None:
    """Elements of BYTES."""
    found = unpack_bytes("x", data)
    assert Tensor("x", "BYTES", (len(found),), data).array().tolist() == found


def descriptors(data: bytes) -> None:
    """Descriptors of the endpoint's ring."""
    ram, card = memoryview(bytearray(1 << 16)), memoryview(bytearray(CARD_OFFSET + (1 << 12)))
    memory = BusMemory(ram, [(1 << 32, 1 << 15), (1 << 40, 1 << 15)], card)
    memory.map_card(1 << 44)
    ram[: len(data[:4096])] = data[:4096]
    worker = Worker(0, _Registers(), _Registers(), memory, _Board(), -1, os.eventfd(0))  # type: ignore[arg-type]
    worker._size, worker._ring, worker._done = 128, ram[:4096].cast("I"), ram[4096:8192].cast("I")
    try:
        for _ in range(len(data[:4096]) // 32):
            worker._take()
    finally:
        os.close(worker._vector)


class _Registers(dict[str, int]):
    """Registers of the endpoint, without memory."""


class _Board:
    """Faults of the endpoint: each in its turn, but those that end or stop it."""

    _kinds = (
        "",
        "short",
        "misplaced",
        "skipped",
        "flip",
        "lost",
        "reordered",
        "doubled",
        "unknown",
        "no-interrupt",
    )

    def __init__(self) -> None:
        self._turn = 0

    def draw(self, channel: int) -> tuple[str, random.Random]:
        """The next fault."""
        self._turn += 1
        return self._kinds[self._turn % len(self._kinds)], random.Random(self._turn)


# What they may raise.
READERS: dict[str, tuple[Callable[[bytes], None], tuple[type[Exception], ...]]] = {
    "manifest": (manifest, (NymphError,)),
    "safetensors": (safetensors, (NymphError,)),
    "bundle": (bundle, (NymphError,)),
    "statement": (statement, (NymphError,)),
    "inference": (inference, (Refused, BadInput)),
    "elements": (elements, (BadInput,)),
    "descriptors": (descriptors, ()),
}

_TENSOR = '{"dtype":"U8","shape":[2],"nbytes":2,"digest":"%s"}' % ("0" * 64)
_RESOURCE = '{"name":"a","algorithm":"sha256","digest":"%s"}' % ("0" * 64)
SEEDS: dict[str, list[bytes]] = {
    "manifest": [
        f'{{"format":"pynymph.weights","version":1,"node_bytes":16777216,"files":{{"a":{{"nbytes":9,"header":'
        f'{{"nbytes":10,"digest":"{"0" * 64}"}}}}}},"tensors":{{"t":{_TENSOR}}}}}'.encode()
    ],
    "safetensors": [
        b'\0\0\0\0\0\0\0\0{"__metadata__":{"a":"b"},"t":{"dtype":"U8","shape":[0,2],"data_offsets":[0,0]}}'
    ],
    "bundle": [
        b'{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":'
        b'"x"}},"dsseEnvelope":{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":'
        b'[{"sig":"AA=="}]}}'
    ],
    "statement": [
        f'{{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://model_signing/signature/v1.0",'
        f'"subject":[{{"name":"m","digest":{{"sha256":"{sha256(bytes(32)).hexdigest()}"}}}}],"predicate":{{"resources":[{_RESOURCE}],'
        f'"serialization":{{"method":"files","allow_symlinks":false,"ignore_paths":[".git"]}}}}}}'.encode()
    ],
    "inference": [
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[1,2.5]},{"name":"y","datatype":"BYTES",'
        b'"shape":[1],"parameters":{"binary_data_size":6}}]}\0\2\0\0\0ab'
    ],
    "elements": [b"\1\0\0\0a\0\0\0\0"],
    "descriptors": [
        (1 << 32).to_bytes(8, "little") * 2 + bytes([16, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0])
    ],
}


def read(name: str, data: bytes) -> None:
    """Have a reader read. Raises what it must not raise."""
    reader, expected = READERS[name]
    with contextlib.suppress(*expected):
        reader(data)


def main() -> None:
    """Run libFuzzer."""
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"usage: {sys.argv[0]} READER [LIBFUZZER OPTION]...; READER is one of {', '.join(READERS)}")
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, lambda data: read(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
