"""Renewing a session's tokens: rotate, repeat, or end (RFC 9700 section 4.14.2).

The rotation count decides. The newest token rotates; the one before it, within the grace, gets the same successor again
because its answer was lost; any older one was stolen or copied, and the session ends before the caller hears of it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from identity import failpoints
from identity_client.clock import Clock
from identity_client.errors import (
    IdentityError,
    RefreshInvalid,
    RefreshReused,
    RetryLater,
    SessionEnded,
    SessionExpired,
    StateConflict,
    StoreSetBack,
    TokenMalformed,
)

from .feed import Feed
from .grants import GrantSnapshot, SessionRecord
from .minting import Issued, Minter
from .ports import GrantStore, SessionStore
from .refresh_tokens import RefreshTokens, parse_refresh
from .refusals import RefusalLog
from .values import Act, EndReason

_log = logging.getLogger(__name__)

_ATTEMPTS = 8
"""A decision is made again when another use moved the session meanwhile; counts only grow, so few rounds suffice."""


@dataclass(frozen=True, slots=True)
class Rotate:
    """Hand out the successor."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """Hand out the newest token once more."""


@dataclass(frozen=True, slots=True)
class End:
    """End the session, then refuse."""

    error: IdentityError


@dataclass(frozen=True, slots=True)
class Refuse:
    """Refuse and write nothing."""

    error: IdentityError


def decide(held: SessionRecord, presented_count: int, now: float) -> Rotate | Repeat | End | Refuse:
    """What becomes of a genuine refresh token. Pure."""
    if held.end_time is not None:
        return Refuse(SessionEnded())
    if now >= held.expire_time:
        return Refuse(SessionExpired())
    if presented_count == held.count:
        return Rotate()
    if presented_count == held.count - 1 and now < held.grace_until:
        return Repeat()  # the answer was lost: the same, still unused successor
    if presented_count < held.count:
        return End(RefreshReused())
    return Refuse(StoreSetBack())  # a count from the future: the database was restored from a backup


class Refresher:
    """Applies the decision in one conditional statement, commits, and only then answers."""

    def __init__(
        self,
        sessions: SessionStore,
        grants: GrantStore,
        feed: Feed,
        minter: Minter,
        refresh_tokens: RefreshTokens,
        grace: int,
        clock: Clock,
        refusals: RefusalLog,
    ) -> None:
        self._sessions = sessions
        self._grants = grants
        self._feed = feed
        self._minter = minter
        self._admit = minter.check_budget
        self._refresh_tokens = refresh_tokens
        self._grace = grace
        self._clock = clock
        self._refusals = refusals

    async def refresh(self, raw_token: str, act: Act) -> Issued:
        """Renew. Raises RefreshInvalid, RefreshReused, SessionEnded, SessionExpired, StoreSetBack, TokenTooLarge."""
        try:
            presented = parse_refresh(raw_token)
        except TokenMalformed:
            raise RefreshInvalid() from None
        for _ in range(_ATTEMPTS):
            held = await self._sessions.find(presented.grant_id)
            if held is None or not self._refresh_tokens.is_genuine(presented, held):
                raise RefreshInvalid()  # a guess: nothing is written, nobody's session ends
            issued = await self._decided(held, presented.count, act)
            if issued is not None:
                return issued
        raise StateConflict()

    async def _decided(self, held: SessionRecord, count: int, act: Act) -> Issued | None:
        try:
            return await self._apply(decide(held, count, self._clock.now()), held, act)
        except RetryLater:
            raise
        except IdentityError as error:
            raise await self._refusals.noted(error, "session.refresh", held.grant_id, act, held.account_id) from None

    async def _apply(self, decision: Rotate | Repeat | End | Refuse, held: SessionRecord, act: Act) -> Issued | None:
        match decision:
            case Rotate():
                await failpoints.reach("refresh.before_write")
                rotated = await self._sessions.rotate(held, self._grace, self._minter.lifetime, self._admit, act)
                return None if rotated is None else self._issue(rotated, held, held.count + 1)
            case Repeat():
                repeated = await self._sessions.repeat(held, self._minter.lifetime, self._admit, act)
                return None if repeated is None else self._issue(repeated, held, held.count)
            case End(error):
                ended = await self._grants.end(held.grant_id, EndReason.REFRESH_REUSED, "", act)
                await self._feed.published(ended.version)
                raise error
            case Refuse(error):
                if isinstance(error, StoreSetBack):
                    _log.error("a refresh token is newer than its session")
                    await self._feed.set_back()
                raise error

    def _issue(self, snapshot: GrantSnapshot, held: SessionRecord, count: int) -> Issued:
        text = self._refresh_tokens.text(held.grant_id, count, held.salt)
        return self._minter.issue(snapshot, text)
