# SPDX-License-Identifier: MIT
"""What reads bytes of others, for libFuzzer: python tests/fuzz/readers.py READER [LIBFUZZER OPTION]...

Whatever the bytes are, a reader takes them or raises the error that its users know. It needs atheris.
"""

import contextlib
import io
import json
import os
import random
import struct
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

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

    import pynymph
    from pynymph import evidence as evidences
    from pynymph import signatures, weights
    from pynymph.errors import NymphError
    from pynymph.evidence import canonical
    from pynymph.model import Model
    from pynymph.weights.gguf_files import Gguf
    from pynymph.weights.sources import Npz

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


def gguf(data: bytes) -> None:
    """The header of a GGUF file."""
    Gguf(Path(_file(data)))


def npz(data: bytes) -> None:
    """The members of an npz file."""
    Npz(Path(_file(data)))


def bundle(data: bytes) -> None:
    """A signature's file, by somebody whose key is known."""
    signatures.read(_file(data), key=_KEYS / "public.pem")


def certificates(data: bytes) -> None:
    """A signature's file, by somebody whose certificate descends from a known root."""
    signatures.read(_file(data), ca=_KEYS / "root.pem")


def statement(data: bytes) -> None:
    """What a signature signs."""
    signatures._statement("a signature", data, "somebody")


def evidence(data: bytes) -> None:
    """Evidence of copies. Its digest is put right, or no more of it would be read."""
    with contextlib.suppress(ValueError, TypeError, KeyError, NymphError):
        file = canonical.decode(data, "x", len(data))
        told = blake3(file["evidence"], derive_key_context="pynymph 2026-12 evidence digest v1").digest()
        data = canonical.encode(file | {"digest": told})
    found, _ = evidences.verify(data, "evidence")
    assert found.to_bytes() == data
    evidences.summary(found)


def slice_(data: bytes) -> None:
    """A slice of a file."""
    found = evidences.Slice.from_bytes(data)
    assert found.to_bytes() == data
    _, shown = found.proven()
    assert found.digest != _WHOLE_DIGEST or shown == _WHOLE[found.begin : found.begin + found.length]


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
    "gguf": (gguf, (NymphError,)),
    "npz": (npz, (NymphError,)),
    "bundle": (bundle, (NymphError,)),
    "certificates": (certificates, (NymphError,)),
    "statement": (statement, (NymphError,)),
    "evidence": (evidence, (NymphError,)),
    "slice": (slice_, (NymphError,)),
    "inference": (inference, (Refused, BadInput)),
    "elements": (elements, (BadInput,)),
    "descriptors": (descriptors, ()),
}

_TENSOR = '{"dtype":"U8","shape":[2],"nbytes":2,"digest":"%s"}' % ("0" * 64)
_RESOURCE = '{"name":"a","algorithm":"sha256","digest":"%s"}' % ("0" * 64)

_FOLDER = tempfile.TemporaryDirectory()
_KEYS = Path(_FOLDER.name)
"""Keys and certificates, always the same; a model of one file, and its signatures."""


def _signed(name: str, chain: str | None = None) -> bytes:
    """Sign a model, and return the signature's file."""
    issuer, private = (ec.derive_private_key(number, ec.SECP256R1()) for number in (7, 11))
    pem, public = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (_KEYS / "key.pem").write_bytes(private.private_bytes(pem, *plain))
    (_KEYS / "public.pem").write_bytes(private.public_key().public_bytes(pem, public))
    root, begin = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")]), datetime(2026, 1, 1)
    for file, key, subject in (("root", issuer, root), ("chain", private, x509.Name([]))):
        ca = file == "root"
        made = x509.CertificateBuilder(
            root, subject, key.public_key(), 7, begin, begin + timedelta(days=3650)
        )
        made = made.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        usage = x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)
        signed = made.add_extension(usage, critical=True).sign(issuer, hashes.SHA256())
        (_KEYS / f"{file}.pem").write_bytes(signed.public_bytes(pem))
    (_KEYS / "model").write_bytes(b"weights")
    chained = None if chain is None else _KEYS / chain
    signatures.sign(_KEYS / "model", _KEYS / name, key=_KEYS / "key.pem", certificates=chained)
    return (_KEYS / name).read_bytes()


_WHOLE = bytes(range(250)) * 20
_WHOLE_DIGEST = blake3(_WHOLE).digest()


def _evidence(nonce: bytes | None, signature: bytes | None = None) -> bytes:
    """Evidence of a copy; with a nonce, the driver attests it, or signs it so, and a TPM quotes."""
    log = evidences.Log(by="somebody")
    Model.attest_key = bytes(32)
    with pynymph.Ring(device="model:", evidence=log) as ring:
        log.add(ring.copy(src=_WHOLE, dst=bytearray(len(_WHOLE)), verify=True), source="a", target="b")
        made = log.evidence(nonce)
    Model.attest_key = None
    if made.attested is not None:
        if signature is not None:
            made = replace(made, attested=replace(made.attested, digest=None, signature=signature))
            assert made.attested is not None
        message = struct.pack(">IHHH32s", 0xFF544347, 0x8018, 0, 32, made.attested.to_quote()) + bytes(25)
        message += struct.pack(">IHB3sH", 1, 11, 3, b"\0\0\1", 32) + sha256(bytes(32)).digest()
        made = evidences.with_quote(made, message, b"", bytes(32))
    return made.to_bytes()


def _gguf() -> bytes:
    """A GGUF file of a key with a string, one with an array of strings, and two tensors."""
    text = struct.pack("<Q1s", 1, b"k")
    header = b"GGUF" + struct.pack("<IQQ", 3, 2, 2) + text + struct.pack("<I", 8) + text
    header += text + struct.pack("<IIQ", 9, 8, 2) + text + text
    for name, kind, at in ((b"t", 0, 0), (b"u", 2, 32)):
        header += struct.pack("<Q1sIQIQ", 1, name, 1, 32 if kind else 8, kind, at)
    return header + bytes(-len(header) % 32 + 64)


def _npz() -> bytes:
    """An npz file of two arrays."""
    made = io.BytesIO()
    np.savez(made, a=np.arange(3), b=np.zeros((0, 2), ">f4", "F"))
    return made.getvalue()


SEEDS: dict[str, list[bytes]] = {
    "manifest": [
        f'{{"format":"pynymph.weights","version":1,"node_bytes":16777216,"files":{{"a":{{"nbytes":9,"header":'
        f'{{"nbytes":10,"digest":"{"0" * 64}"}}}}}},"tensors":{{"t":{_TENSOR}}}}}'.encode()
    ],
    "safetensors": [
        b'\0\0\0\0\0\0\0\0{"__metadata__":{"a":"b"},"t":{"dtype":"U8","shape":[0,2],"data_offsets":[0,0]}}'
    ],
    "gguf": [_gguf()],
    "npz": [_npz()],
    "bundle": [_signed("by-key.sig")],
    "certificates": [_signed("by-certificate.sig", "chain.pem")],
    "statement": [
        f'{{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://model_signing/signature/v1.0",'
        f'"subject":[{{"name":"m","digest":{{"sha256":"{sha256(bytes(32)).hexdigest()}"}}}}],"predicate":{{"resources":[{_RESOURCE}],'
        f'"serialization":{{"method":"files","allow_symlinks":false,"ignore_paths":[".git"]}}}}}}'.encode()
    ],
    "evidence": [_evidence(None), _evidence(b"nonce"), _evidence(b"nonce", bytes(256))],
    "slice": [evidences.Slice.of(_WHOLE, begin, 100).to_bytes() for begin in (0, 2000, 9999)],
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


JSON = {"manifest": 0, "safetensors": 8, "bundle": 0, "certificates": 0, "statement": 0}
"""Readers of JSON, and how many bytes are before it. Bytes that are changed at random are seldom JSON."""
_ODD = [None, True, -1, 0, 2**64, 1e300, "", "\ud800", "0" * 64, "g" * 64, [], {}, [[]], {"": None}]


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one part of it changed, taken away, or there once more."""
    if isinstance(value, str) and value and rng.random() < 0.5:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice("09afAZ+/=. ") + value[at + rng.randrange(2) :]
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.2:
        return rng.choice(_ODD)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, how = rng.choice(keys), rng.random()
    if isinstance(value, dict):
        made: Any = dict(value)
        if how < 0.1:
            del made[key]
        elif how < 0.2:
            made[f"{key}{rng.randrange(3)}"] = made[key]
        else:
            made[key] = changed(made[key], rng)
        return made
    if how < 0.1:
        return value[:key] + value[key + 1 :]
    if how < 0.2:
        return [*value, value[key]]
    return [changed(each, rng) if i == key else each for i, each in enumerate(value)]


def mutate(name: str, data: bytes, most: int, seed: int) -> bytes:
    """Change what a reader gets, and keep JSON what it is, most times."""
    rng, at = random.Random(seed), JSON[name]
    if rng.random() < 0.8:
        with contextlib.suppress(ValueError, RecursionError):
            found = data[:at] + json.dumps(changed(json.loads(data[at:]), rng)).encode()
            if len(found) <= most:
                return found
    return bytes(atheris.Mutate(data, most))


def main() -> None:
    """Run libFuzzer."""
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"usage: {sys.argv[0]} READER [LIBFUZZER OPTION]...; READER is one of {', '.join(READERS)}")
    name = sys.argv.pop(1)
    for folder in filter(
        os.path.isdir, sys.argv[1:]
    ):  # the corpus: libFuzzer goes on from what it finds there
        for i, seed in enumerate(SEEDS[name]):
            (Path(folder) / f"seed-{i}").write_bytes(seed)
    options: dict[str, Any] = {}
    if name in JSON:
        options["custom_mutator"] = lambda data, most, seed: mutate(name, data, most, seed)
    atheris.Setup(sys.argv, lambda data: read(name, data), **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
