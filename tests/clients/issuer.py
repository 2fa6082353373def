"""What the project's own tests sign with: claims of any kind, sensible or not. Peers' tests have
`identity_client.testing`, from which keys and clock come here, too."""

from __future__ import annotations

import secrets
import time

from identity_client.testing.clock import FixedClock
from identity_client.testing.signing import SigningKey, new_id
from identity_client.tokens import opaque
from identity_client.tokens.claims import Claims

__all__ = ["ISSUER", "FixedClock", "Issuer", "RunningClock", "bearer", "new_id", "opaque_text"]

ISSUER = "https://identity.test"


class RunningClock(FixedClock):
    """The machine's time, for a fake service whose peers live in processes of their own."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class Issuer:
    """Signs access tokens with one key."""

    def __init__(self, clock: FixedClock) -> None:
        self._clock = clock
        self.key = SigningKey()
        self.public_key = self.key.public_key
        self.sign = self.key.sign

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

    def mint(self, **changes: object) -> str:
        """A token of a user with the role clerk for the group `internal`, with *changes*."""
        return self.sign(self.claims(**changes))  # type: ignore[arg-type]


def opaque_text(kind: opaque.Kind, grant_id: str = "") -> str:
    """A well-formed session token, API key or the like."""
    return opaque.encode_secret(kind, grant_id or new_id(), secrets.token_bytes(opaque.SECRET_BYTES))


def bearer(raw_token: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {raw_token}"),)
