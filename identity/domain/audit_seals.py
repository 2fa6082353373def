"""Seals over the audit log: a chain in which a changed, removed, inserted or reordered event shows, and so does a
removed or forged seal. Pure: no I/O.

A seal covers every event after the one before it, holds a digest of them and of the seal before, and a MAC under a key
that the database does not hold. The head, under a MAC too, names the newest seal, so that a cut end shows, and the
seals whose events were removed for their age.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace

from .audit_events import canonical

SealedRow = Sequence[str | int | bytes | None]
"""The sealed fields of one event, event_id first, as they are stored."""

_BEGINNING = bytes(32)


@dataclass(frozen=True, slots=True)
class Seal:
    """One link of the chain; its range begins where the one before ended."""

    seal_number: int
    first_event_id: int
    last_event_id: int
    event_count: int
    events_digest: bytes
    previous_digest: bytes
    time_ms: int
    mac: bytes = b""

    def digest(self) -> bytes:
        """What the next seal holds of this one."""
        return hashlib.sha256(canonical(astuple(self))).digest()

    @property
    def range(self) -> str:
        """For people."""
        return f"seal {self.seal_number} (events {self.first_event_id}-{self.last_event_id})"


@dataclass(frozen=True, slots=True)
class SealHead:
    """Where the chain ends. *removed_through*: the newest seal whose events were removed, 0 for none."""

    seal_number: int
    removed_through: int = 0
    mac: bytes = b""


class ChainBroken(Exception):
    """The chain does not hold; the text says where and how."""


def digest_of(rows: Iterable[SealedRow]) -> tuple[int, bytes]:
    """-> how many, and the digest over all of them."""
    count, digest = 0, hashlib.sha256()
    for row in rows:
        digest.update(canonical(row) + b"\n")
        count += 1
    return count, digest.digest()


class SealKey:
    """Makes and proves seals and heads."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, previous: Seal | None, last_event_id: int, rows: Iterable[SealedRow], time_ms: int) -> Seal:
        """The next seal, over *rows* to *last_event_id*."""
        count, digest = digest_of(rows)
        bare = Seal(
            seal_number=previous.seal_number + 1 if previous else 1,
            first_event_id=previous.last_event_id + 1 if previous else 1,
            last_event_id=last_event_id,
            event_count=count,
            events_digest=digest,
            previous_digest=previous.digest() if previous else _BEGINNING,
            time_ms=time_ms,
        )
        return replace(bare, mac=self._mac("seal", bare))

    def head(self, seal_number: int, removed_through: int) -> SealHead:
        """A head that names these seals."""
        return SealHead(seal_number, removed_through, self._mac("head", SealHead(seal_number, removed_through)))

    def is_genuine(self, value: Seal | SealHead) -> bool:
        """Whether the service itself wrote it."""
        kind = "seal" if isinstance(value, Seal) else "head"
        return hmac.compare_digest(value.mac, self._mac(kind, value))

    def check_end(self, head: SealHead | None, newest: Seal | None) -> None:
        """Whether the chain ends where it should: all that is proved before it is made longer. Raises ChainBroken."""
        if head is None and newest is None:
            return
        if head is None or not self.is_genuine(head):
            raise ChainBroken("the head of the seals is missing" if head is None else "the head of the seals is forged")
        if newest is None or newest.seal_number < head.seal_number:
            first = newest.seal_number + 1 if newest else 1
            raise ChainBroken(f"seals {first}-{head.seal_number} were removed: the end of the log was cut off")
        if newest.seal_number > head.seal_number:
            raise ChainBroken(f"the head names seal {head.seal_number}, and there are seals to {newest.seal_number}")
        if not self.is_genuine(newest):
            raise ChainBroken(f"{newest.range} is forged")

    def check_link(self, previous: Seal | None, seal: Seal) -> None:
        """Whether *seal*, which is genuine, follows *previous*. Raises ChainBroken."""
        number = previous.seal_number + 1 if previous else 1
        if seal.seal_number != number:
            first = previous.last_event_id + 1 if previous else 1
            removed = f"seals {number}-{seal.seal_number - 1} (events {first}-{seal.first_event_id - 1})"
            raise ChainBroken(f"{removed} were removed")
        if previous is not None and not self.is_genuine(previous):
            return  # told once is enough
        if seal.previous_digest != (previous.digest() if previous else _BEGINNING):
            raise ChainBroken(f"{seal.range} does not follow the seal before it: one of both was replaced")

    def _mac(self, kind: str, value: Seal | SealHead) -> bytes:
        return hmac.digest(self._key, canonical([kind, *astuple(value)[:-1]]), hashlib.sha256)


def forged(first: Seal, last: Seal) -> str:
    """What is wrong with the seals *first* to *last*, none of which is genuine."""
    if first == last:
        return f"{first.range} is forged or was changed"
    seals, events = (f"{first.seal_number}-{last.seal_number}", f"{first.first_event_id}-{last.last_event_id}")
    return f"seals {seals} (events {events}) are forged or were changed"


def check_events(seal: Seal, rows: Iterable[SealedRow]) -> None:
    """Whether *rows*, all that there are in the seal's range, are those that it sealed. Raises ChainBroken."""
    count, digest = digest_of(rows)
    if count < seal.event_count:
        raise ChainBroken(f"{seal.range}: {seal.event_count - count} of {seal.event_count} events were removed")
    if count > seal.event_count:
        raise ChainBroken(f"{seal.range}: {count - seal.event_count} events were inserted")
    if digest != seal.events_digest:
        raise ChainBroken(f"{seal.range}: an event was changed, or events were exchanged")
