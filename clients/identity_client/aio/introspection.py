"""What opaque bearers are worth: asked of the identity service, shared by all who ask at once, remembered briefly."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from identity_client.clock import Clock
from identity_client.errors import Overloaded, TokenOutdated, TokenRevoked
from identity_client.tokens.claims import Claims
from identity_client.trust.state import TrustState

ACTIVE_SECONDS = 10.0
INACTIVE_SECONDS = 1.0
MAXIMUM_ANSWERS = 10_000
MAXIMUM_FLIGHTS = 256

Look = Callable[[str], Awaitable[Claims | None]]
"""Asks the service about one text; None: it is not active for us. Raises DependencyDown."""


@dataclass(frozen=True, slots=True)
class _Answer:
    claims: Claims | None
    asked_at: float  # monotonic; an answer is as old as its question
    good_until: float


class Introspections:
    """Introspection with a memory of at most MAXIMUM_ANSWERS active and as many inactive texts, by their SHA-256.

    An active answer is good for ACTIVE_SECONDS, never beyond its own expiry, and not once the trust state has overtaken
    it: a revoked grant is refused at once, a changed account is looked up again. An inactive one is good for
    INACTIVE_SECONDS, so that a flood of one bad text is cheap. Callers of one text share one look-up, and a caller who
    leaves does not end it for the others; at most MAXIMUM_FLIGHTS run at once.
    """

    def __init__(self, look: Look, *, trust: TrustState, clock: Clock) -> None:
        self._look = look
        self._trust = trust
        self._clock = clock
        self._active: dict[bytes, _Answer] = {}
        self._inactive: dict[bytes, _Answer] = {}  # apart: bad texts must not drive out good ones
        self._flights: dict[bytes, asyncio.Task[Claims | None]] = {}
        self._flight_count = 0

    async def introspect(self, raw_token: str, is_anew: bool) -> Claims:
        """What *raw_token* stands for. Raises: TokenRevoked (not active here), DependencyDown (no answer),
        Overloaded."""
        if is_anew:
            # Not even with a look-up under way: it may have read the database before this call was made.
            return _active(await self._asked(raw_token, _name(raw_token)))
        held = self.find(raw_token)
        if held is not None:
            return held
        name = _name(raw_token)
        flight = self._flights.get(name)
        if flight is None:
            # In an empty context: the task must not keep the principal of the caller who began it.
            coroutine = self._asked(raw_token, name)
            flight = asyncio.get_running_loop().create_task(coroutine, context=contextvars.Context())
            self._flights[name] = flight
            flight.add_done_callback(lambda done: self._landed(name, done))
        return _active(await asyncio.shield(flight))

    def find(self, raw_token: str) -> Claims | None:
        """What is remembered of *raw_token*; None: it must be asked about. From any thread. Raises TokenRevoked."""
        name = _name(raw_token)
        answer = self._active.get(name) or self._inactive.get(name)
        if answer is None or self._clock.monotonic() >= answer.good_until:
            return None
        claims = _active(answer.claims)
        if self._clock.now() >= claims.expire_time:
            return None
        try:
            self._trust.check(claims)
        except TokenOutdated:
            return None  # roles and scopes are read live: ask again
        return claims

    async def close(self) -> None:
        """Ends the look-ups under way."""
        flights = tuple(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    async def _asked(self, raw_token: str, name: bytes) -> Claims | None:
        if self._flight_count >= MAXIMUM_FLIGHTS:
            raise Overloaded("Too many session tokens and API keys are being looked up: repeat the call later.")
        asked_at = self._clock.monotonic()
        self._flight_count += 1
        try:
            claims = await self._look(raw_token)
        finally:
            self._flight_count -= 1
        self._remember(name, claims, asked_at)
        return claims

    def _remember(self, name: bytes, claims: Claims | None, asked_at: float) -> None:
        held = self._active.get(name) or self._inactive.get(name)
        if held is not None and held.asked_at > asked_at:
            return  # the younger question has the truer answer
        self._active.pop(name, None)
        self._inactive.pop(name, None)
        answers, seconds = (self._inactive, INACTIVE_SECONDS) if claims is None else (self._active, ACTIVE_SECONDS)
        answers[name] = _Answer(claims, asked_at, asked_at + seconds)
        if len(answers) > MAXIMUM_ANSWERS:
            del answers[next(iter(answers))]

    def _landed(self, name: bytes, flight: asyncio.Task[Claims | None]) -> None:
        del self._flights[name]
        if not flight.cancelled():
            flight.exception()  # seen, even if every caller has left


def _active(claims: Claims | None) -> Claims:
    if claims is None:
        raise TokenRevoked("The session or API key is not active for this service: log in again.")
    return claims


def _name(raw_token: str) -> bytes:
    return hashlib.sha256(raw_token.encode("utf-8", "surrogatepass")).digest()
