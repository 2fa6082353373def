"""Public keys: points on P-256, named by their RFC 7638 thumbprint."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec

COORDINATE_BYTES = 32


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public half of a signing key. *x* and *y* are the big-endian coordinates, 32 bytes each."""

    key_id: str
    x: bytes
    y: bytes
    key: ec.EllipticCurvePublicKey = field(repr=False, compare=False)

    @classmethod
    def from_coordinates(cls, x: bytes, y: bytes) -> PublicKey:
        """Raises ValueError: a coordinate of another length, or a point that is not on the curve."""
        if len(x) != COORDINATE_BYTES or len(y) != COORDINATE_BYTES:
            raise ValueError(f"a coordinate has {COORDINATE_BYTES} bytes")
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1())
        return cls(thumbprint(x, y), x, y, numbers.public_key())

    @classmethod
    def from_key(cls, key: ec.EllipticCurvePublicKey) -> PublicKey:
        """The same, from the library's own object. Raises ValueError for another curve."""
        if not isinstance(key.curve, ec.SECP256R1):
            raise ValueError("the key is not on P-256")
        numbers = key.public_numbers()
        x, y = (value.to_bytes(COORDINATE_BYTES, "big") for value in (numbers.x, numbers.y))
        return cls(thumbprint(x, y), x, y, key)


def thumbprint(x: bytes, y: bytes) -> str:
    """The key's name: SHA-256 of its required JWK members in lexical order (RFC 7638 section 3)."""
    members = f'{{"crv":"P-256","kty":"EC","x":"{base64url(x)}","y":"{base64url(y)}"}}'
    return base64url(hashlib.sha256(members.encode("ascii")).digest())


def base64url(raw: bytes) -> str:
    """Base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
