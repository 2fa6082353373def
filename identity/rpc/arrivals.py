"""Requests on their way: a call whose request does not come is given up.

Whoever sends a call's headers and no more would otherwise keep it, at some 20 KB, until the connection has aged out.
So every handler is registered as request-streaming, whatever the method's shape: grpc runs such a handler before it
has awaited a byte, and the handler then reads with a limit of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc

from identity_client.errors import DeadlineExceeded, MalformedRequest

from .time_limits import TimeLimit

LONGEST_SECONDS = 10.0
"""How long a call's first request may be on its way."""

MAXIMUM_WAITING = 1_024
"""So many calls may wait for their requests; of more, those give way that have waited longest."""

SHORTEST_SECONDS = 1.0
"""So long each may wait, however many there are: in a burst of honest calls none gives way to another."""

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Arrivals:
    """Reads requests, with a limit on their time and number."""

    def __init__(self) -> None:
        self._limit = TimeLimit(LONGEST_SECONDS)

    @property
    def waiting_count(self) -> int:
        """How many calls wait for their first request now."""
        return len(self._limit)

    async def first(self, context: _Context) -> Any:
        """The call's next request. Raises DeadlineExceeded, MalformedRequest (also if it ends without one)."""
        if len(self._limit) >= MAXIMUM_WAITING:
            self._limit.end_longest(SHORTEST_SECONDS)
        try:
            request = await self._limit.run(context.read())
        except TimeoutError:
            raise DeadlineExceeded("The request did not arrive in time: send it together with the call.") from None
        if request is grpc.aio.EOF:
            raise MalformedRequest()
        return _sound(request)

    async def all(self, context: _Context, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The call's requests, of which the first may not be long in coming. Raises the same."""
        yield await self.first(context)
        async for request in requests:
            yield _sound(request)


def firm(deserialise: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """*deserialise*, which answers a MalformedRequest for bytes that are no message: grpc itself would send the text
    of the exception to the caller."""
    if deserialise is None:
        return None

    def parse(raw: bytes) -> Any:
        try:
            return deserialise(raw)
        except Exception:  # protobuf raises more than one class; the bytes are at fault in every case
            return MalformedRequest()

    return parse


def _sound(request: Any) -> Any:
    if isinstance(request, MalformedRequest):
        raise request
    return request
