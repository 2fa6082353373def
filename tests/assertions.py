"""Signed assertions as a service would write them, and as an attacker might."""

from __future__ import annotations

import base64
import json
import secrets
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from identity_client.tokens.keys import PublicKey


def segment(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class AssertionKey:
    """A service's key pair and the assertions that it signs."""

    def __init__(self) -> None:
        self.private_key = ec.generate_private_key(ec.SECP256R1())
        self.public_key = PublicKey.from_key(self.private_key.public_key())
        form = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.pem = self.private_key.public_key().public_bytes(*form).decode()

    def header(self, **changes: object) -> dict[str, object]:
        """The usual header with *changes*; None takes a member out."""
        return without_none({"alg": "ES256", "kid": self.public_key.key_id} | changes)

    def sign(self, claims: dict[str, object] | bytes, **header: object) -> str:
        """An assertion of *claims*, an object or the very bytes."""
        return self.sign_raw(json.dumps(self.header(**header)).encode(), claims)

    def sign_raw(self, header: bytes, claims: dict[str, object] | bytes) -> str:
        payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
        return self.sign_segments(segment(header), segment(payload))

    def sign_segments(self, header: str, payload: str) -> str:
        signing_input = f"{header}.{payload}"
        der = self.private_key.sign(signing_input.encode(), ec.ECDSA(hashes.SHA256()))
        r, s = decode_dss_signature(der)
        return f"{signing_input}.{segment(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def claims_of(client_id: str, audience: str, now: float, **changes: Any) -> dict[str, object]:
    """The usual claims with *changes*; None takes a member out."""
    claims: dict[str, object] = {
        "iss": client_id,
        "sub": client_id,
        "aud": audience,
        "iat": int(now),
        "exp": int(now) + 60,
        "jti": secrets.token_hex(16),
    }
    return without_none(claims | changes)


def without_none(members: dict[str, Any]) -> dict[str, object]:
    return {name: value for name, value in members.items() if value is not None}
