"""Sessions in the hands of the account whose log-ins they are: see them, end them."""

from __future__ import annotations

from .feed import Feed
from .grants import Session
from .ports import GrantStore, SessionStore
from .values import Act, EndReason


class SessionKeeper:
    """Shows and ends sessions of one account. *account_id* is the caller's own; sessions of others are not found."""

    def __init__(self, sessions: SessionStore, grants: GrantStore, feed: Feed) -> None:
        self._sessions = sessions
        self._grants = grants
        self._feed = feed

    async def get(self, account_id: str, session_id: str) -> Session:
        """A live session. Raises GrantNotFound."""
        return await self._sessions.get(account_id, session_id)

    async def list_page(self, account_id: str, before: tuple[int, str] | None, limit: int) -> list[Session]:
        """At most *limit* live sessions, the newest first, after the one created at and named by *before*."""
        return await self._sessions.list_page(account_id, before, limit)

    async def end(self, account_id: str, session_id: str, act: Act) -> None:
        """End one session with everything that hangs off it. Raises GrantNotFound, also if it has ended before."""
        ended = await self._grants.end_session(account_id, session_id, EndReason.LOGGED_OUT, act)
        await self._feed.published(ended.version)

    async def end_all(self, account_id: str, act: Act) -> int:
        """End every session of the account; -> how many."""
        ended = await self._grants.end_sessions(account_id, EndReason.LOGGED_OUT, act)
        await self._feed.published(ended.version)
        return ended.grant_count
