"""The two clocks: wall time decides expiry, monotonic time measures age. Injected everywhere: tests own them."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> float:
        """Wall time in Unix seconds."""

    def monotonic(self) -> float:
        """Seconds that only grow; for ages and deadlines."""


class SystemClock:
    """The machine's clocks."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
