"""Long calls of asynchronous handlers: a handler is cancelled, once, at the await where it stands, so that its own
clean-up runs."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from identity_client.access.streams import INTERVAL_SECONDS, OpenStream, Watch
from identity_client.principal import Principal


class TaskStream(OpenStream):
    """A call that the current task runs.

    *is_sending* is set while a generator has handed a response to grpc: its task is then not in the handler's code,
    and must not be cancelled, or the status would be lost.
    """

    __slots__ = ("is_sending", "task")

    def __init__(self, method: str, principal: Principal, context: Any) -> None:
        super().__init__(method, principal, context)
        self.task = asyncio.current_task()
        self.is_sending = False

    def interrupt(self) -> None:
        if self.task is not None and not self.is_sending:
            self.task.cancel()


class Sweeper:
    """Sweeps a Watch from a task of the loop that it was made in, which ends when no call is left."""

    def __init__(self, watch: Watch, loop: asyncio.AbstractEventLoop) -> None:
        self._watch = watch
        self._loop = loop
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """To be called in the loop whenever a call was added."""
        if self._task is None:
            # In an empty context: the sweeper must not keep the first caller's principal.
            self._task = self._loop.create_task(self._run(), context=contextvars.Context())

    def wake_from_thread(self) -> None:
        """The same from any thread."""
        self._loop.call_soon_threadsafe(self.wake)

    @contextmanager
    def watching(self, stream: TaskStream) -> Iterator[TaskStream]:
        """Watches the current task's call; swallows the cancellation that ended it, and that one alone."""
        self._watch.add(stream)
        self.wake()
        try:
            yield stream
        except asyncio.CancelledError:
            if stream.error is None or stream.task is None:
                raise  # cancelled by the caller or the server
            stream.task.uncancel()
        finally:
            self._watch.remove(stream)

    async def _run(self) -> None:
        while len(self._watch):
            await asyncio.sleep(INTERVAL_SECONDS)
            self._watch.sweep()
        self._task = None
