"""What the tests sign with: a real P-256 key, real tokens, clocks that stand still until they are told."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from identity_client.tokens import compact, opaque
from identity_client.tokens.claims import Claims
from identity_client.tokens.keys import PublicKey
from identity_client.trust.entries import id_text

ISSUER = "https://identity.test"


@dataclass
class FixedClock:
    """Stands still; tests move it."""

    wall: float = 1_900_000_000.0
    steady: float = 1_000.0

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


def new_id() -> str:
    return id_text(secrets.token_bytes(16))


class Issuer:
    """Signs access tokens with one key."""

    def __init__(self, clock: FixedClock) -> None:
        self._clock = clock
        self._private_key = ec.generate_private_key(ec.SECP256R1())
        numbers = self._private_key.public_key().public_numbers()
        self.public_key = PublicKey.from_coordinates(numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big"))

    def claims(self, lifetime_seconds: int = 600, **changes: object) -> Claims:
        """A user's claims, with *changes*."""
        now = int(self._clock.now())
        claims = Claims(
            issuer=ISSUER,
            account_id=new_id(),
            audience="internal",
            expire_time=now + lifetime_seconds,
            issue_time=now,
            token_id=new_id(),
            client_id="first-party",
            grant_id=new_id(),
            generation=1,
            policy_version=1,
            key_id=self.public_key.key_id,
            roles=("clerk",),
        )
        return claims._replace(**changes)  # type: ignore[arg-type]

    def sign(self, claims: Claims) -> str:
        """The token's text."""
        signing_input = compact.signing_input(claims)
        r, s = decode_dss_signature(self._private_key.sign(signing_input, ec.ECDSA(hashes.SHA256())))
        signature = compact.low_s(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
        return f"{signing_input.decode()}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"

    def mint(self, **changes: object) -> str:
        """A token of a user with the role clerk for the group `internal`, with *changes*."""
        return self.sign(self.claims(**changes))  # type: ignore[arg-type]


def opaque_text(kind: opaque.Kind, grant_id: str = "") -> str:
    """A well-formed session token, API key or the like."""
    return opaque.encode_secret(kind, grant_id or new_id(), secrets.token_bytes(opaque.SECRET_BYTES))


def bearer(raw_token: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {raw_token}"),)
