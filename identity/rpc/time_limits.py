"""Limits on the time of whatever runs on the event loop, of many calls at once.

`asyncio.timeout` sets a timer for each call and takes it back: two of them cost a short call a tenth of its time. Here
all that have the same limit share one timer, which is set for the one that began first.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class _Run:
    """Something that runs in *task*, and whether it was ended."""

    __slots__ = ("is_ended", "task")

    def __init__(self, task: asyncio.Task[object]) -> None:
        self.task = task
        self.is_ended = False


class TimeLimit:
    """Lets nothing run for longer than so many seconds. For one event loop."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running: dict[_Run, float] = {}  # since when, the longest first
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many run now."""
        return len(self._running)

    async def run(self, work: Awaitable[T]) -> T:
        """Await *work* in the task that asks. Raises TimeoutError: it took too long, and was cancelled."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None  # noqa: S101 - whatever awaits is run by one
        run, cancelling = _Run(task), task.cancelling()
        self._running[run] = loop.time()
        if self._timer is None:
            self._set_timer(loop.time())
        try:
            return await work
        except asyncio.CancelledError:
            if run.is_ended and task.cancelling() == cancelling + 1:
                raise TimeoutError from None
            raise  # somebody else wants the task to end, too
        finally:
            self._running.pop(run, None)
            if run.is_ended:
                task.uncancel()

    def end_longest(self, least_seconds: float) -> None:
        """End what began first, if it has run for *least_seconds*."""
        run, since = next(iter(self._running.items()))
        if asyncio.get_running_loop().time() - since >= least_seconds:
            self._end(run)

    def _set_timer(self, since: float) -> None:
        # Without the context of the call that happens to set it.
        self._timer = asyncio.get_running_loop().call_at(
            since + self._seconds, self._end_late, context=contextvars.Context()
        )

    def _end_late(self) -> None:
        self._timer, now = None, asyncio.get_running_loop().time()
        for run, since in tuple(self._running.items()):
            if now < since + self._seconds:
                self._set_timer(since)
                return
            self._end(run)

    def _end(self, run: _Run) -> None:
        del self._running[run]
        run.is_ended = True
        run.task.cancel()
