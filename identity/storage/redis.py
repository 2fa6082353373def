"""The mirror of all revocations in Redis (see identity_client.redis.schema for its keys).

For gateways that are not gRPC peers, and for peers that ask Redis per call. It is on nobody's way: no RPC waits for it,
and nothing acknowledged rests on it. It follows SQL step by step. Each step is one transaction that watches the
sentinel, so what the sentinel says is true whatever else writes, empties, restores or replaces that Redis meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from redis import asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, WatchError

from identity.config import ConfigurationError
from identity.domain.ports import RevocationStore
from identity_client.errors import DependencyDown
from identity_client.redis.breaker import delay_seconds
from identity_client.redis.schema import FRESH_SECONDS, Schema, Sentinel
from identity_client.trust.entries import PACKED_KINDS, Entry
from identity_client.trust.named import NamedEntries

BEAT_SECONDS = 1.0
SAFE_POLICY = "noeviction"

_CONNECT_SECONDS = 0.1
_REPLY_SECONDS = 1.0  # nobody waits for it, and a rebuild that gave up at the first slow reply would never end
_POLICY_SECONDS = 10.0
_BUILD_SECONDS = 30  # the claim of a builder that has died ends by itself
_STEPPED_BACK_MS = 1_000
_LOG_SECONDS = 60.0
_PART = 500

_log = logging.getLogger(__name__)


class UnsafePolicy(Exception):
    """Redis would drop revocations to make room, and so revive what was revoked."""

    def __init__(self, policy: str) -> None:
        super().__init__(
            f"redis_url: maxmemory-policy is {policy}, which drops revocations when memory is short: "
            f"set it to {SAFE_POLICY}"
        )


class Mirror:
    """Follows *store* into the Redis at *url*. *count_entries*: how many revocations are live, for people to read."""

    def __init__(self, url: str, prefix: str, store: RevocationStore, count_entries: Callable[[], int]) -> None:
        self._schema = Schema(prefix)
        self._store = store
        self._count_entries = count_entries
        self._redis = _client(url)
        self._name = secrets.token_hex(8)  # among the mirrors of several processes
        self._build = 0
        self._doorbell = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._policy_checked_at = float("-inf")
        self._problem = ""
        self._logged_at = float("-inf")

    async def start(self) -> None:
        """Begin, whether or not Redis answers. Raises ConfigurationError: it drops keys when memory is short."""
        try:
            await self._check_policy()
        except UnsafePolicy as error:
            raise ConfigurationError([str(error)]) from None
        except (RedisError, OSError) as error:
            self._report(error)
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
        return not self._problem

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
                self._report(error)
                await asyncio.sleep(delay_seconds(failures))
                continue
            failures = 0
            self._recovered()
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
            time_ms = _milliseconds(await pipe.time())  # before the feed is read: that is how old the news is
            epoch, head = await self._store.head()
            sentinel = _usable(held, epoch, head, time_ms)
            if sentinel is None:
                if not await self._claim(pipe):
                    return True  # another builds it: the next beat looks again
                await self._rebuild()
                return False
            changes = await self._store.entries_since(sentinel.version, _PART)
            entries = await self._merged([entry for _, entry in changes], time_ms)
            version = changes[-1][0] if changes else sentinel.version
            is_all = len(changes) < _PART
            pipe.multi()
            self._put(pipe, entries)
            # News that are not all there is must not look fresh.
            self._vouch(pipe, epoch, version, time_ms if is_all else sentinel.time_ms, is_fresh=is_all)
            with contextlib.suppress(WatchError):  # another was faster: the next step starts from there
                await pipe.execute()
                return is_all
        return False

    async def _merged(self, entries: list[Entry], time_ms: int) -> list[Entry]:
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
                joined.add(Entry(entry.kind, entry.name, (time_ms + left_ms) // 1_000, held))
        return [entry for entry in entries if entry.kind in PACKED_KINDS] + list(joined.entries())

    def _put(self, pipe: Any, entries: Iterable[Entry]) -> None:
        for entry in entries:
            pipe.set(self._schema.key(entry.kind, entry.name), self._schema.value(entry), exat=entry.expire_time)

    def _vouch(self, pipe: Any, epoch: str, version: int, time_ms: int, *, is_fresh: bool) -> None:
        pipe.set(self._schema.trust, Sentinel(epoch, version, self._count_entries(), time_ms).text())
        if is_fresh:
            pipe.set(self._schema.fresh, 1, ex=FRESH_SECONDS)

    # -- everything anew ---------------------------------------------------------------------------------------

    async def _claim(self, pipe: Any) -> bool:
        """Become the one that builds, and take away what vouches for the old: for all that *pipe* watches, too."""
        await pipe.watch(self._schema.builder)
        builder = await pipe.get(self._schema.builder)
        if builder is not None and not builder.startswith(self._name):
            return False
        self._build += 1
        pipe.multi()
        pipe.set(self._schema.builder, self._progress(0), ex=_BUILD_SECONDS)
        pipe.delete(self._schema.trust, self._schema.fresh)
        with contextlib.suppress(WatchError):  # another was faster
            await pipe.execute()
            return True
        return False

    async def _rebuild(self) -> None:
        """Write every live entry, the sentinel last.

        Each part moves the claim on, and is written only where the claim stands as the last part left it. So this very
        Redis has seen every part: it was neither emptied nor replaced by a copy that lacks some, and nobody else's
        entries were overwritten with older ones. Raises WatchError where it was otherwise.
        """
        _log.info("the mirror in Redis is built anew")
        count = 0
        async for keys in self._held_keys():  # of another epoch, or versions that SQL has lost: no minimum may stay
            await self._put_part(count, [], keys)
            count += 1
        time_ms = _milliseconds(await self._redis.time())
        epoch, version, batches = await self._store.live_entries()
        named = NamedEntries()
        for batch in batches:
            for entry in batch.others:
                named.add(entry)
        packed = (entry for batch in batches for entry in batch if entry.kind in PACKED_KINDS)
        for part in chain(_parts(packed), _parts(named.entries())):
            await self._put_part(count, part)
            count += 1
        await self._finish(count, epoch, version, time_ms)

    async def _put_part(self, count: int, part: list[Entry], removed: list[str] | None = None) -> None:
        async with self._redis.pipeline() as pipe:
            await self._confirm_claim(pipe, count)
            pipe.multi()
            if removed:
                pipe.unlink(*removed)
            self._put(pipe, part)
            pipe.set(self._schema.builder, self._progress(count + 1), ex=_BUILD_SECONDS)
            await pipe.execute()

    async def _finish(self, count: int, epoch: str, version: int, time_ms: int) -> None:
        async with self._redis.pipeline() as pipe:
            await self._confirm_claim(pipe, count)
            pipe.multi()
            self._vouch(pipe, epoch, version, time_ms, is_fresh=False)  # the next step looks for later entries first
            pipe.delete(self._schema.builder)
            await pipe.execute()

    async def _confirm_claim(self, pipe: Any, count: int) -> None:
        await pipe.watch(self._schema.builder)
        if await pipe.get(self._schema.builder) != self._progress(count):
            raise WatchError("Redis was emptied or replaced while the mirror was built, or another builds it")

    def _progress(self, count: int) -> str:
        return f"{self._name}:{self._build}:{count}"

    async def _held_keys(self) -> AsyncIterator[list[str]]:
        """The keys of entries that are there, a part at a time."""
        keys = [key async for key in self._redis.scan_iter(match=f"{self._schema.prefix}*", count=1_000)]
        for part in _parts(key for key in keys if key.startswith(self._schema.entries)):
            yield part

    # -- troubles ----------------------------------------------------------------------------------------------

    async def _check_policy(self) -> None:
        """Raises UnsafePolicy. INFO, because many hosts forbid CONFIG."""
        policy = (await self._redis.info("memory")).get("maxmemory_policy", "unknown")
        if policy != SAFE_POLICY:
            raise UnsafePolicy(policy)
        self._policy_checked_at = time.monotonic()

    async def _guard_policy(self) -> None:
        """The policy may be changed under us: then nobody may take what is there for everything."""
        try:
            await self._check_policy()
        except UnsafePolicy:
            await self._redis.delete(self._schema.trust, self._schema.fresh)
            raise

    async def _checked_minimum(self, text: str) -> int:
        try:
            return int(text)
        except ValueError:  # nobody of us wrote it: nothing that is there can be vouched for
            await self._redis.delete(self._schema.trust, self._schema.fresh)
            raise RedisError("the mirror holds what it was not given") from None

    def _report(self, error: Exception) -> None:
        """One line for each new problem, and for a lasting one a line a minute. Not what Redis says: it may repeat what
        was sent to it, the password included."""
        if not isinstance(error, (RedisError, OSError, DependencyDown, UnsafePolicy)):
            _log.exception("the mirror in Redis met something unforeseen", exc_info=error)
            return
        now, problem = time.monotonic(), str(error) if isinstance(error, UnsafePolicy) else type(error).__name__
        if problem != self._problem or now - self._logged_at >= _LOG_SECONDS:
            _log.warning("the mirror in Redis grows old, calls go on: %s", problem)
            self._logged_at = now
        self._problem = problem

    def _recovered(self) -> None:
        if self._problem:
            _log.info("the mirror in Redis is up to date again")
        self._problem = ""


def _client(url: str) -> Any:
    """Raises ConfigurationError: an option in the address is unknown."""
    try:
        client: Any = aioredis.Redis.from_url(
            url,
            socket_timeout=_REPLY_SECONDS,
            socket_connect_timeout=_CONNECT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # connects to nothing, but takes every option
    except (TypeError, ValueError):
        raise ConfigurationError(["redis_url: a part of it, or an option after its ?, is not understood"]) from None
    return client


def _usable(sentinel: Sentinel | None, epoch: str, head: int, time_ms: int) -> Sentinel | None:
    """*sentinel*, if it vouches for entries of this feed, all of which Redis still has.

    While its clock was ahead Redis may have dropped entries for good: a sentinel from the future tells that it was.
    """
    if sentinel is None or sentinel.epoch != epoch or sentinel.version > head:
        return None
    return sentinel if sentinel.time_ms <= time_ms + _STEPPED_BACK_MS else None


def _milliseconds(redis_time: tuple[int, int]) -> int:
    seconds, microseconds = redis_time
    return seconds * 1_000 + microseconds // 1_000


def _parts(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while part := list(islice(iterator, _PART)):
        yield part
