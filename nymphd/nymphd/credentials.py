# SPDX-License-Identifier: MIT
"""Credentials: the token, browsers' sessions, and the certificate."""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
import socket
import ssl
import stat
import time
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from nymphd.settings import Settings

SESSION_SECONDS = 12 * 3600
_MOST_SESSIONS = 256
_CERTIFICATE_DAYS = 365
_RENEW_DAYS = 30


class StartError(Exception):
    """nymphd can't start. The message says why, and then what to do."""


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"can't make the folder {folder}: {error.strerror}; name another one") from None


def check_private(path: Path, what: str) -> None:
    """Raise StartError if another user can read or write the file at `path`, or owns it."""
    try:
        found = path.stat()
    except OSError as error:
        raise StartError(f"can't read the {what} {path}: {error.strerror}") from None
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = "700" if stat.S_ISDIR(found.st_mode) else "600"
        raise StartError(f"others may read or write the {what} {path}: chmod {mode} it, and see who did")
    if found.st_uid not in (0, os.geteuid()):
        raise StartError(f"the {what} {path} is another user's: chown it to the one nymphd runs as")


def write_private(path: Path, content: bytes) -> None:
    """Write a file, atomically, that only its owner can read at any moment."""
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
    """Read the token in a file; make the file if it is missing. Raises StartError."""
    if not path.exists():
        write_private(path, secrets.token_urlsafe(32).encode() + b"\n")
    check_private(path, "token")
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"can't read the token in {path}: {error}") from None
    if len(token) < 32 or not token.isascii():
        raise StartError(f"{path} has no token of 32 ASCII characters or more; remove it for a new one")
    return token


class Doorkeeper:
    """Keep the token, and the sessions that were opened with it. Sessions end with the process."""

    def __init__(self, token: str) -> None:
        self._token = sha256(token.encode()).digest()
        self._sessions: OrderedDict[bytes, float] = OrderedDict()

    def change_token(self, token: str) -> None:
        """Set the token. The old token, and sessions that were opened with it, become invalid."""
        digest = sha256(token.encode()).digest()
        if digest != self._token:
            self._token = digest
            self._sessions.clear()

    def knows_token(self, token: str) -> bool:
        return secrets.compare_digest(sha256(token.encode(errors="replace")).digest(), self._token)

    def knows_session(self, session: str) -> bool:
        ends = self._sessions.get(sha256(session.encode(errors="replace")).digest(), 0.0)
        return time.monotonic() < ends

    def open_session(self) -> str:
        """Open a session, and return its cookie. If there are too many sessions, the oldest ends."""
        session = secrets.token_urlsafe(32)
        self._sessions[sha256(session.encode()).digest()] = time.monotonic() + SESSION_SECONDS
        while len(self._sessions) > _MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return session

    def end_session(self, session: str) -> None:
        self._sessions.pop(sha256(session.encode(errors="replace")).digest(), None)


class Identity:
    """Read token and certificate from their files. Every method raises StartError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._is_own = settings.certificate is None
        self._certificate = settings.certificate or settings.state_dir / "certificate.pem"
        self._private_key = settings.private_key or settings.state_dir / "private-key.pem"

    def token(self) -> str:
        return read_token(self._settings.state_dir / "token")

    def is_renewed(self) -> bool:
        """Tell whether there is a new certificate. Renews nymphd's own certificate when it is due."""
        return self._is_own and prepare_certificate(
            self._certificate, self._private_key, self._settings.allowed_hosts or []
        )

    def context(self) -> ssl.SSLContext:
        """Make the TLS context for new connections."""
        self.is_renewed()
        check_private(self._private_key, "private key")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A client that reads in one thread and writes in another (websockets.sync, say) loses what it writes
        # while OpenSSL reads a ticket: an SSL object is one thread's. Without tickets, no record comes
        # unasked.
        context.num_tickets = 0
        try:
            context.load_cert_chain(self._certificate, self._private_key, password=_no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise StartError(
                f"can't use the certificate {self._certificate} with {self._private_key}: {error}"
            ) from None
        return context

    def names(self) -> frozenset[str]:
        """Return the names that a Host header may have: those of the settings, else of the certificate."""
        if self._settings.allowed_hosts is not None:
            return frozenset(name.lower() for name in self._settings.allowed_hosts)
        try:
            known = x509.load_pem_x509_certificate(self._certificate.read_bytes())
            names = known.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, x509.ExtensionNotFound) as error:
            raise StartError(
                f"can't read the names in {self._certificate}: {error}; say them (allowed_hosts)"
            ) from None
        addresses = names.get_values_for_type(x509.IPAddress)
        hosts = {f"[{each}]" if getattr(each, "version", 4) == 6 else str(each) for each in addresses}
        return frozenset(hosts | {name.lower() for name in names.get_values_for_type(x509.DNSName)})


def _no_password() -> str:
    """Refuse an encrypted key: a service has nobody to type a password."""
    raise ValueError("the private key wants a password: give one without")


def prepare_certificate(certificate: Path, private_key: Path, hosts: Sequence[str] = ()) -> bool:
    """Make a self-signed certificate and its key, unless the files exist and are valid for a month.

    Args:
        certificate: path of the certificate.
        private_key: path of the key.
        hosts: names for the certificate beside this machine's.

    Returns:
        Whether the files are new.

    Raises:
        StartError: the files can't be made or used.
    """
    now = datetime.datetime.now(datetime.UTC)
    renew = datetime.timedelta(days=_RENEW_DAYS)
    if certificate.exists() and private_key.exists():
        try:
            known = x509.load_pem_x509_certificate(certificate.read_bytes())
            if known.not_valid_before_utc <= now < known.not_valid_after_utc - renew:
                return False
        except (OSError, ValueError) as error:
            message = f"can't read the certificate in {certificate}: {error}; remove it for a new one"
            raise StartError(message) from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nymphd")])
    wanted = dict.fromkeys(["localhost", "127.0.0.1", "::1", socket.gethostname().lower(), *hosts])
    names = [each for each in map(_general_name, wanted) if each is not None]
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
    return True


def _general_name(host: str) -> x509.GeneralName | None:
    """Convert a host name or address for a certificate; None if a certificate can't have it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host) if host and host.isascii() else None
