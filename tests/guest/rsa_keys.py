# SPDX-License-Identifier: MIT
"""RSA keys, by the words of RFC 8017: guests have no program that makes them, or verifies signatures."""

import functools
import hashlib
import math
import secrets
from dataclasses import dataclass
from typing import Self

E = 65537
_SMALL = [n for n in range(3, 2000, 2) if all(n % of for of in range(3, int(n**0.5) + 1, 2))]
_SHA256 = bytes.fromhex("3031300d060960864801650304020105000420")  # RFC 8017, 9.2, note 1
_SIGNED = bytes.fromhex("300d06092a864886f70d01010b0500")  # of sha256WithRSAEncryption
_COMMON_NAME = bytes.fromhex("0603550403")
_RSA = bytes.fromhex("300d06092a864886f70d0101010500")  # AlgorithmIdentifier of rsaEncryption


def _prime() -> int:
    """Of 512 bits, and almost 2**512: products of some have all their bits."""
    while True:
        found = secrets.randbits(512) | 0xFF << 504 | 1
        if all(found % each for each in _SMALL) and pow(2, found - 1, found) == 1 and (found - 1) % E:
            return found


def der(tag: int, *parts: bytes) -> bytes:
    """One value of ASN.1."""
    body = b"".join(parts)
    size = len(body).to_bytes(-(-len(body).bit_length() // 8) or 1, "big")
    return bytes([tag]) + (size if len(body) < 128 else bytes([0x80 | len(size)]) + size) + body


def number(value: int) -> bytes:
    return der(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


@dataclass(frozen=True)
class RSAKey:
    """A key whose p and q are products of small primes: found at once, and good for tests alone."""

    primes: tuple[int, ...]

    @classmethod
    @functools.cache
    def of(cls, bits: int = 2048) -> Self:
        """The one key of that size, a multiple of 1024."""
        made = cls(tuple(_prime() for _ in range(bits // 512)))
        assert len(set(made.primes)) == bits // 512 and made.modulus.bit_length() == bits
        return made

    @property
    def modulus(self) -> int:
        return math.prod(self.primes)

    @property
    def exponent(self) -> int:
        return pow(E, -1, math.prod(each - 1 for each in self.primes))

    def private(self) -> bytes:
        """PKCS#8 in DER, as root adds it."""
        half = len(self.primes) // 2
        (p, of_p), (q, of_q) = (
            (math.prod(some), math.prod(each - 1 for each in some))
            for some in (self.primes[:half], self.primes[half:])
        )
        d = self.exponent
        values = (0, p * q, E, d, p, q, d % of_p, d % of_q, pow(q, -1, p))
        return der(0x30, number(0), _RSA, der(4, der(0x30, *map(number, values))))

    def public(self) -> bytes:
        """SubjectPublicKeyInfo in DER."""
        return der(0x30, _RSA, der(3, b"\0", der(0x30, number(self.modulus), number(E))))

    @property
    def size(self) -> int:
        """Bytes of its signatures."""
        return self.modulus.bit_length() // 8

    def _encoded(self, message: bytes) -> int:
        told = _SHA256 + hashlib.sha256(message).digest()
        return int.from_bytes(b"\0\1".ljust(self.size - len(told) - 1, b"\xff") + b"\0" + told, "big")

    def signed(self, message: bytes) -> bytes:
        """Sign by RSASSA-PKCS1-v1_5 with SHA-256."""
        return pow(self._encoded(message), self.exponent, self.modulus).to_bytes(self.size, "big")

    def has_signed(self, signature: bytes, message: bytes) -> bool:
        """Verify RSASSA-PKCS1-v1_5 with SHA-256."""
        value = int.from_bytes(signature, "big")
        good = pow(value, E, self.modulus) == self._encoded(message)
        return good and len(signature) == self.size and value < self.modulus

    def certificate(self, public: bytes) -> bytes:
        """X.509 of a public key, SubjectPublicKeyInfo in DER, by this key."""

        def name(of: bytes) -> bytes:
            return der(0x30, der(0x31, der(0x30, _COMMON_NAME, der(0x0C, of))))

        valid = der(0x30, der(0x17, b"200101000000Z"), der(0x17, b"490101000000Z"))
        body = number(1), _SIGNED, name(b"issuer"), valid, name(b"subject"), public
        told = der(0x30, der(0xA0, number(2)), *body)
        return der(0x30, told, _SIGNED, der(3, b"\0", self.signed(told)))


# The base point of P-256, as a public key: SubjectPublicKeyInfo.
ON_P256 = der(
    0x30,
    bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107"),
    der(
        3,
        b"\0\4"
        + bytes.fromhex("6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296")
        + bytes.fromhex("4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"),
    ),
)
