"""Everything anew: how the mirror is built in an empty Redis, or in one that holds what SQL does not know of."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from redis.exceptions import WatchError

from identity.domain.ports import RevocationStore
from identity.storage.redis.client import Instant, instant, run_script, time_ms
from identity.storage.redis.scripts import PUT_PART
from identity.storage.redis.writing import MirrorWriting
from identity_client.trust.entries import PACKED_KINDS, Entry
from identity_client.trust.named import NamedEntries

BUILD_SECONDS = 30  # the claim of a builder that has died ends by itself
PAGE = 500
"""So many entries are read from SQL at a time, or keys from Redis: a millisecond in which calls may have to wait."""

PART = 250
"""So many entries are written at a time: half a millisecond in which neither Redis nor the event loop serves others."""

PART_SECONDS = 0.005
"""How often a part is written: calls have nine tenths of the event loop. A hundred thousand entries take two seconds,
or longer where there is much else to do."""

_LATE = 10
_CLAIM_LOST = "Redis was emptied or replaced while the mirror was built, or another builds it"

_log = logging.getLogger(__name__)


class Builder:
    """One of several processes that may build; the claim in Redis decides which."""

    def __init__(self, client: Any, store: RevocationStore, writing: MirrorWriting) -> None:
        self._redis = client
        self._store = store
        self._writing = writing
        self._schema = writing.schema
        self._name = secrets.token_hex(8)
        self._build = 0

    async def claim(self, pipe: Any) -> bool:
        """Become the one that builds, and take away what vouches for the old: for all that *pipe* watches, too."""
        await pipe.watch(self._schema.builder)
        builder = await pipe.get(self._schema.builder)
        if builder is not None and not builder.startswith(self._name):
            return False
        self._build += 1
        pipe.multi()
        pipe.set(self._schema.builder, self._progress(0), ex=BUILD_SECONDS)
        self._writing.disown(pipe)
        with contextlib.suppress(WatchError):  # another was faster
            await pipe.execute()
            return True
        return False

    async def build(self, start: Instant) -> None:
        """Write every live entry, the sentinel last.

        Each part moves the claim on, and is written only where the claim stands as the last part left it. So this very
        Redis has seen every part: it was neither emptied nor replaced by a copy that lacks some, and nobody else's
        entries were overwritten with older ones; nor did it start again since *start*, and so drop any that it took for
        expired. Raises WatchError where it was otherwise.
        """
        _log.info("the mirror in Redis is built anew")
        count, pace = 0, Pace(PART_SECONDS, time.monotonic())
        async for keys in self._held_keys():  # of another epoch, or versions that SQL has lost: no minimum may stay
            await self._put_part(count, [], keys)
            count += 1
            await asyncio.sleep(pace.delay(time.monotonic()))
        read_ms = await time_ms(self._redis)
        epoch, version = await self._store.head()
        async for part in self._entries(version):
            await self._put_part(count, part)
            count += 1
            await asyncio.sleep(pace.delay(time.monotonic()))
        await self._finish(count, epoch, version, read_ms, start)

    async def _entries(self, head: int) -> AsyncIterator[list[Entry]]:
        """All up to the version *head* and perhaps some of later ones, a part at a time; each minimum once, last."""
        named, version, is_all = NamedEntries(), 0, False
        while not is_all:
            changes = await self._store.entries_since(version, PAGE)
            for part in _parts(entry for _, entry in changes if entry.kind in PACKED_KINDS):
                yield part
            for _, entry in changes:
                if entry.kind not in PACKED_KINDS:
                    named.add(entry)
            version = changes[-1][0] if changes else head
            is_all = version >= head
        for part in _parts(named.entries()):
            yield part

    async def _put_part(self, count: int, part: list[Entry], removed: Sequence[str] = ()) -> None:
        # A script, because hundreds of commands in a transaction of a client hold the event loop for milliseconds.
        keys = [self._schema.builder, *(self._schema.key(entry.kind, entry.name) for entry in part), *removed]
        rows = " ".join(f"{self._schema.value(entry)}:{entry.expire_time}" for entry in part)
        claim = (self._progress(count), self._progress(count + 1), BUILD_SECONDS)
        if not await run_script(self._redis, PUT_PART, keys, [*claim, rows]):
            raise WatchError(_CLAIM_LOST)

    async def _finish(self, count: int, epoch: str, version: int, read_ms: int, start: Instant) -> None:
        async with self._redis.pipeline() as pipe:
            await self._confirm_claim(pipe, count)
            now = await instant(pipe)
            if now.run_id != start.run_id:
                raise WatchError(_CLAIM_LOST)
            pipe.multi()
            # Not fresh yet: the next step looks for later entries first.
            self._writing.vouch(pipe, epoch, version, read_ms, now, is_fresh=False)
            pipe.delete(self._schema.builder)
            await pipe.execute()

    async def _confirm_claim(self, pipe: Any, count: int) -> None:
        await pipe.watch(self._schema.builder)
        if await pipe.get(self._schema.builder) != self._progress(count):
            raise WatchError(_CLAIM_LOST)

    def _progress(self, count: int) -> str:
        return f"{self._name}:{self._build}:{count}"

    async def _held_keys(self) -> AsyncIterator[list[str]]:
        """The keys of entries that are there, a page at a time."""
        cursor, is_all = 0, False
        while not is_all:
            cursor, keys = await self._redis.scan(cursor, match=f"{self._schema.prefix}*", count=PAGE)
            is_all = cursor == 0
            if held := [key for key in keys if key.startswith(self._schema.entries)]:
                yield held


def _parts(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    iterator = iter(entries)
    while part := list(islice(iterator, PART)):
        yield part


class Pace:
    """Something is done again and again, every *seconds* at most; a few that come late are made up for."""

    def __init__(self, seconds: float, now: float) -> None:
        self._seconds = seconds
        self._due = now

    def delay(self, now: float) -> float:
        """How long to wait for the next one, when one has ended."""
        self._due = max(self._due, now - _LATE * self._seconds) + self._seconds
        return max(0.0, self._due - now)
