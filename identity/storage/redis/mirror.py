"""The mirror of all revocations in Redis (see identity_client.redis.schema for its keys).

For gateways that are not gRPC peers, and for peers that ask Redis per call. It is on nobody's way: no RPC waits for it,
and nothing acknowledged rests on it. It follows SQL step by step. Each step is one transaction that watches the
sentinel, so what the sentinel says is true whatever else writes, empties, restores or replaces that Redis meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from redis.exceptions import RedisError, WatchError

from identity.config import ConfigurationError
from identity.domain.ports import RevocationStore
from identity.storage.redis import writing
from identity.storage.redis.client import Instant, UnsafePolicy, Unvouched, check_policy, instant, open_client
from identity.storage.redis.rebuild import Builder
from identity.storage.redis.reporting import Report
from identity.storage.redis.writing import MirrorWriting
from identity_client.redis.breaker import delay_seconds
from identity_client.redis.schema import FRESH_SECONDS, Schema, Sentinel
from identity_client.trust.entries import PACKED_KINDS, Entry
from identity_client.trust.named import NamedEntries

BEAT_SECONDS = 1.0

_REPLY_SECONDS = 1.0  # nobody waits for it, and a rebuild that gave up at the first slow reply would never end
_POLICY_SECONDS = 10.0
_STEPPED_BACK_MS = 1_000
_SKEW_SECONDS = 300.0
"""An entry ends ten minutes after the last token that it concerns, by the clock of Redis. Where that is further ahead
than this, entries may end too early, and nobody who reads may take an absent one for news."""


class Mirror:
    """Follows *store* into the Redis at *url*. *count_entries*: how many revocations are live, for people to read."""

    def __init__(self, url: str, prefix: str, store: RevocationStore, count_entries: Callable[[], int]) -> None:
        self._schema = Schema(prefix)
        self._store = store
        self._redis = open_client(url, _REPLY_SECONDS)
        self._writing = MirrorWriting(self._schema, count_entries)
        self._builder = Builder(self._redis, store, self._writing)
        self._doorbell = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._policy_checked_at = float("-inf")
        self._report = Report("the mirror", "grows old, calls go on")

    async def start(self) -> None:
        """Begin, whether or not Redis answers. Raises ConfigurationError: it drops keys when memory is short."""
        try:
            await self._check_policy()
        except UnsafePolicy as error:
            raise ConfigurationError([str(error)]) from None
        except (RedisError, OSError) as error:
            self._report.failed(error)
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End where it waits; what is in Redis stays, and grows old."""
        self._is_stopping = True
        self._doorbell.set()
        if self._task is not None:
            self._task.cancel()  # the client library may swallow it: then the next turn of the loop sees the flag
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._redis.aclose()

    @property
    def is_following(self) -> bool:
        """Whether the last attempt to bring it up to date went well."""
        return self._report.is_well

    def ring(self) -> None:
        """The doorbell: something was committed."""
        self._doorbell.set()

    async def _run(self) -> None:
        failures = 0
        while not self._is_stopping:
            self._doorbell.clear()
            try:
                await self._follow()
            except Exception as error:
                # Whatever it is: the next attempt reads everything that counts from Redis and from SQL again.
                failures += 1
                self._report.failed(error)
                await asyncio.sleep(delay_seconds(failures))
                continue
            failures = 0
            self._report.succeeded()
            if not self._is_stopping:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BEAT_SECONDS):
                        await self._doorbell.wait()

    async def _follow(self) -> None:
        """Bring the mirror up to the feed."""
        if time.monotonic() - self._policy_checked_at >= _POLICY_SECONDS:
            await self._guard_policy()
        while not await self._step():
            pass

    # -- step by step ------------------------------------------------------------------------------------------

    async def _step(self) -> bool:
        """Write the next entries, or everything anew. -> whether that was all."""
        async with self._redis.pipeline() as pipe:
            await pipe.watch(self._schema.trust)
            held = Sentinel.parse(await pipe.get(self._schema.trust))
            now = await instant(pipe)  # before the feed is read: that is how old the news is
            await self._guard_clock(now)
            epoch, head = await self._store.head()
            sentinel = _usable(held, epoch, head, now)
            if sentinel is None:
                if not await self._builder.claim(pipe):
                    return True  # another builds it: the next beat looks again
                await self._builder.build(now)
                return False
            changes = await self._store.entries_since(sentinel.version, writing.PART)
            entries = await self._merged([entry for _, entry in changes], now.time_ms)
            version = changes[-1][0] if changes else sentinel.version
            is_all = len(changes) < writing.PART
            pipe.multi()
            self._writing.put(pipe, entries)
            # News that are not all there is must not look fresh.
            read_ms = now.time_ms if is_all else sentinel.time_ms
            self._writing.vouch(pipe, epoch, version, read_ms, now, is_fresh=is_all)
            with contextlib.suppress(WatchError):  # another was faster: the next step starts from there
                await pipe.execute()
                return is_all
        return False

    async def _merged(self, entries: list[Entry], read_ms: int) -> list[Entry]:
        """*entries*, those with a minimum joined with what is held: the later expiry and the higher minimum hold."""
        named = [entry for entry in entries if entry.kind not in PACKED_KINDS]
        if not named:
            return entries
        async with self._redis.pipeline(transaction=False) as pipe:
            for entry in named:
                key = self._schema.key(entry.kind, entry.name)
                pipe.get(key).pttl(key)
            replies = await pipe.execute()
        joined = NamedEntries()
        for entry, minimum, left_ms in zip(named, replies[::2], replies[1::2], strict=True):
            joined.add(entry)
            if minimum is not None and left_ms > 0:
                held = await self._checked_minimum(minimum)
                joined.add(Entry(entry.kind, entry.name, (read_ms + left_ms) // 1_000, held))
        return [entry for entry in entries if entry.kind in PACKED_KINDS] + list(joined.entries())

    # -- troubles ----------------------------------------------------------------------------------------------

    async def _check_policy(self) -> None:
        """Raises UnsafePolicy."""
        await check_policy(self._redis)
        self._policy_checked_at = time.monotonic()

    async def _guard_policy(self) -> None:
        """The policy may be changed under us: then nobody may take what is there for everything."""
        try:
            await self._check_policy()
        except UnsafePolicy:
            await self._writing.disown(self._redis)
            raise

    async def _guard_clock(self, now: Instant) -> None:
        """Raises Unvouched: the clock of Redis and ours are too far apart for what is there to be vouched for."""
        skew = now.time_ms / 1_000 - time.time()
        if abs(skew) > _SKEW_SECONDS:
            await self._writing.disown(self._redis)
            raise Unvouched(f"the clock of Redis is {skew / 60:+.0f} minutes from ours: set both by NTP")

    async def _checked_minimum(self, text: str) -> int:
        try:
            return int(text)
        except ValueError:  # nobody of us wrote it: nothing that is there can be vouched for
            await self._writing.disown(self._redis)
            raise Unvouched("the mirror holds what it was not given") from None


def _usable(sentinel: Sentinel | None, epoch: str, head: int, now: Instant) -> Sentinel | None:
    """*sentinel*, if it vouches for entries of this feed, all of which Redis still has.

    While its clock is ahead Redis may drop entries for good: as it loads its file at the start, or in any moment that
    nobody has watched. A sentinel of another run, from the future or without a beat for long tells that it may have.
    The beat is what counts, not how old the news are: these wait for a build, which may take longer.
    """
    if sentinel is None or sentinel.epoch != epoch or sentinel.version > head or sentinel.run_id != now.run_id:
        return None
    since_beat_ms = now.time_ms - sentinel.beat_ms
    return sentinel if -_STEPPED_BACK_MS <= since_beat_ms <= FRESH_SECONDS * 1_000 else None
