"""Revocations: one by one, as fixed-width records, and in batches as they travel."""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

RECORD_BYTES = 24
ID_BYTES = 16
PACKED_BYTES = ID_BYTES + 4


class EntryKind(enum.IntEnum):
    """What an entry speaks about; the number is the first byte of its record."""

    TOKEN = 1  # name: jti
    GRANT = 2  # name: sid
    ACCOUNT = 3  # name: sub; minimum: lowest good generation
    ROLE = 4  # name: role; minimum: lowest good policy version
    KEY = 5  # name: kid


PACKED_KINDS = (EntryKind.TOKEN, EntryKind.GRANT)
"""Those that come by the million: nothing but a 16-byte id and an expiry."""


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

    def packed(self) -> bytes:
        """A token or grant in 20 bytes: id, expiry. Raises ValueError for a name that is no id."""
        raw = id_bytes(self.name)
        if len(raw) != ID_BYTES:
            raise ValueError(f"the id of a token or grant has {ID_BYTES} bytes")
        return raw + self.expire_time.to_bytes(4, "big")

    def _content(self) -> bytes:
        if self.kind in PACKED_KINDS:
            return id_bytes(self.name) + b"\0\0\0"
        text = f"{self.name}\0{self.minimum}".encode()
        return hashlib.blake2b(text, digest_size=19).digest()


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries as they travel: *tokens* and *grants* in packed records, in any order, *others* one by one.

    Raises ValueError for records of another length.
    """

    tokens: bytes = b""
    grants: bytes = b""
    others: tuple[Entry, ...] = ()

    def __post_init__(self) -> None:
        if len(self.tokens) % PACKED_BYTES or len(self.grants) % PACKED_BYTES:
            raise ValueError(f"records of {PACKED_BYTES} bytes each")

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Batch:
        """*entries* packed; a batch as it is."""
        if isinstance(entries, Batch):
            return entries
        packed = {kind: bytearray() for kind in PACKED_KINDS}
        others = []
        for entry in entries:
            if entry.kind in packed:
                packed[entry.kind] += entry.packed()
            else:
                others.append(entry)
        return cls(bytes(packed[EntryKind.TOKEN]), bytes(packed[EntryKind.GRANT]), tuple(others))

    def __len__(self) -> int:
        return (len(self.tokens) + len(self.grants)) // PACKED_BYTES + len(self.others)

    def __iter__(self) -> Iterator[Entry]:
        for kind, records in zip(PACKED_KINDS, (self.tokens, self.grants), strict=True):
            yield from (unpacked(kind, record) for record in split_records(records))
        yield from self.others


def split_records(records: bytes) -> list[bytes]:
    """The records of 20 bytes, one by one."""
    return [records[at : at + PACKED_BYTES] for at in range(0, len(records), PACKED_BYTES)]


def unpacked(kind: EntryKind, record: bytes) -> Entry:
    """The entry behind a record of 20 bytes."""
    return Entry(kind, id_text(record[:ID_BYTES]), int.from_bytes(record[ID_BYTES:], "big"))


def id_bytes(text: str) -> bytes:
    """The 16 bytes behind a 22-character id. Raises ValueError for what is no base64url."""
    return binascii.a2b_base64(text.replace("-", "+").replace("_", "/") + "==")


def id_text(raw: bytes) -> str:
    """The 22-character text of a 16-byte id: base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
