"""Leaves a Redis that does not answer alone, and finds out by itself when it answers again."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

_TOLERATED = 3
_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 1.0
_random = random.SystemRandom()


def delay_seconds(failures: int) -> float:
    """How long to wait after so many failures in a row: 0.1 s doubled up to 1 s, less up to a half."""
    return min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(failures - 1, 16)) * _random.uniform(0.5, 1.0)


class Breaker:
    """Opens after three failures in a row, or the first question that waited in vain. Nobody's question goes to Redis
    then: a *probe* of its own does, at once, and again a delay after the last one, until one succeeds within
    *timeout_seconds*. Lives on one event loop.

    So a Redis that hangs costs those who ask before the first has waited for all its time, and no later one any; and
    one that answers all the same is left alone for as long as a probe takes.
    """

    def __init__(self, probe: Callable[[], Awaitable[object]], timeout_seconds: float) -> None:
        self._probe = probe
        self._timeout = timeout_seconds
        self._failures = 0
        self._probing: asyncio.Task[None] | None = None
        self._is_done = False

    @property
    def is_open(self) -> bool:
        """Whether to go the way round at once."""
        return self._probing is not None or self._is_done

    def failed(self, *, in_vain: bool) -> None:
        """A question failed; *in_vain*: after it had waited for all its time."""
        if self.is_open:  # it was asked before
            return
        self._failures += 1
        if self._failures >= _TOLERATED or in_vain:
            self._probing = asyncio.create_task(self._probe_until_it_answers())

    def succeeded(self) -> None:
        """A question succeeded. An open breaker waits for its probe all the same: the answer may be an old one."""
        self._failures = 0

    async def close(self) -> None:
        """Stop probing; nobody asks any more."""
        self._is_done = True
        if self._probing is not None:
            self._probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probing

    async def _probe_until_it_answers(self) -> None:
        failures = 0
        while not self._is_done:  # the client library may swallow the cancellation
            with contextlib.suppress(Exception):  # whatever it is, it is no answer
                async with asyncio.timeout(self._timeout):
                    await self._probe()
                break
            failures += 1
            await asyncio.sleep(delay_seconds(failures))
        self._failures, self._probing = 0, None
