"""Asks Redis about each call. Needs the extra `redis`."""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
from collections.abc import Sequence
from typing import Any

from redis import asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from identity_client.redis.breaker import Breaker
from identity_client.redis.schema import DEFAULT_PREFIX, Schema, Sentinel
from identity_client.tokens.claims import Claims
from identity_client.trust.source import Answer, SourceDown

_STEPPED_BACK_SECONDS = 1.0


class RedisRevocations:
    """Give it to `Identity(connection, revocations=...)`, to one only.

    *url* is redis://, rediss:// or unix://, with the password in it if there is one; *prefix* is the service's setting
    redis_prefix. A question is one round trip and takes *timeout_seconds* at most, the connection included; nothing is
    repeated. After one that took as long in vain, or three failures in a row, no question waits for Redis any more:
    each raises SourceDown at once, until a probe in the background, at most a second after the last one, is answered.
    Raises ValueError: not such an address or prefix, or an option after the ? of the address that redis does not know.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = DEFAULT_PREFIX,
        timeout_seconds: float = 0.1,
        maximum_connections: int = 64,
    ) -> None:
        self._schema = Schema(prefix)
        self._timeout = timeout_seconds
        self._breaker = Breaker(lambda: self._exchange(()), timeout_seconds)
        self._nonces = map("{}:{}".format, itertools.repeat(secrets.token_hex(8)), itertools.count())
        try:
            pool = aioredis.BlockingConnectionPool.from_url(
                url,
                max_connections=maximum_connections,
                timeout=timeout_seconds,
                socket_timeout=timeout_seconds,
                socket_connect_timeout=timeout_seconds,
                retry=Retry(NoBackoff(), 0),
                decode_responses=True,
            )
            pool.connection_class(**pool.connection_kwargs)  # connects to nothing, but takes every option
        except (TypeError, ValueError):
            text = "a Redis address begins with redis://, rediss:// or unix://, and has options of redis only"
            raise ValueError(text) from None
        self._slots = asyncio.Semaphore(maximum_connections)
        self._redis: Any = aioredis.Redis.from_pool(pool)

    async def ask(self, claims: Sequence[Claims]) -> tuple[Answer, list[Answer]]:
        """See RevocationSource."""
        if self._breaker.is_open:
            raise SourceDown("Redis did not answer and is left alone for a moment")
        has_begun = False
        try:
            async with asyncio.timeout(self._timeout), self._slots:
                has_begun = True
                replies = await self._exchange(claims)
            answers = self._answers(claims, replies)
        except (RedisError, OSError, ValueError) as error:
            if has_begun:  # a question that waited for its turn tells nothing about Redis
                self._breaker.failed(in_vain=isinstance(error, (TimeoutError, RedisTimeoutError)))
            # Its own text could repeat what was sent, the password included.
            raise SourceDown(f"Redis gave no answer: {type(error).__name__}") from None
        self._breaker.succeeded()
        return answers

    async def close(self) -> None:
        """Close every connection."""
        await self._breaker.close()
        await self._redis.aclose()

    async def _exchange(self, claims: Sequence[Claims]) -> list[Any]:
        nonce = next(self._nonces)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.echo(nonce).time().get(self._schema.trust)
            for each in claims:
                pipe.mget(self._schema.keys(each))  # atomic: entries and the sentinel that vouches for them
            replies: list[Any] = await pipe.execute()
        if replies.pop(0) != nonce:
            # A call that was cancelled half-way left its answers behind: never take them for another token's.
            await self._redis.connection_pool.disconnect()
            raise ValueError("the answer belongs to another question")
        return replies

    def _answers(self, claims: Sequence[Claims], replies: Sequence[Any]) -> tuple[Answer, list[Answer]]:
        (seconds, microseconds), trust, *rows = replies
        now = seconds + microseconds / 1e6
        return _answer(now, trust), [
            _answer(now, row[0], *self._schema.standing(each, row)) for each, row in zip(claims, rows, strict=True)
        ]


def _answer(now: float, trust: str | None, is_revoked: bool = False, is_outdated: bool = False) -> Answer:
    sentinel = Sentinel.parse(trust)
    if sentinel is None:
        return Answer(math.inf, now, 0, is_revoked, is_outdated)
    age = now - sentinel.time_ms / 1e3
    if age < -_STEPPED_BACK_SECONDS:  # the clock of Redis was set back: how old the sentinel is, nobody can tell
        age = math.inf
    return Answer(max(0.0, age), now, sentinel.count, is_revoked, is_outdated)
