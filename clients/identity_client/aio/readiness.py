"""Tells a peer's own health service whether the trust state is fresh enough to serve."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from identity_client.trust.metrics import TrustMetrics

OnReady = Callable[[bool], Awaitable[None] | None]
"""Called with True once the state is fresh enough to serve, with False once it is too old, and so on; may be async."""

POLL_SECONDS = 0.25

_log = logging.getLogger(__name__)


class Knowledge(Protocol):
    """What is known of the revocations: held here (TrustState), or asked for elsewhere (Lookups)."""

    clock_skew_seconds: float

    def staleness(self) -> float:
        """How old it is, in seconds; infinite before the first time."""

    def entry_count(self) -> int:
        """How many revocations are live."""


class Readiness:
    """Looks at the state's age four times a second: it grows without any event."""

    def __init__(
        self, trust: Knowledge, max_staleness_seconds: float, on_ready: OnReady | None, metrics: TrustMetrics
    ) -> None:
        self._trust = trust
        self._max_staleness = max_staleness_seconds
        self._on_ready = on_ready
        self._metrics = metrics
        self._is_ready = False

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(POLL_SECONDS)

    async def look(self) -> None:
        """Tell what there is to tell now."""
        staleness = self._trust.staleness()
        self._metrics.observed(staleness, self._trust.entry_count(), self._trust.clock_skew_seconds)
        await self._tell(staleness <= self._max_staleness)

    async def end(self) -> None:
        """No longer ready: nothing keeps the state fresh from now on."""
        await self._tell(False)

    async def _tell(self, is_ready: bool) -> None:
        if is_ready is self._is_ready:
            return
        self._is_ready = is_ready
        if self._on_ready is None:
            return
        try:
            answer = self._on_ready(is_ready)
            if inspect.isawaitable(answer):
                await answer
        except Exception:
            _log.exception("on_ready failed; the peer's health may be out of date")
