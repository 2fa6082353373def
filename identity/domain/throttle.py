"""How failed log-ins are counted and how long the next one waits: values, and the decision.

A bucket forgets one failure per interval. The first failures are free; then each doubles the delay before the next
attempt, from a 64th of the interval up to the whole of it. So no wait is longer than the interval, and a guesser who
never stops gets one attempt per interval.
"""

from __future__ import annotations

from dataclasses import dataclass

from identity_client.errors import Throttled

DOUBLINGS = 6
"""Steps from the shortest delay to the longest."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How many failures are *free*, and how long it takes to forget one: also the longest delay."""

    free: int
    interval_ms: int

    @property
    def longest_debt_ms(self) -> int:
        """What it takes to forget as many failures as can ever be counted."""
        return (self.free + DOUBLINGS + 1) * self.interval_ms

    def delay_ms(self, failures: int) -> int:
        """How long an attempt must wait after the last one when *failures* are counted."""
        if failures < self.free:
            return 0
        return self.interval_ms >> max(0, DOUBLINGS - (failures - self.free))

    def told_seconds(self, wait_ms: int) -> int:
        """What a caller is told who has to wait: rounded up to a whole step, so that it is no clock; 0 for no wait."""
        if wait_ms <= 0:
            return 0
        steps = (self.interval_ms >> doublings for doublings in range(DOUBLINGS, -1, -1))
        return -(-next(step for step in steps if wait_ms <= step) // 1_000)


@dataclass(frozen=True, slots=True)
class Bucket:
    """The failures counted for one name, origin or place. Times are Unix milliseconds."""

    drained_ms: int = 0  # when all of them will be forgotten
    next_ms: int = 0  # when the next attempt is due

    def wait_ms(self, limit: Limit, now_ms: int) -> int:
        """How long from now an attempt is refused.

        A time further off than the longest delay was written before the clock was set back: it must not lock anyone
        out, and since the failures stay counted, it opens the bucket for one attempt.
        """
        wait = self.next_ms - now_ms
        return wait if 0 < wait <= limit.interval_ms else 0

    def counted(self, limit: Limit, now_ms: int) -> Bucket:
        """With one failure more."""
        drained = max(self.drained_ms, now_ms) + limit.interval_ms
        drained = min(drained, now_ms + limit.longest_debt_ms)
        failures = -(-(drained - now_ms) // limit.interval_ms)
        delay = limit.delay_ms(failures)
        # Whoever took the time a moment earlier, and reads this a moment later, must not find that it is yet to come.
        return Bucket(drained, now_ms + delay if delay else 0)

    def given_back(self, limit: Limit, counted_next_ms: int) -> Bucket:
        """With the failure taken back that had set next_ms to *counted_next_ms*; a later one keeps its delay."""
        next_ms = 0 if self.next_ms == counted_next_ms else self.next_ms
        return Bucket(self.drained_ms - limit.interval_ms, next_ms)


@dataclass(frozen=True, slots=True)
class Counter:
    """A bucket's key and its limit. The first byte of the key says what is counted, the others whose."""

    key: bytes
    limit: Limit


@dataclass(frozen=True, slots=True)
class Attempt:
    """What an attempt counts in: the place if its owner logged in there lately, else the name; and the origin."""

    name: Counter
    origin: Counter
    place: Counter


@dataclass(frozen=True, slots=True)
class Reservation:
    """An attempt that was counted: in which buckets, and the next_ms that it left in each."""

    attempt: Attempt
    counted: tuple[tuple[Counter, int], ...]


def admit(found: list[tuple[Counter, Bucket]], now_ms: int) -> list[tuple[Counter, Bucket]]:
    """The buckets with an attempt counted in each. Raises Throttled where one is to wait."""
    wait = max(counter.limit.told_seconds(bucket.wait_ms(counter.limit, now_ms)) for counter, bucket in found)
    if wait:
        raise Throttled(retry_after_seconds=wait)
    return [(counter, bucket.counted(counter.limit, now_ms)) for counter, bucket in found]
