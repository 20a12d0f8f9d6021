# SPDX-License-Identifier: MIT
"""Keys and certificates of signatures, in PEM, by the package `cryptography`.

People and TPMs sign with ECDSA alone, as OMS has it. Drivers sign with RSA, the only kind of private key that
the kernel has.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pynymph.errors import ArgumentError, NymphError, VerifyError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.x509 import Certificate

_HASHES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
"""By curve: the digest that is signed."""
RSA_BITS = (2048, 3072, 4096)
"""Of keys that the kernel signs with."""
_MOST_PEM = 16 << 20
_NO_SIGNER = "the certificate is for neither digital signatures nor code signing"


def shown(name: str) -> str:
    """Return text of others as a terminal may show it."""
    return name if name.isprintable() else ascii(name)


def unreadable(path: str | os.PathLike[str], error: OSError) -> NymphError:
    """Make the error of a file that can't be read."""
    if isinstance(error, NymphError):
        return error
    return NymphError(error.errno or errno.EIO, f"{shown(str(path))} can't be read: {error.strerror}")


def read_file(path: str | os.PathLike[str], most: int) -> bytes:
    """Read a file that ought to be small.

    Args:
        path: path of the file.
        most: bytes that it may have.

    Raises:
        NymphError: the file can't be read; `errno` is that of the failure.
        ArgumentError: EINVAL, the file is larger.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) > most:
        raise ArgumentError(errno.EINVAL, f"{path} has more than {most} bytes; give another file")
    return data


def need_cryptography() -> None:
    """Raise a NymphError, ENOSYS, if the package is not installed."""
    try:
        import cryptography.x509.verification  # noqa: F401
    except ImportError as error:
        message = f"cryptography is not installed: {error}; install it: pip install 'pynymph[signatures]'"
        raise NymphError(errno.ENOSYS, message) from error


def private_key(path: str | os.PathLike[str]) -> EllipticCurvePrivateKey:
    """Read a private key.

    Raises:
        ArgumentError: EINVAL, the file has none that can sign.
        NymphError: as read_file() and need_cryptography() raise it.
    """
    need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    raw = read_file(path, _MOST_PEM)
    try:
        key = load_pem_private_key(raw, None)
    except TypeError:
        message = f"{path} is encrypted; give it decrypted: --key <(openssl pkey -in {path})"
        raise ArgumentError(errno.EINVAL, message) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ArgumentError(errno.EINVAL, f"{path} is no private key in PEM; give one") from None
    _of_known_curve(path, key.public_key())
    assert isinstance(key, EllipticCurvePrivateKey)
    return key


def public_key(path: str | os.PathLike[str]) -> EllipticCurvePublicKey:
    """Read a public key.

    Raises:
        ArgumentError: EINVAL, the file has none of a kind that signs.
        NymphError: as read_file() and need_cryptography() raise it.
    """
    need_cryptography()
    return _of_known_curve(path, _public_key(path, read_file(path, _MOST_PEM)))


def _public_key(name: str | os.PathLike[str], raw: bytes) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        return load_pem_public_key(raw)
    except (ValueError, UnsupportedAlgorithm):
        raise ArgumentError(
            errno.EINVAL, f"{name} is no public key in PEM; give one: openssl pkey -in key.pem -pubout"
        ) from None


def rsa_public_key(name: str | os.PathLike[str], raw: bytes) -> RSAPublicKey:
    """Read a public key that a driver's signatures are by.

    Args:
        name: name of the key, for errors.
        raw: the key in PEM.

    Raises:
        ArgumentError: EINVAL, it is none, or not of a kind that the driver signs with.
        NymphError: as need_cryptography() raises it.
    """
    need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    key = _public_key(name, raw)
    if not isinstance(key, RSAPublicKey) or key.key_size not in RSA_BITS:
        raise ArgumentError(
            errno.EINVAL, f"{name} has no RSA key of 2048, 3072 or 4096 bits; give that of the driver's key"
        )
    return key


def is_signed_by_rsa(key: RSAPublicKey, signature: bytes, message: bytes) -> bool:
    """Tell whether a signature is of this message, by this key: RSASSA-PKCS1-v1_5 with SHA-256."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        key.verify(signature, message, PKCS1v15(), SHA256())
    except InvalidSignature:
        return False
    return True


def _of_known_curve(name: str | os.PathLike[str], key: Any) -> EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise ArgumentError(
            errno.EINVAL, f"{name} has no key on the curve P-256, P-384 or P-521; use one of these"
        )
    return key


def hint(key: EllipticCurvePublicKey) -> str:
    """Name a key as bundles do: SHA-256 of its PEM, in hexadecimal."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _ecdsa(key: EllipticCurvePublicKey) -> Any:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.ECDSA(getattr(hashes, _HASHES[key.curve.name])())


def signed(key: EllipticCurvePrivateKey, message: bytes) -> bytes:
    """Sign a message. Returns the signature in DER."""
    return key.sign(message, _ecdsa(key.public_key()))


def is_signed(key: EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    """Tell whether a signature is of this message, by this key."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, message, _ecdsa(key))
    except InvalidSignature:
        return False
    return True


def _certificates(path: str | os.PathLike[str]) -> list[Certificate]:
    from cryptography import x509

    raw = read_file(path, _MOST_PEM)
    try:
        return x509.load_pem_x509_certificates(raw)
    except ValueError:
        raise ArgumentError(errno.EINVAL, f"{path} has no certificates in PEM; give some") from None


def chain_for(
    key: EllipticCurvePrivateKey, key_name: str | os.PathLike[str], path: str | os.PathLike[str]
) -> tuple[str, list[bytes]]:
    """Read the certificates that go with a private key.

    Args:
        key: the key.
        key_name: name of the key, for errors.
        path: PEM file: the certificate of the key, then those between it and the root.

    Returns:
        The subject of the certificate, and all certificates in DER.

    Raises:
        ArgumentError: EINVAL, there is none, or the first is not of the key, or not for signing.
        NymphError: as read_file() raises it.
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    chain = _certificates(path)
    leaf = chain[0]
    if leaf.public_key() != key.public_key():
        raise ArgumentError(
            errno.EINVAL, f"the first certificate of {path} is not that of {key_name}; put that one first"
        )
    if not _may_sign(leaf):
        raise ArgumentError(errno.EINVAL, f"{path}: {_NO_SIGNER}; have another one issued")
    return leaf.subject.rfc4514_string(), [each.public_bytes(Encoding.DER) for each in chain]


def _may_sign(certificate: Certificate) -> bool:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.KeyUsage) and value.digital_signature:
            return True
        if isinstance(value, x509.ExtendedKeyUsage) and ExtendedKeyUsageOID.CODE_SIGNING in value:
            return True
    return False


def key_of_chain(
    name: str, chain: Sequence[bytes], ca: str | os.PathLike[str]
) -> tuple[str, EllipticCurvePublicKey]:
    """Verify a chain of certificates.

    Args:
        name: name of the signature that has it, for errors.
        chain: certificates in DER, the signer's first.
        ca: PEM file of root certificates.

    Returns:
        The subject of the signer's certificate, and its key.

    Raises:
        VerifyError: EBADMSG, the chain does not lead to a root, or is not for signing.
        ArgumentError: EINVAL, a certificate can't be read.
        NymphError: as read_file() and need_cryptography() raise it.
    """
    need_cryptography()
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.x509.verification import (
        Criticality,
        ExtensionPolicy,
        PolicyBuilder,
        Store,
        VerificationError,
    )

    roots = _certificates(ca)
    try:
        leaf, *between = map(x509.load_der_x509_certificate, chain)
        may_sign, public = _may_sign(leaf), leaf.public_key()
        subject, begins = shown(leaf.subject.rfc4514_string()), leaf.not_valid_before_utc
    except (
        ValueError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise ArgumentError(
            errno.EINVAL, f"a certificate of {name} can't be read: {error}; get the signature again"
        ) from None
    if begins > datetime.now(UTC):
        raise VerifyError(
            errno.EBADMSG, f"the certificate {subject} of {name} begins on {begins}; set this machine's clock"
        )
    any_extensions = ExtensionPolicy.permit_all()
    # It must say that it is a CA's. People's own CAs lack much of what browsers ask for.
    of_ca = any_extensions.require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    policy = PolicyBuilder().store(Store(roots)).time(begins)
    policy = policy.extension_policies(ca_policy=of_ca, ee_policy=any_extensions)
    try:
        policy.build_client_verifier().verify(leaf, between)
    except VerificationError as error:
        raise VerifyError(
            errno.EBADMSG,
            f"the certificate {subject} of {name} is not by {ca}: {error}; give the signer's root",
        ) from None
    if not may_sign:
        raise VerifyError(errno.EBADMSG, f"{name}, {subject}: {_NO_SIGNER}; have the model signed again")
    return subject, _of_known_curve(name, public)
