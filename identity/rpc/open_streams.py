"""How many calls that stay open are served at once: in all, of one caller, and on one connection.

Callers with a token are told apart by the grant behind it, others by the address they come from. A call beyond a limit
is refused before its request is read; those with a single answer are not counted, and so never wait for these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import grpc

from identity_client.errors import Overloaded
from identity_client.principal import find_principal

from .context import origin

WATCH_TRUST = "/identity.v1.TrustService/WatchTrust"
RETRY_SECONDS = 5.0

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class StreamLimit(NamedTuple):
    """The most open calls of a method: in all, of one caller, and on one connection of callers without a token."""

    total: int
    caller: int
    connection: int


_LIMITS = {
    "/identity.v1.AuditService/WatchAuditEvents": StreamLimit(64, 16, 16),
    "/grpc.health.v1.Health/Watch": StreamLimit(2_048, 256, 8),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": StreamLimit(64, 16, 4),
}
_OTHERS = StreamLimit(256, 32, 8)


class OpenStreams:
    """Counts them. *trust* is the limit of WatchTrust."""

    def __init__(self, trust: StreamLimit) -> None:
        self._limits: Mapping[str, StreamLimit] = {**_LIMITS, WATCH_TRUST: trust}
        self._open: Counter[tuple[str, str]] = Counter()

    def count(self, method: str) -> int:
        """How many calls of *method* are open."""
        return self._open[method, ""]

    @contextmanager
    def counted(self, method: str, context: _Context) -> Iterator[None]:
        """Around a call. To be entered behind the guard. Raises Overloaded."""
        places = self._places(method, context)
        for place, limit, whose in places:
            if self._open[place] >= limit:
                raise Overloaded(f"{whose} {limit} calls of this method open: end some, or wait.", RETRY_SECONDS)
        keys = [place for place, _, _ in places]
        self._open.update(keys)
        try:
            yield
        finally:
            for key in keys:
                self._open[key] -= 1
                if not self._open[key]:
                    del self._open[key]

    def _places(self, method: str, context: _Context) -> list[tuple[tuple[str, str], int, str]]:
        limit, principal = self._limits.get(method, _OTHERS), find_principal()
        places = [((method, ""), limit.total, "The service has")]
        if principal is not None:
            return [*places, ((method, f"grant {principal.grant_id}"), limit.caller, "Your credential has")]
        place = origin(context)
        places.append(((method, f"origin {place}"), limit.caller, "Your address has"))
        if context.peer() != f"{place}:":  # on a Unix socket connections cannot be told apart
            places.append(((method, context.peer()), limit.connection, "Your connection has"))
        return places
