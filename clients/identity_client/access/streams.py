"""Keeps long calls honest: one ends when the token behind it expires, is revoked or is outdated, or when the copy of
the revocations has become too old to tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from identity_client.errors import IdentityError
from identity_client.principal import Principal

INTERVAL_SECONDS = 0.1
"""How often running calls are judged again."""


class OpenStream:
    """A call in flight that is longer than one message each way, with grpc's *context* of it. *error* says why it is to
    end."""

    __slots__ = ("context", "error", "method", "principal")

    def __init__(self, method: str, principal: Principal, context: Any) -> None:
        self.method = method
        self.principal = principal
        self.context = context
        self.error: IdentityError | None = None

    def interrupt(self) -> None:
        """Have the handler, or whoever waits for it, look at *error* now. For subclasses."""


class Watch:
    """The running calls of one guard.

    *recheck* raises the IdentityError that ends a call; *is_ended* is told of it and answers whether it is carried out.
    Adding and removing is safe from any thread; one at a time may sweep.
    """

    def __init__(
        self,
        recheck: Callable[[str, Principal], None],
        is_ended: Callable[[OpenStream, IdentityError], bool],
    ) -> None:
        self._recheck = recheck
        self._is_ended = is_ended
        self._streams: dict[OpenStream, None] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, stream: OpenStream) -> None:
        """Judge *stream* with every sweep."""
        self._streams[stream] = None

    def remove(self, stream: OpenStream) -> None:
        """It has ended."""
        self._streams.pop(stream, None)  # one that was ended is gone already

    def sweep(self) -> None:
        """Judge each again, at about a microsecond apiece; those that no longer hold are ended, once."""
        for stream in tuple(self._streams):
            try:
                self._recheck(stream.method, stream.principal)
            except IdentityError as error:
                self.remove(stream)
                error.account_id, error.grant_id = stream.principal.account_id, stream.principal.grant_id
                if self._is_ended(stream, error):
                    stream.error = error
                    stream.interrupt()
