"""Ending many sessions in one call: after a breach, of a network, of an account."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from .accounts import normalise_ref
from .feed import Feed
from .grants import Place, SessionFilter, SessionPart
from .ports import AccountStore, SessionSelection
from .values import AccountRef, Act

PART_SESSIONS = 1_000
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
        which = await self._resolved(which)
        return sum([await self._sessions.count(which, part) async for part in self._parts(which)])

    async def end(self, which: SessionFilter, note: str, act: Act) -> int:
        """End them; -> how many. Where it is cut short a part has ended, and a repeat ends the rest.

        The caller is confirmed in each part, until one ends the session that the caller acts with.
        Raises InvalidRequest, AccountNotFound.
        """
        which = await self._resolved(which)
        audited = f"{which}: {note}" if note else str(which)
        count, version, must_confirm = 0, None, True
        async for part in self._parts(which):
            ended = await self._sessions.end(which, part, audited, act, confirm=must_confirm)
            count, version = count + ended.grant_count, ended.version or version
            must_confirm = must_confirm and not ended.is_caller_among
        await self._feed.published(version)
        return count

    async def _parts(self, which: SessionFilter) -> AsyncIterator[SessionPart]:
        place: Place | None = None
        while True:
            part = await self._sessions.next_part(which, place, PART_SESSIONS)
            yield part
            if part.through is None:
                return
            place = part.through

    async def _resolved(self, which: SessionFilter) -> SessionFilter:
        """The filter with its account, if it has one, by id."""
        if which.account is None:
            return which
        account = await self._accounts.get(normalise_ref(which.account))
        return replace(which, account=AccountRef(account_id=account.account_id))
