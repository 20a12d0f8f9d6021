# SPDX-License-Identifier: MIT
"""Who may ask, and who answers: the token, the sessions browsers get for it, and the certificate."""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
import socket
import stat
import time
from collections import OrderedDict
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SESSION_SECONDS = 12 * 3600
_MOST_SESSIONS = 256
_CERTIFICATE_DAYS = 365
_RENEW_DAYS = 30


class StartError(Exception):
    """nymphd can't start; the message says why, and what to do."""


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"can't make the folder {folder}: {error.strerror}; name another one") from None


def write_private(path: Path, content: bytes) -> None:
    """A file for its owner alone, from the first moment on; there whole, or not at all."""
    unfinished = path.with_suffix(".new")
    try:
        unfinished.unlink(missing_ok=True)
        file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "wb") as opened:
            opened.write(content)
        unfinished.rename(path)
    except OSError as error:
        raise StartError(f"can't write {path}: {error.strerror}") from None


def read_token(path: Path) -> str:
    """The token in that file, which is made if it is missing. Raises StartError."""
    if not path.exists():
        write_private(path, secrets.token_urlsafe(32).encode() + b"\n")
    try:
        with path.open() as file:
            mode = os.fstat(file.fileno()).st_mode
            token = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"can't read the token in {path}: {error}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise StartError(f"others may read the token in {path}: chmod 600 it, or remove it for a new one")
    if len(token) < 32 or not token.isascii():
        raise StartError(f"{path} has no token of 32 ASCII characters or more; remove it for a new one")
    return token


class Doorkeeper:
    """Knows the token, and the sessions that were given for it. They end with the process."""

    def __init__(self, token: str) -> None:
        self._token = sha256(token.encode()).digest()
        self._sessions: OrderedDict[bytes, float] = OrderedDict()

    def knows_token(self, token: str) -> bool:
        return secrets.compare_digest(sha256(token.encode(errors="replace")).digest(), self._token)

    def knows_session(self, session: str) -> bool:
        ends = self._sessions.get(sha256(session.encode(errors="replace")).digest(), 0.0)
        return time.monotonic() < ends

    def open_session(self) -> str:
        """The oldest goes if there are too many."""
        session = secrets.token_urlsafe(32)
        self._sessions[sha256(session.encode()).digest()] = time.monotonic() + SESSION_SECONDS
        while len(self._sessions) > _MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return session

    def end_session(self, session: str) -> None:
        self._sessions.pop(sha256(session.encode(errors="replace")).digest(), None)


def prepare_certificate(certificate: Path, private_key: Path) -> None:
    """Make both files, self-signed, unless they are there and good for a month. Raises StartError."""
    now = datetime.datetime.now(datetime.UTC)
    renew = datetime.timedelta(days=_RENEW_DAYS)
    if certificate.exists() and private_key.exists():
        try:
            known = x509.load_pem_x509_certificate(certificate.read_bytes())
            if known.not_valid_before_utc <= now < known.not_valid_after_utc - renew:
                return
        except (OSError, ValueError) as error:
            message = f"can't read the certificate in {certificate}: {error}; remove it for a new one"
            raise StartError(message) from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nymphd")])
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
    if (host := socket.gethostname()).isascii() and host != "localhost":
        names.append(x509.DNSName(host))
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    public = key.public_key()
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, SHA256())
    )
    pkcs8 = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(private_key, pkcs8)
    write_private(certificate, made.public_bytes(serialization.Encoding.PEM))
