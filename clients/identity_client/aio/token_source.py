"""An access token that is always at hand: obtained by some log-in, renewed ahead of its expiry while calls go on."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from identity_client.clock import Clock, SystemClock
from identity_client.errors import IdentityError, RetryLater

IDENTITY_AUDIENCE = "identity"
_EARLIEST_RENEWAL, _LATEST_RENEWAL = 0.7, 0.8  # shares of the lifetime; the rest is time to get over an outage
_RETRY_SECONDS = 5.0

_log = logging.getLogger(__name__)
_random = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A token and when it expires, in Unix seconds."""

    raw_token: str = field(repr=False)
    expire_time: float

    @property
    def metadata(self) -> tuple[tuple[str, str]]:
        """The entry that authenticates a call (RFC 6750 section 2.1)."""
        return (("authorization", f"Bearer {self.raw_token}"),)


Obtain = Callable[[], Awaitable[AccessToken]]
"""One log-in, exchange or refresh. Raises IdentityError."""


class TokenSource:
    """Hands out one access token to any number of callers. Lives on one event loop.

    From 70-80 % of its lifetime on (a share drawn for each token, so that a fleet does not renew in step) a token is
    renewed in the background, and handed out meanwhile: nobody waits. While the service is down it goes on being handed
    out until it expires. There is one renewal in flight at a time; RetryInfo says when the next may be. *name* is for
    the log.
    """

    def __init__(self, obtain: Obtain, *, name: str = "the caller", clock: Clock | None = None) -> None:
        self._obtain = obtain
        self._name = name
        self._clock = clock or SystemClock()
        self._held: AccessToken | None = None
        self._renew_time = 0.0
        self._renewal: asyncio.Task[AccessToken] | None = None

    @property
    def held(self) -> AccessToken | None:
        """The token in hand, if it is good and needs no renewal. May be read from any thread."""
        held = self._held
        return held if held is not None and self._clock.now() < min(self._renew_time, held.expire_time) else None

    async def get(self) -> AccessToken:
        """A token that has not expired. Raises IdentityError if there is none and none can be had."""
        now, held = self._clock.now(), self._held
        if held is None or now >= held.expire_time:
            return await asyncio.shield(self._renewed())  # one caller who leaves must not fail the others
        if now >= self._renew_time:
            self._renewed()
        return held

    async def fresh(self) -> AccessToken:
        """A token that need not be renewed soon, for what outlives a call; the one in hand where there is no other.
        Raises IdentityError if there is none."""
        if self.held is not None:
            return self.held
        try:
            return await asyncio.shield(self._renewed())
        except IdentityError:
            if self._held is None or self._clock.now() >= self._held.expire_time:
                raise
            return self._held

    def discard(self, token: AccessToken) -> None:
        """Forget a token that was refused; the next call waits for another. One that was replaced already stays."""
        if self._held is token:
            self._held = None

    def is_due(self, token: AccessToken) -> bool:
        """Whether *token* is no longer the one to use."""
        return token is not self._held or self._clock.now() >= self._renew_time

    async def close(self) -> None:
        """End the renewal in flight."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)

    def _renewed(self) -> asyncio.Task[AccessToken]:
        if self._renewal is None or self._renewal.done():
            # In an empty context: it must not keep the principal of whoever happened to call first.
            task = asyncio.get_running_loop().create_task(self._renew(), context=contextvars.Context())
            task.add_done_callback(_note_outcome)
            self._renewal = task
        return self._renewal

    async def _renew(self) -> AccessToken:
        started = self._clock.now()
        try:
            token = await self._obtain()
        except IdentityError as error:
            wait = error.retry_after_seconds if isinstance(error, RetryLater) else _RETRY_SECONDS
            self._renew_time = self._clock.now() + max(wait, _random.uniform(0.5, 1.0))
            _log.warning("the access token of %s could not be renewed: %s", self._name, error.reason)
            raise
        share = _random.uniform(_EARLIEST_RENEWAL, _LATEST_RENEWAL)
        self._held, self._renew_time = token, started + share * (token.expire_time - started)
        return token


def _note_outcome(task: asyncio.Task[AccessToken]) -> None:
    """A failed renewal that nobody waits for was logged already."""
    if not task.cancelled():
        task.exception()
