"""Keeps long response streams honest: one ends when the token behind it expires, is revoked or is outdated, or when
the copy of the revocations has become too old to tell."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from identity_client.errors import IdentityError
from identity_client.principal import Principal


@dataclass(slots=True, eq=False)
class OpenStream:
    """A response stream in flight.

    *is_sending* is set while a generator has handed a response to grpc: its task is then not in the handler's code,
    and must not be cancelled, or the status would be lost. *error* says why the stream is to end.
    """

    task: asyncio.Task[object] | None
    is_sending: bool = False
    error: IdentityError | None = None


class OpenStreams:
    """All response streams of one guard. Every *interval_seconds* each is judged again, at about a microsecond apiece.

    *recheck* raises the IdentityError that ends a stream. The handler is then cancelled, once, at the await where it
    stands, so that its own clean-up runs.
    """

    def __init__(self, recheck: Callable[[Principal], None], interval_seconds: float = 0.1) -> None:
        self._recheck = recheck
        self._interval_seconds = interval_seconds
        self._streams: dict[OpenStream, Principal] = {}
        self._sweeper: asyncio.Task[None] | None = None

    @contextmanager
    def watch(self, principal: Principal | None) -> Iterator[OpenStream]:
        """Watches the current task's stream; swallows the cancellation that ended it, and that one alone.
        Without a principal (a public method) nothing can end it."""
        stream = OpenStream(asyncio.current_task())
        if principal is not None:
            self._add(stream, principal)
        try:
            yield stream
        except asyncio.CancelledError:
            if stream.error is None or stream.task is None:
                raise  # cancelled by the caller or the server
            stream.task.uncancel()
        finally:
            self._remove(stream)

    def _add(self, stream: OpenStream, principal: Principal) -> None:
        self._streams[stream] = principal
        if self._sweeper is None:
            # In an empty context: the sweeper must not keep the first caller's principal.
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep(), context=contextvars.Context())

    def _remove(self, stream: OpenStream) -> None:
        self._streams.pop(stream, None)  # one that was ended is gone already
        if not self._streams and self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._interval_seconds)
            for stream, principal in tuple(self._streams.items()):
                self._judge(stream, principal)

    def _judge(self, stream: OpenStream, principal: Principal) -> None:
        try:
            self._recheck(principal)
        except IdentityError as error:
            stream.error = error
            del self._streams[stream]
            if stream.task is not None and not stream.is_sending:
                stream.task.cancel()
