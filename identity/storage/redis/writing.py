"""What the mirror is made of, as commands of a transaction: entries, and the sentinel that vouches for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from identity.storage.redis.client import Instant
from identity_client.redis.schema import FRESH_SECONDS, TRUST_SECONDS, Schema, Sentinel
from identity_client.trust.entries import Entry

PART = 100
"""Entries in one transaction: Redis serves others in between, and so does the event loop."""


class MirrorWriting:
    """Adds to a transaction. *count_entries*: how many revocations are live, for people to read."""

    def __init__(self, schema: Schema, count_entries: Callable[[], int]) -> None:
        self.schema = schema
        self._count_entries = count_entries

    def put(self, pipe: Any, entries: Iterable[Entry]) -> None:
        """Each entry until it expires."""
        for entry in entries:
            pipe.set(self.schema.key(entry.kind, entry.name), self.schema.value(entry), exat=entry.expire_time)

    def vouch(self, pipe: Any, epoch: str, version: int, time_ms: int, now: Instant, *, is_fresh: bool) -> None:
        """The sentinel; *time_ms* is when the feed was read, by the clock of Redis."""
        sentinel = Sentinel(epoch, version, self._count_entries(), time_ms, now.run_id, now.time_ms)
        pipe.set(self.schema.trust, sentinel.text(), ex=TRUST_SECONDS)
        if is_fresh:
            pipe.set(self.schema.fresh, 1, ex=FRESH_SECONDS)

    def disown(self, pipe: Any) -> Any:
        """Take away what vouches for the entries: nobody may take what is there for everything."""
        return pipe.delete(self.schema.trust, self.schema.fresh)
