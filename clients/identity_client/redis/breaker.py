"""Leaves a Redis that does not answer alone for a while."""

from __future__ import annotations

import random
from collections.abc import Callable

_TOLERATED = 3
_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 1.0
_random = random.SystemRandom()


def delay_seconds(failures: int) -> float:
    """How long to wait after so many failures in a row: 0.1 s doubled up to 1 s, less up to a half."""
    return min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(failures - 1, 16)) * _random.uniform(0.5, 1.0)


class Breaker:
    """Opens after three failures in a row; then one attempt is let through after each delay, until one succeeds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._failures = 0
        self._next_at = 0.0

    def admits(self) -> bool:
        """Whether to try now."""
        if self._failures < _TOLERATED:
            return True
        now = self._monotonic()
        if now < self._next_at:
            return False
        self._next_at = now + delay_seconds(self._failures)  # this attempt may be cancelled, and tell nothing
        return True

    def failed(self) -> None:
        """An attempt failed."""
        self._failures += 1
        self._next_at = self._monotonic() + delay_seconds(self._failures)

    def succeeded(self) -> None:
        """An attempt succeeded."""
        self._failures = 0
