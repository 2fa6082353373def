"""One stream's queue: bounded, ordered, and cut rather than buffered without end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from identity_client.errors import DependencyDown

QUEUED_EVENTS = 1_000


class Subscription:
    """Serialised events on their way to one stream; they are shared, so that a queue costs references only."""

    def __init__(self, opening: Iterable[bytes] = ()) -> None:
        self.is_live = False
        """Whether it gets every change and heartbeat; until then it waits for, or is sent, a snapshot."""
        self.is_cut = False
        self._events: asyncio.Queue[bytes] = asyncio.Queue()
        self._limit = QUEUED_EVENTS
        self._taken = asyncio.Event()
        self.extend(opening)

    @property
    def is_idle(self) -> bool:
        """Whether all that was queued has been taken."""
        return self._events.empty()

    def extend(self, events: Iterable[bytes]) -> None:
        """Queue what the stream was opened for, however much it is."""
        if self.is_cut:
            return
        for event in events:
            self._events.put_nowait(event)
        self._limit = self._events.qsize() + QUEUED_EVENTS

    def put(self, event: bytes) -> None:
        """Queue an event, or cut the stream when it is too far behind."""
        if self.is_cut:
            return
        if self._events.qsize() >= self._limit:
            self.cut()
        else:
            self._events.put_nowait(event)

    def cut(self) -> None:
        """End the stream: what waits is dropped, and whoever waits for the next event is told."""
        self.is_cut = True
        self._taken.set()
        while not self._events.empty():
            self._events.get_nowait()
        self._events.put_nowait(b"")

    async def next(self) -> bytes:
        """The next event, in order. Raises DependencyDown once the stream was cut."""
        event = await self._events.get()
        if self.is_cut:
            raise DependencyDown("The service ended this stream: open it again with the version you hold.")
        self._taken.set()
        return event

    async def drained(self, stall_seconds: float) -> None:
        """Return once all that is queued was taken; a stream that takes nothing for so long is cut."""
        while not self.is_cut and not self.is_idle:
            self._taken.clear()
            try:
                async with asyncio.timeout(stall_seconds):
                    await self._taken.wait()
            except TimeoutError:
                self.cut()
