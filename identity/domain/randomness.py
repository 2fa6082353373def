"""Where ids and secrets come from. Injected, so that tests can seed them."""

from __future__ import annotations

import secrets
from typing import Protocol

from identity_client.trust.entries import id_text

ID_BYTES = 16


class Randomness(Protocol):
    """A source of unpredictable bytes."""

    def token_bytes(self, count: int) -> bytes:
        """*count* random bytes."""


class SystemRandomness:
    """The operating system's generator."""

    def token_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)


def new_id(randomness: Randomness) -> str:
    """A new id: 16 random bytes as 22 characters of base64url."""
    return id_text(randomness.token_bytes(ID_BYTES))
