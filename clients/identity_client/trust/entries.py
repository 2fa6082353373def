"""One revocation, and its fixed-width record: the unit that the service stores, streams and digests."""

from __future__ import annotations

import base64
import enum
import hashlib
from dataclasses import dataclass

RECORD_BYTES = 24


class EntryKind(enum.IntEnum):
    """What an entry speaks about; the number is the first byte of its record."""

    TOKEN = 1  # name: jti
    GRANT = 2  # name: sid
    ACCOUNT = 3  # name: sub; minimum: lowest good generation
    ROLE = 4  # name: role; minimum: lowest good policy version
    KEY = 5  # name: kid


@dataclass(frozen=True, slots=True)
class Entry:
    """One revocation. *expire_time* (Unix seconds): from then on no token it concerns can still be alive."""

    kind: EntryKind
    name: str
    expire_time: int
    minimum: int = 0

    def record(self) -> bytes:
        """The 24 bytes that digests fold: kind, 19 bytes of content, expiry (see Heartbeat in trust.proto)."""
        return bytes([self.kind]) + self._content() + self.expire_time.to_bytes(4, "big")

    def _content(self) -> bytes:
        if self.kind in (EntryKind.TOKEN, EntryKind.GRANT):
            return id_bytes(self.name) + b"\0\0\0"
        text = f"{self.name}\0{self.minimum}".encode()
        return hashlib.blake2b(text, digest_size=19).digest()


def id_bytes(text: str) -> bytes:
    """The 16 bytes behind a 22-character id."""
    return base64.urlsafe_b64decode(text + "==")


def id_text(raw: bytes) -> str:
    """The 22-character text of a 16-byte id: base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
