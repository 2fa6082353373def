"""The refresh token's text: derived, never stored, so that a retry can be given the same successor again.

idr_ + session id, rotation count and HMAC-SHA256(K, id | salt | count). K comes from the master key, the salt from the
session's row: a forger needs both.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from identity_client.tokens import opaque
from identity_client.trust.entries import id_bytes

from .grants import SessionRecord

SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class PresentedRefresh:
    """A refresh token taken apart; the MAC is not yet proved."""

    grant_id: str
    count: int
    mac: bytes


class RefreshTokens:
    """Writes and proves refresh tokens."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def text(self, grant_id: str, count: int, salt: bytes) -> str:
        """The token of this session and rotation count: always the same one."""
        return opaque.encode_refresh(grant_id, count, self._mac(grant_id, count, salt))

    def is_genuine(self, presented: PresentedRefresh, session: SessionRecord) -> bool:
        """Whether we wrote *presented*, now or earlier. Constant time."""
        expected = self._mac(presented.grant_id, presented.count, session.salt)
        return hmac.compare_digest(expected, presented.mac)

    def _mac(self, grant_id: str, count: int, salt: bytes) -> bytes:
        return hmac.digest(self._key, id_bytes(grant_id) + salt + count.to_bytes(4, "big"), hashlib.sha256)


def parse_refresh(raw_token: str) -> PresentedRefresh:
    """Take the text apart. Raises TokenMalformed; the checksum catches typing errors before any look-up."""
    grant_id, count, mac = opaque.split_refresh(raw_token)
    return PresentedRefresh(grant_id, count, mac)
