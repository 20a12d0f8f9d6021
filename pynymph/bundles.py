# SPDX-License-Identifier: MIT
"""Signed statements: in-toto statements in DSSE envelopes in bundles of Sigstore, whose programs read them.

The signer has a key or a certificate, and no network is needed. The module needs the extra
`pynymph[signatures]`.
"""

from __future__ import annotations

import base64
import errno
import json
import os
from pathlib import Path
from typing import Any

from pynymph import signing_keys
from pynymph.errors import ArgumentError, NymphError, VerifyError

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"

_MOST = 256 << 20

Path_ = str | os.PathLike[str]


class Signer:
    """Sign statements with a key.

    Args:
        key: PEM file of a private key on the curve P-256, P-384 or P-521.
        certificates: PEM file of the key's certificate, and then of those between it and the root.

    Raises:
        ArgumentError: EINVAL, the key or a certificate is not of a kind that can be signed with.
        NymphError: a file can't be read; `errno` is that of the failure. ENOSYS, `cryptography` is not
            installed.
    """

    def __init__(self, key: Path_, certificates: Path_ | None = None) -> None:
        self._private = signing_keys.private_key(key)
        self._material: dict[str, Any] = {"tlogEntries": []}
        if certificates is None:
            named = signing_keys.hint(self._private.public_key())
            self.name, self._material["publicKey"] = f"key {named}", {"hint": named}
        else:
            subject, chain = signing_keys.chain_for(self._private, key, certificates)
            raw = [{"rawBytes": base64.b64encode(each).decode()} for each in chain]
            self.name = f"certificate {subject}"
            self._material["x509CertificateChain"] = {"certificates": raw}

    def sign(self, payload: bytes) -> str:
        """Return the bundle of a statement in canonical JSON, as a file has it."""
        made = signing_keys.signed(self._private, pae(payload))
        envelope = {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD,
            "signatures": [{"sig": base64.b64encode(made).decode(), "keyid": ""}],
        }
        bundle = {"mediaType": BUNDLE, "verificationMaterial": self._material, "dsseEnvelope": envelope}
        return canonical_json(bundle).decode() + "\n"


def read(signature: Path_, *, key: Path_ | None = None, ca: Path_ | None = None) -> tuple[bytes, str]:
    """Verify a bundle, and read its statement.

    Args:
        signature: path of the bundle.
        key: PEM file of the signer's public key.
        ca: PEM file of root certificates, one of which the signer's certificate must descend from. The chain
            is verified for the time at which the signer's certificate begins to be valid, as model-signing
            does it: a signature outlives its certificate.

    Returns:
        The statement's bytes, and who signed it.

    Raises:
        VerifyError: EBADMSG, the signature was not made with this key, or with a certificate of these roots.
        ArgumentError: EINVAL, the signature, the key or a certificate is damaged, or of an unknown kind.
        NymphError: as Signer raises it.
    """
    if (key is None) == (ca is None):
        raise ArgumentError(errno.EINVAL, "give either the signer's public key, or root certificates")
    name = str(signature)
    bundle = parse(name, signing_keys.read_file(signature, _MOST))
    try:
        if bundle["mediaType"] != BUNDLE:
            raise damaged(name, f"its type is {bundle['mediaType']!r} instead of {BUNDLE!r}")
        material, envelope = bundle["verificationMaterial"], bundle["dsseEnvelope"]
        if envelope["payloadType"] != PAYLOAD:
            raise damaged(name, f"its payload is {envelope['payloadType']!r} instead of {PAYLOAD!r}")
        (signed,) = envelope["signatures"]
        payload, made = _base64(envelope["payload"]), _base64(signed["sig"])
        if "certificate" in material:
            raise damaged(name, "it is by an identity of Sigstore, which model-signing verifies")
        chain = None
        if "x509CertificateChain" in material:
            chain = [_base64(each["rawBytes"]) for each in material["x509CertificateChain"]["certificates"]]
        said = None if chain else material["publicKey"].get("hint")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, NymphError):
            raise
        raise damaged(name, why(error)) from None
    if key is not None:
        if chain:
            raise ArgumentError(errno.EINVAL, f"{name} was made with a certificate; give its root as CA")
        public = signing_keys.public_key(key)
        hint = signing_keys.hint(public)
        signer = f"key {hint}"
        if said and said != hint:
            other = signing_keys.shown(str(said))
            raise VerifyError(
                errno.EBADMSG, f"{name} was made with key {other}, and {key} is {hint}; give the signer's key"
            )
    else:
        assert ca is not None
        if not chain:
            raise ArgumentError(errno.EINVAL, f"{name} was made with a key alone; give the signer's key")
        subject, public = signing_keys.key_of_chain(name, chain, ca)
        signer = f"certificate {subject}"
    if not signing_keys.is_signed(public, made, pae(payload)):
        raise VerifyError(
            errno.EBADMSG, f"{name} is not a signature by {signer}, or was changed; trust nothing of it"
        )
    return payload, signer


def keep_other_files(signature: Path_) -> None:
    """Refuse to write a signature over a file that is none, such as weights.

    Raises:
        ArgumentError: EINVAL, it would be lost.
    """
    if Path(signature).exists():
        try:
            is_one = json.loads(signing_keys.read_file(signature, _MOST))["mediaType"] == BUNDLE
        except (ValueError, KeyError, TypeError, RecursionError):
            is_one = False
        if not is_one:
            raise ArgumentError(errno.EINVAL, f"{signature} exists and is no signature; give another name")


def canonical_json(value: Any) -> bytes:
    """Return canonical JSON (RFC 8785) of what is signed here: keys are ASCII, numbers whole and small."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def pae(payload: bytes) -> bytes:
    """Return what DSSE signs of a statement."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def parse(name: str, data: bytes) -> Any:
    """Parse JSON of others. A key that is there twice is refused.

    Raises:
        ArgumentError: EINVAL, it is no such JSON; `name` is in the message.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("it has a key twice")
        return found

    try:
        return json.loads(data.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise damaged(name, str(error)) from None


def damaged(name: str, reason: str) -> ArgumentError:
    """Make the error of a signature that can't be read."""
    return ArgumentError(
        errno.EINVAL,
        f"{name} is no signature of this kind, or damaged: {reason}; get the signature again",
    )


def why(error: Exception) -> str:
    """Say what is wrong with a value of JSON, from the error that it gave."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _base64(value: Any) -> bytes:
    """Decode either alphabet of base64, as DSSE and JSON of protobuf allow it."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no base64")
    value = value.replace("-", "+").replace("_", "/")
    return base64.b64decode(value + "=" * (-len(value) % 4 if "=" not in value else 0), validate=True)
