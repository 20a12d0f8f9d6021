# SPDX-License-Identifier: MIT
"""pynymph.signatures: what it signs and verifies, what it refuses, and that other programs agree.

Other programs are model-signing and npm's @sigstore/verify. `make signatures` installs them for these tests.
"""

import base64
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import doc_blocks
import numpy as np
import pytest
from blake3 import blake3
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

import pynymph
from pynymph import evidence, signatures, weights
from pynymph.errors import ArgumentError, NymphError, VerifyError

HERE = Path(__file__).parent
PROGRAMS = HERE.parents[2] / "build/signing_programs"


def write_key(folder: Path, name: str = "key", curve: Any = None) -> ec.EllipticCurvePrivateKey:
    """NAME.pem, and NAME-public.pem."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    (folder / f"{name}.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / f"{name}-public.pem").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return key


def certificate(
    name: str,
    key: Any,
    issuer: Any = None,
    *,
    ca: bool = False,
    usage: bool = True,
    begins: int = -9,
    days: int = 3,
) -> x509.Certificate:
    """A certificate that begins `begins` days from now. `issuer`: its key and certificate."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    begin = datetime.now(UTC) + timedelta(days=begins)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[1].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if usage:
        allowed = x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)
        made = made.add_extension(allowed, critical=True)
    return made.sign(issuer[0] if issuer else key, hashes.SHA256())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys, and a chain of certificates: root.pem, and chain.pem with the signer's and the one between."""
    folder = tmp_path_factory.mktemp("keys")
    key = write_key(folder)
    write_key(folder, "other")
    write_key(folder, "p384", ec.SECP384R1())
    write_key(folder, "p521", ec.SECP521R1())
    root_key, between_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = certificate("root", root_key, ca=True, days=300)
    between = certificate("between", between_key, (root_key, root), ca=True, days=300)
    issuer = between_key, between
    no_ca = certificate("no CA", between_key, (root_key, root), days=300)
    for file, chain in {
        "root": [root],
        "other-root": [certificate("root", between_key, ca=True)],
        "chain": [certificate("signer", key, issuer), between],
        "unusable": [certificate("no signer", key, issuer, usage=False), between],
        "early": [certificate("early", key, issuer, begins=2), between],
        "no-ca": [certificate("signer", key, (between_key, no_ca)), no_ca],
    }.items():
        (folder / f"{file}.pem").write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in chain))
    return folder


FILES = {
    "config.json": b"{}",
    "model-1.safetensors": b"one" * 100_000,
    "model-2.safetensors": b"two" * 50_000,
    "sub/empty": b"",
    "sub/n\u00e4me with \u2028 and \U0001f600": b"names are bytes",
    ".hidden": b"too",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for name, data in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.fixture
def signature(model: Path, keys: Path) -> Path:
    path = model.with_suffix(".sig")
    signatures.sign(model, path, key=keys / "key.pem")
    return path


def verify(model: Path, signature: Path, keys: Path) -> signatures.Report:
    return signatures.verify(model, signature, key=keys / "key-public.pem")


def faults(model: Path, signature: Path, keys: Path) -> list[str]:
    with pytest.raises(signatures.SignatureError) as caught:
        verify(model, signature, keys)
    assert not caught.value.report.ok
    assert all(line in str(caught.value) for line in caught.value.report.lines()[:5])
    return caught.value.report.lines()


def payload_of(signature: Path) -> Any:
    return json.loads(base64.b64decode(json.loads(signature.read_text())["dsseEnvelope"]["payload"]))


# --- what is signed ---


def test_every_file_is_signed_by_name(model: Path, signature: Path, keys: Path) -> None:
    report = verify(model, signature, keys)
    assert report.ok and report.files == len(FILES) and report.nbytes == sum(map(len, FILES.values()))
    assert (report.model, report.algorithms, report.ignored) == ("model", ["blake3"], [])
    predicate = payload_of(signature)["predicate"]
    for field, algorithm, hasher in (
        ("resources", "sha256", hashlib.sha256),
        ("blake3_resources", "blake3", blake3),
    ):
        assert {each["name"]: (each["algorithm"], each["digest"]) for each in predicate[field]} == {
            name: (algorithm, hasher(data).hexdigest()) for name, data in FILES.items()
        }


def test_either_alphabet_of_base64_is_read(model: Path, signature: Path, keys: Path) -> None:
    """With padding and without, as protobuf's JSON may have it. Until both special characters are there."""
    special = set("+/")
    while special - set(signature.read_text()):
        signature.unlink()
        signatures.sign(model, signature, key=keys / "key.pem")
    bundle = json.loads(signature.read_text())
    envelope = bundle["dsseEnvelope"]
    for holder, name in ((envelope, "payload"), (envelope["signatures"][0], "sig")):
        assert not set(holder[name]) & set("-_")
        holder[name] = holder[name].replace("+", "-").replace("/", "_").rstrip("=")
    signature.write_text(json.dumps(bundle))
    assert verify(model, signature, keys).ok


def test_a_file_alone_can_be_signed(model: Path, keys: Path, tmp_path: Path) -> None:
    file = model / "model-1.safetensors"
    made = signatures.sign(file, tmp_path / "one.sig", key=keys / "key.pem")
    assert list(made.files) == ["."]
    assert verify(file, tmp_path / "one.sig", keys).ok
    file.write_bytes(b"other")
    assert faults(file, tmp_path / "one.sig", keys) == [".: differs"]


@pytest.mark.parametrize("curve", ["p384", "p521"])
def test_each_curve_signs(model: Path, keys: Path, tmp_path: Path, curve: str) -> None:
    signatures.sign(model, tmp_path / "sig", key=keys / f"{curve}.pem")
    assert signatures.verify(model, tmp_path / "sig", key=keys / f"{curve}-public.pem").ok


def test_gits_files_and_the_signature_itself_are_left_out(model: Path, keys: Path) -> None:
    (model / ".git").mkdir()
    (model / ".git/HEAD").write_text("ref")
    (model / ".gitattributes").write_text("x")
    for _ in range(2):  # the second time, there is an older one
        signatures.sign(model, model / "model.sig", key=keys / "key.pem")
        assert verify(model, model / "model.sig", keys).ignored == [".git", ".gitattributes", "model.sig"]
    (model / "sub/.gitattributes").write_text("of another folder")
    assert faults(model, model / "model.sig", keys) == ["sub/.gitattributes: not signed"]


def test_a_signature_replaces_no_other_file(model: Path, keys: Path) -> None:
    for name in ("model-1.safetensors", "config.json"):
        with pytest.raises(ArgumentError, match="exists and is no signature"):
            signatures.sign(model, model / name, key=keys / "key.pem")
        assert (model / name).read_bytes() == FILES[name]


def test_progress_ends_with_all_bytes(model: Path, keys: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    total = sum(map(len, FILES.values()))
    signatures.sign(model, tmp_path / "s", key=keys / "key.pem", progress=lambda *of: seen.append(of))
    signatures.verify(
        model, tmp_path / "s", key=keys / "key-public.pem", progress=lambda *of: seen.append(of)
    )
    assert seen.count((total, total)) == 2 and {each for _, each in seen} == {total}


# --- files that differ ---


def test_each_fault_is_named(model: Path, signature: Path, keys: Path) -> None:
    (model / "model-2.safetensors").write_bytes(b"twO" + FILES["model-2.safetensors"][3:])
    (model / "sub/empty").unlink()
    (model / "sub/new").write_bytes(b"n")
    (model / "config.json").rename(model / "configuration.json")
    assert faults(model, signature, keys) == [
        "model-2.safetensors: differs",
        "sub/empty: missing",
        "sub/new: not signed",
        "config.json: is configuration.json here",
    ]


def test_two_names_that_change_places_are_found(model: Path, signature: Path, keys: Path) -> None:
    (model / "model-1.safetensors").rename(model / "x")
    (model / "model-2.safetensors").rename(model / "model-1.safetensors")
    (model / "x").rename(model / "model-2.safetensors")
    assert faults(model, signature, keys) == ["model-1.safetensors: differs", "model-2.safetensors: differs"]


def test_a_new_empty_file_is_named(model: Path, signature: Path, keys: Path) -> None:
    (model / "sub/nothing").touch()
    assert faults(model, signature, keys) == ["sub/nothing: not signed"]


def test_what_is_no_file_any_more_is_named(model: Path, signature: Path, keys: Path) -> None:
    data = (model / "config.json").read_bytes()
    (model / "other").write_bytes(data)
    (model / "config.json").unlink()
    (model / "config.json").symlink_to("other")
    (model / "sub/empty").unlink()
    os.mkfifo(model / "sub/empty")
    (model / "gone").symlink_to("nowhere")
    (model / "round").symlink_to("round")
    (model / "away").symlink_to("/etc/hostname")
    (model / os.fsdecode(b"\xff")).touch()
    assert sorted(faults(model, signature, keys)) == [
        r"'\udcff': has a name that is no UTF-8",
        "away: is a link that leaves the model's folder",
        "config.json: is a link, and a file was signed",
        "gone: is a link that leads to nothing",
        "other: not signed",
        "round: is a link that leads to nothing",
        "sub/empty: is no file",
    ]
    with pytest.raises(ArgumentError, match="leaves the model's folder"):
        signatures.sign(model, signature, key=keys / "key.pem")


def test_links_within_the_folder_are_followed(model: Path, keys: Path, tmp_path: Path) -> None:
    (model / "link").symlink_to("sub")
    (model / "sub/to-config").symlink_to("../config.json")
    made = signatures.sign(model, tmp_path / "s", key=keys / "key.pem")
    assert made.links and {"link/to-config", "link/empty", "sub/to-config"} <= made.files.keys()
    assert verify(model, tmp_path / "s", keys).ok
    (model / "config.json").write_bytes(b"[]")
    assert faults(model, tmp_path / "s", keys) == [
        f"{name}: differs" for name in ("config.json", "link/to-config", "sub/to-config")
    ]
    (model / "config.json").write_bytes(FILES["config.json"])
    (model / "elsewhere").mkdir()
    (model / "link").unlink()
    (model / "link").symlink_to("elsewhere")
    assert "link/empty: missing" in faults(model, tmp_path / "s", keys)


def test_endless_links_end(model: Path, signature: Path, keys: Path) -> None:
    (model / "sub/up").symlink_to("..")
    assert "sub/up/sub/up: is a link to a folder, in a folder that is reached by a link" in faults(
        model, signature, keys
    )


def test_a_folder_that_cannot_be_read_is_no_success(model: Path, signature: Path, keys: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read all")
    (model / "sub").chmod(0)
    try:
        with pytest.raises(NymphError, match="sub can't be read"):
            verify(model, signature, keys)
    finally:
        (model / "sub").chmod(0o755)


# --- signatures that are not ---


@pytest.fixture(scope="module")
def bundle(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("signed")
    (folder / "model").mkdir()
    (folder / "model/a").write_bytes(b"a")
    signatures.sign(folder / "model", folder / "s", key=keys / "key.pem")
    found: dict[str, Any] = json.loads((folder / "s").read_text())
    return found


def changed(bundle: dict[str, Any], change: Any) -> str:
    copy = json.loads(json.dumps(bundle))
    result = change(copy)
    return result if isinstance(result, str) else json.dumps(copy)


def cut_payload(bundle: Any) -> None:
    envelope = bundle["dsseEnvelope"]
    envelope["payload"] = envelope["payload"][:-8]


@pytest.mark.parametrize(
    ("change", "hint", "kind"),
    [
        (lambda b: "", "damaged", ArgumentError),
        (lambda b: "[" * 100_000, "damaged", ArgumentError),
        (lambda b: json.dumps(b)[:-9], "damaged", ArgumentError),
        (lambda b: "[]", "damaged", ArgumentError),
        (lambda b: json.dumps(b)[:-1] + ',"mediaType":""}', "a key twice", ArgumentError),
        (lambda b: b.update(mediaType="image/png"), "its type is 'image/png'", ArgumentError),
        (lambda b: b.pop("dsseEnvelope") and None, "'dsseEnvelope' is missing", ArgumentError),
        (lambda b: b["dsseEnvelope"].update(payloadType="text"), "its payload is 'text'", ArgumentError),
        (lambda b: b["dsseEnvelope"].update(payload="?"), "damaged", ArgumentError),
        (lambda b: b["dsseEnvelope"].update(signatures=[]), "damaged", ArgumentError),
        (lambda b: b["dsseEnvelope"]["signatures"].append({}), "damaged", ArgumentError),
        (lambda b: b["dsseEnvelope"]["signatures"][0].update(sig=""), "was changed", VerifyError),
        (cut_payload, "was changed", VerifyError),
        (
            lambda b: b["verificationMaterial"].pop("publicKey") and None,
            "'publicKey' is missing",
            ArgumentError,
        ),
        (lambda b: b["verificationMaterial"].update(certificate={}), "Sigstore", ArgumentError),
        (
            lambda b: b["verificationMaterial"]["publicKey"].update(hint="\x1b["),
            r"key '\\x1b\['",
            VerifyError,
        ),
    ],
)
def test_damaged_bundles_are_refused(
    bundle: dict[str, Any], keys: Path, tmp_path: Path, change: Any, hint: str, kind: type[NymphError]
) -> None:
    path = tmp_path / "bad.sig"
    path.write_text(changed(bundle, change))
    with pytest.raises(kind, match=hint) as caught:
        signatures.read(path, key=keys / "key-public.pem")
    assert type(caught.value) is kind and "\n" not in str(caught.value)


def test_any_damage_is_one_error(keys: Path, model: Path, tmp_path: Path) -> None:
    """Bits of a bundle with certificates, whose readers are several libraries."""
    path, choose = tmp_path / "s", random.Random(5)
    signatures.sign(model, path, key=keys / "key.pem", certificates=keys / "chain.pem")
    whole = json.loads(path.read_text())
    chain = whole["verificationMaterial"]["x509CertificateChain"]["certificates"]
    for turn in range(300):
        copy = json.loads(json.dumps(whole))
        certificate = copy["verificationMaterial"]["x509CertificateChain"]["certificates"][turn % 2]
        raw = bytearray(base64.b64decode(chain[turn % 2]["rawBytes"]))
        raw[choose.randrange(len(raw))] ^= 1 << choose.randrange(8)
        certificate["rawBytes"] = base64.b64encode(raw).decode()
        path.write_text(json.dumps(copy))
        with pytest.raises((VerifyError, ArgumentError)):
            signatures.read(path, ca=keys / "root.pem")
    text = json.dumps(whole).encode()
    for _ in range(300):
        raw = bytearray(text)
        raw[choose.randrange(len(raw))] = choose.randrange(256)
        path.write_bytes(raw)
        try:
            signatures.read(path, ca=keys / "root.pem")
        except (VerifyError, ArgumentError):
            continue
        # What has no meaning may change: the key's name, the log's entries, and the last bits of base64.
        assert payload_of(path) == json.loads(base64.b64decode(whole["dsseEnvelope"]["payload"]))


def resigned(bundle: dict[str, Any], keys: Path, path: Path, change: Any) -> None:
    """Sign another statement with the right key."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    copy = json.loads(json.dumps(bundle))
    envelope = copy["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    change(statement)
    resources = statement["predicate"]["resources"]
    if statement["subject"][0]["digest"]["sha256"] != "wrong" and all(
        len(r["digest"]) > 1 for r in resources
    ):
        listed = b"".join(bytes.fromhex(resource["digest"]) for resource in resources)
        statement["subject"][0]["digest"]["sha256"] = hashlib.sha256(listed).hexdigest()
    payload = json.dumps(statement).encode()
    key: Any = load_pem_private_key((keys / "key.pem").read_bytes(), None)
    message = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"][0]["sig"] = base64.b64encode(key.sign(message, ec.ECDSA(hashes.SHA256()))).decode()
    path.write_text(json.dumps(copy))


def shards(*names: str) -> Any:
    def change(statement: Any) -> None:
        predicate = statement["predicate"]
        predicate["serialization"] |= {"method": "shards", "shard_size": 1000.0}
        predicate.pop("blake3_resources", None)
        predicate["resources"] = [
            {"name": name, "algorithm": "sha256-sharded-1000", "digest": "00" * 32} for name in names
        ]

    return change


def first(**changes: Any) -> Any:
    return lambda statement: statement["predicate"]["resources"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda s: s.update(predicateType="https://slsa.dev"), "https://slsa.dev"),
        (lambda s: s.update(_type="other"), "it is a"),
        (lambda s: s["subject"].append({}), "damaged"),
        (lambda s: s["subject"][0]["digest"].update(sha256="wrong"), "digest of its subject"),
        (lambda s: s["predicate"]["serialization"].update(method="magic"), "'magic' is no known method"),
        (lambda s: s["predicate"].update(resources=[], blake3_resources=[]), "of no file"),
        (lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]), "there twice"),
        (lambda s: s["predicate"]["blake3_resources"].append(s["predicate"]["blake3_resources"][0]), "twice"),
        (lambda s: s["predicate"]["blake3_resources"][0].update(name="b"), "not of all files"),
        (first(name="../a"), "'../a' is no name"),
        (first(name="/a"), "'/a' is no name"),
        (first(name="b//a"), "'b//a' is no name"),
        (first(name=7), "is no name"),
        (first(name="a\0b"), "is no name"),
        (first(algorithm="md5"), "'md5' is no known digest"),
        (first(algorithm="blake2b"), "not of its length"),
        (first(digest="0"), "damaged"),
        (shards("a"), "'a' is no name of a shard"),
        (shards("a:0:1000", "a:2000:3000"), "leave gaps"),
        (shards("a:0:1000", "a:0:1000"), "twice"),
        (shards("a:5:5"), "not of its length"),
        (shards("a:0:-5"), "no name of a shard"),
        (shards(".:0:1000", "a:0:5"), "of a folder and of a file"),
    ],
)
def test_statements_that_make_no_sense_are_refused(
    bundle: dict[str, Any], keys: Path, tmp_path: Path, change: Any, hint: str
) -> None:
    resigned(bundle, keys, tmp_path / "s", change)
    with pytest.raises(ArgumentError, match=hint.replace(".", r"\.")):
        signatures.read(tmp_path / "s", key=keys / "key-public.pem")


def test_a_signed_file_is_verified_even_if_it_is_to_be_ignored(
    bundle: dict[str, Any], keys: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_bytes(b"a")
    (folder / "b").write_bytes(b"b")
    wide = [".", "a", "..", "/", "x/../b"]
    resigned(
        bundle,
        keys,
        tmp_path / "s",
        lambda s: s["predicate"]["serialization"].update(ignore_paths=wide),
    )
    assert faults(folder, tmp_path / "s", keys) == ["b: not signed"]
    (folder / "b").unlink()
    (folder / "a").write_bytes(b"A")
    assert faults(folder, tmp_path / "s", keys) == ["a: differs"]


# --- keys and certificates ---


def test_other_keys_are_refused(signature: Path, keys: Path, tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match="give the signer's key"):
        signatures.read(signature, key=keys / "other-public.pem")
    bundle = json.loads(signature.read_text())
    del bundle["verificationMaterial"]["publicKey"]["hint"]
    signature.write_text(json.dumps(bundle))
    with pytest.raises(VerifyError, match="is not a signature by key"):
        signatures.read(signature, key=keys / "other-public.pem")
    assert signatures.read(signature, key=keys / "key-public.pem").files
    with pytest.raises(ArgumentError, match="made with a key alone"):
        signatures.read(signature, ca=keys / "root.pem")
    with pytest.raises(ArgumentError, match="either"):
        signatures.read(signature)


def test_files_that_are_no_key_are_refused(model: Path, signature: Path, keys: Path, tmp_path: Path) -> None:
    edwards = ed25519.Ed25519PrivateKey.generate()
    locked = ec.generate_private_key(ec.SECP256R1())
    koblitz = ec.generate_private_key(ec.SECP256K1())
    pem = Encoding.PEM, PrivateFormat.PKCS8
    (tmp_path / "edwards").write_bytes(edwards.private_bytes(*pem, NoEncryption()))
    (tmp_path / "koblitz").write_bytes(koblitz.private_bytes(*pem, NoEncryption()))
    (tmp_path / "locked").write_bytes(locked.private_bytes(*pem, BestAvailableEncryption(b"secret")))
    (tmp_path / "rubbish").write_bytes(b"-----BEGIN")
    for key, hint in {
        tmp_path / "edwards": "P-256",
        tmp_path / "koblitz": "P-256",
        tmp_path / "locked": "is encrypted",
        tmp_path / "rubbish": "no private key",
        keys / "key-public.pem": "no private key",
        tmp_path / "none": "can't be read",
    }.items():
        with pytest.raises(NymphError, match=hint):
            signatures.sign(model, tmp_path / "s", key=key)
    for key in (keys / "key.pem", tmp_path / "rubbish", keys / "root.pem"):
        with pytest.raises(ArgumentError, match="no public key"):
            signatures.read(signature, key=key)
    assert not (tmp_path / "s").exists()


def test_the_extra_is_named_where_it_is_missing(
    model: Path, signature: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.x509.verification", None)
    for run in (
        lambda: signatures.sign(model, signature, key=keys / "key.pem"),
        lambda: signatures.read(signature, key=keys / "key-public.pem"),
    ):
        with pytest.raises(NymphError, match=r"pip install 'pynymph\[signatures\]'"):
            run()


def test_certificates_sign(model: Path, keys: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    made = signatures.sign(model, path, key=keys / "key.pem", certificates=keys / "chain.pem")
    assert made.signer == "certificate CN=signer"
    # The certificate is valid no more, as in any model that is older than its signer's certificate.
    assert signatures.verify(model, path, ca=keys / "root.pem").signer == made.signer
    with pytest.raises(VerifyError, match=r"CN=signer of .* is not by"):
        signatures.read(path, ca=keys / "other-root.pem")
    with pytest.raises(ArgumentError, match="made with a certificate"):
        signatures.read(path, key=keys / "key-public.pem")
    with pytest.raises(ArgumentError, match="has no certificates"):
        signatures.read(path, ca=keys / "key-public.pem")
    bundle = json.loads(path.read_text())
    bundle["verificationMaterial"]["x509CertificateChain"]["certificates"].pop()
    path.write_text(json.dumps(bundle))
    with pytest.raises(VerifyError, match="is not by"):
        signatures.read(path, ca=keys / "root.pem")


def test_certificates_that_cannot_sign_are_refused(model: Path, keys: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(ArgumentError, match="is not that of"):
        signatures.sign(model, path, key=keys / "other.pem", certificates=keys / "chain.pem")
    with pytest.raises(ArgumentError, match="neither digital signatures"):
        signatures.sign(model, path, key=keys / "key.pem", certificates=keys / "unusable.pem")
    for chain, hint in {"early": "begins on", "no-ca": "is not by"}.items():
        signatures.sign(model, path, key=keys / "key.pem", certificates=keys / f"{chain}.pem")
        with pytest.raises(VerifyError, match=hint):
            signatures.read(path, ca=keys / "root.pem")
    # Another program may have signed with it.
    bundle = json.loads(path.read_text())
    raw = [x509.load_pem_x509_certificates((keys / "unusable.pem").read_bytes())]
    bundle["verificationMaterial"]["x509CertificateChain"]["certificates"] = [
        {"rawBytes": base64.b64encode(each.public_bytes(Encoding.DER)).decode()} for each in raw[0]
    ]
    path.write_text(json.dumps(bundle))
    with pytest.raises(VerifyError, match="neither digital signatures"):
        signatures.read(path, ca=keys / "root.pem")


# --- from the signature to tensors ---


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    made = np.random.default_rng(7)
    return {
        "b": made.standard_normal((300, 70)).astype(np.float32),
        "a": made.integers(0, 99, (3, 5), np.int16),
        "none": np.zeros((0, 4), np.float16),
    }


def write_tensors(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    header, data = {}, b""
    for name, array in tensors.items():
        kind = {"f": "F", "i": "I"}[array.dtype.kind] + str(8 * array.itemsize)
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_digest_of_a_file_is_made_from_tensors(tmp_path: Path) -> None:
    path, tensors = tmp_path / "model.safetensors", arrays()
    write_tensors(path, tensors)
    file = weights.Manifest.parse(weights.manifest(path).json()).files[path.name]
    raw = path.read_bytes()
    others = tensors | {"of another file": np.zeros(3)}
    assert weights.file_digest(file.header, others) == blake3(raw).digest()
    assert weights.file_digest(file.header, others, algorithm="sha256") == hashlib.sha256(raw).digest()
    tensors["a"][2, 1] ^= 1
    assert weights.file_digest(file.header, tensors) != blake3(raw).digest()
    for wrong, hint in (
        ({**tensors, "a": tensors["a"].ravel()}, r"a is I16 \[15\] instead of I16 \[3, 5\]"),
        ({"a": tensors["a"]}, "b is missing"),
    ):
        with pytest.raises(ArgumentError, match=hint):
            weights.file_digest(file.header, wrong)
    for header in (b"", file.header[:-1], file.header + b" ", file.header[:8] + b"[]"):
        with pytest.raises(ArgumentError, match="damaged"):
            weights.file_digest(header, tensors)
    with pytest.raises(ArgumentError, match="give blake3 or sha256"):
        weights.file_digest(file.header, tensors, algorithm="md5")


@pytest.mark.parametrize("algorithm", ["blake3", "sha256"])
def test_load_verifies_tensors_and_other_files(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    folder, tensors = tmp_path / "model", arrays()
    folder.mkdir()
    write_tensors(folder / "1.safetensors", {"b": tensors["b"]})
    write_tensors(folder / "2.safetensors", {name: tensors[name] for name in ("a", "none")})
    (folder / "config.json").write_text("{}")
    path = tmp_path / "s"
    signatures.sign(folder, path, key=keys / "key.pem")
    if algorithm == "sha256":  # as model-signing signs
        resigned(json.loads(path.read_text()), keys, path, lambda s: s["predicate"].pop("blake3_resources"))
    monkeypatch.setitem(weights.LOADERS, "safetensors", lambda files, device: iter(tensors.items()))
    key = keys / "key-public.pem"
    loaded, report = signatures.load_and_report(folder, path, key=key)
    assert loaded == tensors and report.algorithms == [algorithm] and report.files == 3
    tensors["b"][0, 0] += 1
    (folder / "config.json").write_text("[]")
    with pytest.raises(signatures.SignatureError) as caught:
        signatures.load(folder, path, key=key)
    assert sorted(caught.value.report.lines()) == ["1.safetensors: differs in memory", "config.json: differs"]
    if algorithm == "sha256":
        resigned(json.loads(path.read_text()), keys, path, shards("1.safetensors:0:1000"))
        with pytest.raises(ArgumentError, match=r"no BLAKE3 or SHA-256 of 1\.safetensors as a whole"):
            signatures.load(folder, path, key=key)


# --- the commands ---


def command(*arguments: Any, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pynymph", "weights", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


def test_commands_sign_and_verify(model: Path, keys: Path, tmp_path: Path) -> None:
    path, public = tmp_path / "model.sig", keys / "key-public.pem"
    made = command("sign", model, "--key", keys / "key.pem", "--signature", path, "--json")
    assert made.returncode == 0 and json.loads(made.stdout)["files"] == len(FILES)
    done = command("verify", model, "--signature", path, "--key", public)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("as signed by key ") and f"{len(FILES)} files" in done.stdout
    (model / "config.json").write_text("[]")
    wrong = command("verify", model, "--signature", path, "--key", public)
    assert wrong.returncode == 1 and wrong.stdout.startswith("config.json: differs\nNOT as signed by")
    as_json = json.loads(command("verify", model, "--signature", path, "--key", public, "--json").stdout)
    assert (as_json["ok"], as_json["wrong"][0]["name"]) == (False, "config.json")

    chain = ("--certificate", keys / "chain.pem")
    command("sign", model, "--key", keys / "key.pem", *chain, "--signature", path)
    assert "CN=signer" in command("verify", model, "--signature", path, "--ca", keys / "root.pem").stdout

    for status, arguments in (
        (1, ("verify", model, "--signature", path, "--ca", keys / "other-root.pem")),
        (2, ("verify", model, "--signature", path)),
        (2, ("verify", model, "--key", public)),
        (2, ("verify", model, "m.json", "--signature", path, "--key", public)),
        (2, ("verify", model, "--signature", public, "--key", public)),
        (2, ("verify", tmp_path / "none", "--signature", path, "--ca", keys / "root.pem")),
        (2, ("load", model, "--signature", path, "--key", public)),
        (2, ("sign", model, "--key", public, "--signature", path)),
        (2, ("sign", model, "--key", keys / "key.pem", "--signature", tmp_path / "no/folder")),
    ):
        failed = command(*arguments)
        assert failed.returncode == status, arguments
        assert failed.stderr.startswith("pynymph: ") and failed.stderr.count("\n") == 1 and not failed.stdout


def test_the_guide_works(model: Path, keys: Path, tmp_path: Path) -> None:
    """Its commands, in their order; the chain is of a key that was there before."""
    with_key, with_certificate = doc_blocks.run_by(doc_blocks.SIGN)
    model.rename(tmp_path / "Meta-Llama-3-8B")
    for name in ("chain.pem", "root.pem"):
        shutil.copy(keys / name, tmp_path)
    script = (
        with_key.text.replace("pip install", "#") + f"cp {keys / 'key.pem'} key.pem\n" + with_certificate.text
    )
    script = re.sub(r"^pynymph", f"{sys.executable} -m pynymph", script, flags=re.MULTILINE)
    done = subprocess.run(["sh", "-e"], input=script, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    signed, verified, *again = done.stdout.splitlines()
    assert signed.startswith("llama.sig: 6 files, by key ") and verified.startswith("as signed by key ")
    assert all("by certificate CN=signer" in line for line in again) and len(again) == 2


# --- other programs ---


@pytest.fixture(scope="session")
def programs(request: pytest.FixtureRequest) -> Path:
    """The folder with model-signing and, if there is npm, @sigstore/verify. It is kept for the next time."""
    wanted = sorted((HERE / "signing_programs").iterdir())
    have = [PROGRAMS / file.name for file in wanted]
    if all(
        one.exists() and one.read_text() == other.read_text() for one, other in zip(have, wanted, strict=True)
    ):
        return PROGRAMS
    if not request.config.getoption("long"):
        pytest.skip("installs model-signing and @sigstore/verify: --long, or make signatures")
    subprocess.run([sys.executable, "-m", "venv", "--clear", PROGRAMS], check=True)
    pip = [PROGRAMS / "bin/pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", HERE / "signing_programs/requirements.txt"], check=True)
    if npm := shutil.which("npm"):
        shutil.copy(HERE / "signing_programs/package.json", PROGRAMS)
        subprocess.run([npm, "install", "--silent", "--no-audit", "--no-fund"], cwd=PROGRAMS, check=True)
    for file in wanted:
        shutil.copy(file, PROGRAMS)
    return PROGRAMS


def run(*arguments: Any, cwd: Path | None = None) -> str:
    """Run another program. Returns what it printed."""
    done = subprocess.run([*map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


VERIFY = """
import sys
from model_signing import verifying
model, signature, key = sys.argv[1:]
verifying.Config().use_elliptic_key_verifier(public_key=key).verify(model, signature)
"""

SIGN = """
import sys
from model_signing import hashing, signing
model, signature, key, method, algorithm, links = sys.argv[1:]
made = hashing.Config()
options = {"hashing_algorithm": algorithm}
if method == "files":
    made.use_file_serialization(**options)
else:
    made.use_shard_serialization(shard_size=int(method), **options)
made.set_allow_symlinks(links == "links")
signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(made).sign(model, signature)
"""


def in_python(programs: Path, code: str, *arguments: Any) -> str:
    return run(programs / "bin/python", "-c", code, *arguments)


def test_model_signing_verifies_what_is_signed_here(
    model: Path, keys: Path, tmp_path: Path, programs: Path
) -> None:
    (model / ".gitattributes").write_text("left out")
    for name in ("key", "p384", "p521"):
        path = model / f"{name}.sig" if name == "key" else tmp_path / f"{name}.sig"
        signatures.sign(model, path, key=keys / f"{name}.pem")
        public = keys / f"{name}-public.pem"
        program = (programs / "bin/model_signing", "verify", "key", model)
        assert "succeeded" in run(*program, "--signature", path, "--public_key", public)
        in_python(programs, VERIFY, model, path, public)
        if path.is_relative_to(model):
            path.unlink()
    # Of one file.
    file = model / "model-1.safetensors"
    signatures.sign(file, tmp_path / "one.sig", key=keys / "key.pem")
    in_python(programs, VERIFY, file, tmp_path / "one.sig", keys / "key-public.pem")
    # With links, which model-signing has to be asked for.
    (model / "link").symlink_to("sub")
    (model / "sub/to-config").symlink_to("../config.json")
    signatures.sign(model, tmp_path / "links.sig", key=keys / "key.pem")
    program = (programs / "bin/model_signing", "verify", "key", model, "--allow_symlinks")
    run(*program, "--signature", tmp_path / "links.sig", "--public_key", keys / "key-public.pem")


def test_model_signing_verifies_certificates_that_sign_here(
    model: Path, keys: Path, tmp_path: Path, programs: Path
) -> None:
    path = tmp_path / "s"
    signatures.sign(model, path, key=keys / "key.pem", certificates=keys / "chain.pem")
    program = (programs / "bin/model_signing", "verify", "certificate", model, "--signature", path)
    assert "succeeded" in run(*program, "--certificate_chain", keys / "root.pem")
    with pytest.raises(AssertionError, match="failed"):
        run(*program, "--certificate_chain", keys / "other-root.pem")


def test_npm_verifies_what_is_signed_here(model: Path, keys: Path, tmp_path: Path, programs: Path) -> None:
    if not (programs / "node_modules").exists():
        pytest.skip(
            "there was no npm: sudo apt-get install npm, remove build/signing_programs, make signatures"
        )
    path = tmp_path / "s"
    signatures.sign(model, path, key=keys / "key.pem")
    node = ("node", programs / "verify.js", path)
    assert run(*node, keys / "key-public.pem") == "verified\n"
    with pytest.raises(AssertionError, match="key not found"):
        run(*node, keys / "other-public.pem")
    bundle = json.loads(path.read_text())
    cut_payload(bundle)
    path.write_text(json.dumps(bundle))
    with pytest.raises(AssertionError, match="signature verification failed"):
        run(*node, keys / "key-public.pem")


@pytest.mark.parametrize("algorithm", ["sha256", "blake2", "blake3"])
@pytest.mark.parametrize("method", ["files", "65536"])
@pytest.mark.parametrize("name", ["key", "p384"])
def test_what_model_signing_signs_is_verified(
    model: Path, keys: Path, tmp_path: Path, programs: Path, method: str, algorithm: str, name: str
) -> None:
    if method != "files":  # it leaves empty files out of shards
        (model / "sub/empty").unlink()
    path, key = tmp_path / "s", keys / f"{name}-public.pem"
    in_python(programs, SIGN, model, path, keys / f"{name}.pem", method, algorithm, "")
    report = signatures.verify(model, path, key=key)
    assert report.ok and report.files == sum(path.is_file() for path in model.rglob("*"))
    data = bytearray(FILES["model-1.safetensors"])
    data[70_000] ^= 1
    (model / "model-1.safetensors").write_bytes(data)
    with pytest.raises(signatures.SignatureError) as caught:
        signatures.verify(model, path, key=key)
    where = " in bytes 65536 to 131072" if method != "files" and algorithm != "blake3" else ""
    assert caught.value.report.lines() == [f"model-1.safetensors: differs{where}"]


def test_what_the_command_of_model_signing_signs_is_verified(
    model: Path, keys: Path, tmp_path: Path, programs: Path
) -> None:
    path = tmp_path / "s"
    program = (programs / "bin/model_signing", "sign")
    run(*program, "key", model, "--signature", path, "--private_key", keys / "key.pem")
    assert verify(model, path, keys).algorithms == ["sha256"]
    subject = payload_of(path)["subject"]
    signatures.sign(model, path, key=keys / "key.pem")
    assert payload_of(path)["subject"] == subject

    leaf, between = tmp_path / "leaf.pem", tmp_path / "between.pem"
    chain = x509.load_pem_x509_certificates((keys / "chain.pem").read_bytes())
    for file, each in ((leaf, chain[0]), (between, chain[1])):
        file.write_bytes(each.public_bytes(Encoding.PEM))
    with_chain = ("--signing_certificate", leaf, "--certificate_chain", between)
    run(*program, "certificate", model, "--signature", path, "--private_key", keys / "key.pem", *with_chain)
    assert signatures.verify(model, path, ca=keys / "root.pem").signer == "certificate CN=signer"

    (model / "sub/to-config").symlink_to("../config.json")
    in_python(programs, SIGN, model, path, keys / "key.pem", "files", "sha256", "links")
    assert verify(model, path, keys).ok


def test_statements_are_canonical_json(signature: Path, programs: Path) -> None:
    code = "import json, rfc8785, sys; sys.stdout.buffer.write(rfc8785.dumps(json.load(sys.stdin)))"
    payload = base64.b64decode(json.loads(signature.read_text())["dsseEnvelope"]["payload"])
    done = subprocess.run([programs / "bin/python", "-c", code], input=payload, capture_output=True)
    assert done.stdout == payload


# --- evidence ---

IN_TOTO = """
import json
import sys
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey
bundle, pem = (open(name, "rb").read() for name in sys.argv[1:])
envelope, key = json.loads(bundle)["dsseEnvelope"], SSlibKey.from_crypto(load_pem_public_key(pem))
for each in envelope["signatures"]:
    each["keyid"] = key.keyid
made = Envelope.from_dict(envelope)
made.verify([key], 1)
statement = json.loads(made.payload)
print(statement["subject"][0]["digest"]["sha256"], statement["predicateType"])
"""


def test_programs_of_sigstore_and_in_toto_verify_signatures_of_evidence(
    keys: Path, tmp_path: Path, programs: Path
) -> None:
    log, made, signature = evidence.Log(), tmp_path / "e.cbor", tmp_path / "e.sig"
    with pynymph.Ring(device="model:", evidence=log) as ring:
        done = ring.copy(src=b"weights", dst=bytearray(7), verify=True)
        log.add(done, source="n\u00e4me \u2028", target="card 0")
        log.save(made)
    evidence.sign(made, signature, key=keys / "key.pem")
    public = keys / "key-public.pem"
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    said = in_python(programs, IN_TOTO, signature, public)
    assert said.split() == [digest, "https://pynymph/evidence/v1"]
    if (programs / "node_modules").exists():
        assert run("node", programs / "verify.js", signature, public) == "verified\n"
    bundle = json.loads(signature.read_text())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"]).replace(b"card 0", b"card 1")
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    signature.write_text(json.dumps(bundle))
    for command in (
        (programs / "bin/python", "-c", IN_TOTO),
        *([("node", programs / "verify.js")] if (programs / "node_modules").exists() else []),
    ):
        assert subprocess.run([*map(str, command), signature, public], capture_output=True).returncode
