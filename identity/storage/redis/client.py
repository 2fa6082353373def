"""The connection to Redis, and what it must be set to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis import asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from identity.config import ConfigurationError

SAFE_POLICY = "noeviction"

_CONNECT_SECONDS = 0.1


class UnsafePolicy(Exception):
    """Redis would drop revocations to make room, and so revive what was revoked."""

    def __init__(self, policy: str) -> None:
        super().__init__(
            f"redis_url: maxmemory-policy is {policy}, which drops revocations when memory is short: "
            f"set it to {SAFE_POLICY}"
        )


class Unvouched(RedisError):
    """What is in Redis cannot be vouched for; the text is ours, and says what to mend."""


@dataclass(frozen=True, slots=True)
class Instant:
    """Which run of Redis, and what its clock shows, in Unix milliseconds."""

    run_id: str
    time_ms: int


def open_client(url: str, reply_seconds: float) -> Any:
    """A client that repeats nothing. It connects when first used. Raises ConfigurationError: an option in the address
    is unknown."""
    try:
        client: Any = aioredis.Redis.from_url(
            url,
            socket_timeout=reply_seconds,
            socket_connect_timeout=_CONNECT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # connects to nothing, but takes every option
    except (TypeError, ValueError):
        raise ConfigurationError(["redis_url: a part of it, or an option after its ?, is not understood"]) from None
    return client


async def check_policy(client: Any) -> None:
    """Raises UnsafePolicy. INFO, because many hosts forbid CONFIG."""
    policy = (await client.info("memory")).get("maxmemory_policy", "unknown")
    if policy != SAFE_POLICY:
        raise UnsafePolicy(policy)


async def instant(client: Any) -> Instant:
    """Of the Redis behind *client*, which may be a pipeline that watches. Raises Unvouched: it tells no run."""
    run_id = str((await client.info("server")).get("run_id", ""))
    if not run_id:
        raise Unvouched("INFO tells no run_id: a restart that has lost revocations would go unnoticed")
    return Instant(run_id, await time_ms(client))


async def time_ms(client: Any) -> int:
    """The time of Redis itself, in Unix milliseconds; *client* may be a pipeline that watches."""
    seconds, microseconds = await client.time()
    return int(seconds) * 1_000 + int(microseconds) // 1_000


async def run_script(client: Any, script: str, keys: Sequence[str], arguments: Sequence[str | int]) -> Any:
    """What *script* answers; it is sent whole only where Redis does not know it."""
    sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    try:
        return await client.evalsha(sha, len(keys), *keys, *arguments)
    except NoScriptError:
        return await client.eval(script, len(keys), *keys, *arguments)
