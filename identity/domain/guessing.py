"""Guessing is slowed down, and nobody is locked out for good.

Log-ins by password are counted per name, per origin, and per place (a name at an origin where its owner logged in
lately: guesses from elsewhere do not reach it). An attempt is counted as a failure before anything is looked up or
hashed, and uncounted when the password was right. So the answer to a guess depends on the name as typed and the origin
alone, and no number of parallel guesses gets past a limit.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from .origins import LOCAL, Network, is_within, unit_of
from .ports import ThrottleStore
from .throttle import Attempt, Counter, Limit, Reservation

_KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """For names (and places), for origins, and for origins that many people share."""

    name: Limit
    origin: Limit
    shared_origin: Limit
    shared_origins: tuple[Network, ...]

    def of(self, origin: str) -> Limit:
        """The limit of this origin; who is on the machine itself shares it."""
        is_shared = unit_of(origin) == LOCAL or is_within(origin, self.shared_origins)
        return self.shared_origin if is_shared else self.origin


class Throttle:
    """Counts log-ins by password, under keyed hashes: a name that was typed may be a password."""

    def __init__(self, store: ThrottleStore, key: bytes, limits: Limits) -> None:
        self._store = store
        self._key = key
        self._limits = limits

    async def reserve(self, normalised_username: str, origin: str) -> Reservation:
        """Count an attempt as a failure, before anything is known of the account. Raises Throttled: not counted."""
        limits, unit = self._limits, unit_of(origin)
        attempt = Attempt(
            name=Counter(self._digest(b"n", normalised_username), limits.name),
            origin=Counter(self._digest(b"o", unit), limits.of(origin)),
            place=Counter(self._digest(b"p", normalised_username, unit), limits.name),
        )
        return await self._store.reserve(attempt)

    async def succeeded(self, reservation: Reservation) -> None:
        """Uncount an attempt whose password was right; from now on its place has a bucket of its own."""
        await self._store.succeeded(reservation)

    def _digest(self, kind: bytes, *parts: str) -> bytes:
        message = kind + "\0".join(parts).encode("utf-8", "surrogatepass")
        return kind + hmac.digest(self._key, message, hashlib.sha256)[:_KEY_BYTES]
