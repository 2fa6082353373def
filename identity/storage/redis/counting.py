"""Counters of failed log-ins in Redis: each act is one script, one round trip, and may fail."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from identity.domain.throttle import DOUBLINGS, Attempt, Bucket, Counter
from identity.storage.redis.client import run_script
from identity.storage.redis.scripts import GIVE_BACK, RESERVE
from identity.storage.sql.throttle import COARSE_BYTES, ROW_LIMIT, Known

_Counted = tuple[tuple[Counter, int], ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """An attempt either waits, or is counted: in which buckets, and the next_ms that it left in each."""

    wait_seconds: int
    counted: _Counted = ()


class Counting:
    """The scripts over *client*, whose keys begin with *prefix*. Everything raises RedisError, OSError, ValueError."""

    def __init__(self, client: Any, prefix: str, row_limit: int = ROW_LIMIT) -> None:
        self._redis = client
        self._prefix = f"{prefix}throttle:"
        self._row_limit = row_limit
        self._nonces = map("{}:{}".format, itertools.repeat(secrets.token_hex(8)), itertools.count())

    async def reserve(self, attempt: Attempt, known: Known, now_ms: int) -> Verdict:
        """Count *attempt* at *now_ms* unless it is to wait, by the failures that are known here or there."""
        keys, arguments, counters = [self._index], [now_ms, self._row_limit, DOUBLINGS], []
        for fine, coarse in (
            (attempt.place,) * 2 if known.is_place_known else _both(attempt.name),
            _both(attempt.origin),
        ):
            keys += [self._key(fine), self._key(coarse)]
            buckets = [known.buckets.get(counter.key, Bucket()) for counter in (fine, coarse)]
            times = [time for bucket in buckets for time in (bucket.drained_ms, bucket.next_ms)]
            arguments += [fine.limit.free, fine.limit.interval_ms, *times]
            counters.append((fine, coarse))
        is_counted, *rest = await self._run(RESERVE, keys, arguments)
        if not is_counted:
            return Verdict(max(fine.limit.told_seconds(wait) for (fine, _), wait in zip(counters, rest, strict=True)))
        return Verdict(0, tuple((pair[rest[2 * i]], rest[2 * i + 1]) for i, pair in enumerate(counters)))

    async def give_back(self, counted: _Counted, now_ms: int, emptied: Sequence[Counter]) -> None:
        """Uncount what was *counted*, and forget what is counted in the *emptied* ones."""
        keys = [self._index, *(self._key(counter) for counter, _ in counted), *(self._key(each) for each in emptied)]
        pairs = [number for counter, next_ms in counted for number in (counter.limit.interval_ms, next_ms)]
        await self._run(GIVE_BACK, keys, [now_ms, len(counted), *pairs])

    @property
    def _index(self) -> str:
        return f"{self._prefix}index"

    def _key(self, counter: Counter) -> str:
        return f"{self._prefix}{counter.key[:1].decode()}:{counter.key[1:].hex()}"

    async def _run(self, script: str, keys: list[str], arguments: list[int]) -> list[Any]:
        nonce = next(self._nonces)
        answer = await run_script(self._redis, script, keys, [nonce, *arguments])
        if answer[0] != nonce:
            # A call that was cancelled half-way left its answer behind: never take it for another attempt's.
            await self._redis.connection_pool.disconnect()
            raise ValueError("the answer belongs to another question")
        return list(answer[1:])


def _both(counter: Counter) -> tuple[Counter, Counter]:
    """The counter itself, and the coarse one that it falls in where there are too many."""
    return counter, Counter(counter.key[:COARSE_BYTES], counter.limit)
