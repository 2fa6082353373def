"""RedisThrottleStore: counters of failed log-ins in Redis, shared by every replica, with SQL behind them.

Redis counts; SQL knows the places, which must outlive it, and learns of the failures half a second later, all of them
in one transaction, those of log-ins that succeeded by then not at all. Each attempt is judged by the higher of the two,
so a Redis that comes back empty or old is no fresh start for a guesser. Where Redis does not decide within 100 ms (it
is away, hangs, has no memory left, has become a replica), SQL decides, after what this process had not noted yet.

So no more can be forgotten than the failures of the last half second: all of them each time that Redis is emptied, and
those of other processes when this one cannot reach it. A name or an origin gets twice its allowance at most by it.

Times are this process's own, as they are in SQL, for both hold the same buckets; Redis is told spans alone, so what its
clock shows does not matter, nor that it differs from ours. If that clock steps ahead, keys expire early: as if emptied.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from identity.domain.throttle import Attempt, Counter, Reservation
from identity.storage.redis.counting import Counting
from identity.storage.redis.reporting import Report
from identity.storage.sql.throttle import ROW_LIMIT, SqlThrottleStore
from identity_client.clock import Clock
from identity_client.errors import Throttled
from identity_client.redis.breaker import Breaker

ANSWER_SECONDS = 0.1

_CONNECTIONS = 32

_Failures = dict[tuple[int, bytes], tuple[Counter, int]]
"""By reservation and key: the counter, and the time of the attempt (Unix milliseconds)."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RedisReservation(Reservation):
    """One that was counted in Redis; *number* tells those of one process apart."""

    number: int

    @property
    def failures(self) -> list[tuple[int, bytes]]:
        """Its keys in _Failures."""
        return [(self.number, counter.key) for counter, _ in self.counted]


class RedisThrottleStore:
    """See domain.ports.ThrottleStore. *client* is closed with it."""

    def __init__(
        self, client: Any, prefix: str, sql: SqlThrottleStore, clock: Clock, row_limit: int = ROW_LIMIT
    ) -> None:
        self._redis = client
        self._counting = Counting(client, prefix, row_limit)
        self._sql = sql
        self._clock = clock
        self._breaker = Breaker(self._probe, ANSWER_SECONDS)
        self._report = Report("the count of failed log-ins", "waits, SQL counts meanwhile")
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._numbers = itertools.count()
        self._newer: _Failures = {}
        self._older: _Failures = {}
        self._noting = asyncio.Lock()

    async def reserve(self, attempt: Attempt) -> Reservation:
        known, now_ms = await self._sql.look(attempt), self._now_ms()
        verdict = await self._asked(lambda: self._counting.reserve(attempt, known, now_ms))
        if verdict is None:
            await self._note_all()
            return await self._sql.reserve(attempt)
        if verdict.wait_seconds:
            raise Throttled(retry_after_seconds=verdict.wait_seconds)
        reservation = RedisReservation(attempt, verdict.counted, next(self._numbers))
        self._newer |= {(reservation.number, counter.key): (counter, now_ms) for counter, _ in verdict.counted}
        return reservation

    async def succeeded(self, reservation: Reservation) -> None:
        place = reservation.attempt.place
        counted = reservation.counted if isinstance(reservation, RedisReservation) else ()
        is_in_sql = not isinstance(reservation, RedisReservation) or self._is_noted(reservation)
        self._drop(place)
        await self._asked(lambda: self._counting.give_back(counted, self._now_ms(), [place]))
        async with self._noting:  # it may be on its way
            await self._sql.succeeded(reservation if is_in_sql else Reservation(reservation.attempt, ()))

    async def note_failures(self) -> None:
        """Have SQL know of the attempts that are a while old and did not succeed. Run it four times a second."""
        await self._note(self._older)
        self._older, self._newer = self._newer, {}

    async def close(self) -> None:
        """Note the rest, and close every connection."""
        try:
            await self._note_all()
        finally:
            await self._breaker.close()
            await self._redis.aclose()

    @property
    def is_redis_left_alone(self) -> bool:
        """Whether Redis does not answer, so that SQL counts without asking it."""
        return self._breaker.is_open

    async def _note_all(self) -> None:
        await self._note(self._older)
        await self._note(self._newer)

    async def _note(self, failures: _Failures) -> None:
        async with self._noting:
            taken = dict(failures)
            failures.clear()
            try:
                await self._sql.note(list(taken.values()))
            except BaseException:
                failures.update(taken)
                raise

    def _is_noted(self, reservation: RedisReservation) -> bool:
        """Whether SQL knows of it; if not, it never will."""
        found = [self._newer.pop(key, None) or self._older.pop(key, None) for key in reservation.failures]
        return not any(found)

    def _drop(self, place: Counter) -> None:
        for failures in (self._newer, self._older):
            for key in [key for key in failures if key[1] == place.key]:
                del failures[key]

    async def _asked(self, question: Callable[[], Awaitable[T]]) -> T | None:
        """What Redis answers; None where it does not."""
        if self._breaker.is_open:
            return None
        has_begun = False
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._slots:
                has_begun = True
                answer = await question()
        except (RedisError, OSError, ValueError) as error:
            if has_begun:  # a question that waited for its turn tells nothing about Redis
                self._breaker.failed(in_vain=isinstance(error, (TimeoutError, RedisTimeoutError)))
                self._report.failed(error)
            return None
        self._breaker.succeeded()
        self._report.succeeded()
        return answer

    async def _probe(self) -> None:
        """Uncount nothing: a script as the others are, but one that waits for nobody and changes nothing."""
        await self._counting.give_back((), self._now_ms(), ())

    def _now_ms(self) -> int:
        return int(self._clock.now() * 1_000)
