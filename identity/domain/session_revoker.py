"""Ending many sessions in one call: after a breach, of a network, of an account."""

from __future__ import annotations

from dataclasses import replace

from .accounts import normalise_ref
from .feed import Feed
from .grants import Place, SessionFilter
from .ports import AccountStore, SessionSelection
from .values import AccountRef, Act

PART_SESSIONS = 500
"""Sessions ended in one transaction: other writes wait for one such part at most."""


class SessionRevoker:
    """Walks through the sessions that a filter admits, once. Those that are opened meanwhile may stay: whoever opened
    them proved a credential after the call began."""

    def __init__(self, sessions: SessionSelection, accounts: AccountStore, feed: Feed) -> None:
        self._sessions = sessions
        self._accounts = accounts
        self._feed = feed

    async def count(self, which: SessionFilter) -> int:
        """How many sessions `end` would end. Raises InvalidRequest, AccountNotFound."""
        which, count = await self._resolved(which), 0
        place: Place | None = None
        while True:
            part = await self._sessions.select(which, place, PART_SESSIONS)
            count += len(part.grant_ids)
            if part.next_place is None:
                return count
            place = part.next_place

    async def end(self, which: SessionFilter, note: str, act: Act) -> int:
        """End them; -> how many. Where it is cut short a part has ended, and a repeat ends the rest.

        Raises InvalidRequest, AccountNotFound.
        """
        which, count = await self._resolved(which), 0
        place: Place | None = None
        is_first = True
        while True:
            part = await self._sessions.select(which, place, PART_SESSIONS)
            if part.grant_ids or is_first:
                ended = await self._sessions.end(part.grant_ids, _audited(which, note), act, confirm=is_first)
                await self._feed.published(ended.version)
                count += ended.grant_count
            if part.next_place is None:
                return count
            place, is_first = part.next_place, False

    async def _resolved(self, which: SessionFilter) -> SessionFilter:
        """The filter with its account, if it has one, by id."""
        if which.account is None:
            return which
        account = await self._accounts.get(normalise_ref(which.account))
        return replace(which, account=AccountRef(account_id=account.account_id))


def _audited(which: SessionFilter, note: str) -> str:
    return f"{which}: {note}" if note else str(which)
