"""The audit log in the hands of those who may read it: pages of it, and what is added as it comes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

from identity_client.errors import DependencyDown, InvalidRequest, Overloaded

from .accounts import normalise_ref
from .audit_events import AuditFilter, AuditPage
from .ports import AccountStore, AuditStore
from .values import AccountRef

MAXIMUM_WATCHERS = 64
"""The most streams at once: each reads the database by itself."""

POLL_SECONDS = 0.25
IDLE_SECONDS = 10.0
"""After so long without a wanted event a watcher is told how far the log was looked through."""

AT_ONCE = 200
"""The most events in one message: however long their notes, it stays below 1 MiB."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A filter whose accounts may be given by their names."""

    filter: AuditFilter
    account: AccountRef | None = None
    caller: AccountRef | None = None


class AuditReader:
    """Reads the audit log."""

    def __init__(self, audit: AuditStore, accounts: AccountStore) -> None:
        self._audit = audit
        self._accounts = accounts
        self._watchers = 0
        self._is_ending = asyncio.Event()

    async def list_page(self, wanted: Wanted, before: int | None, limit: int) -> AuditPage:
        """At most *limit* events with ids below *before*, the newest first. Raises AccountNotFound."""
        return await self._audit.list_page(await self._resolved(wanted), before, limit)

    async def watch(self, wanted: Wanted, after: int | None) -> AsyncGenerator[AuditPage, None]:
        """Events with ids above *after* (None: from now on), the oldest first, then each as it is committed.

        The first page comes at once, even empty; next_id of each is the *after* to resume with. Nothing waits in
        memory for a slow reader. Raises AccountNotFound, InvalidRequest (*after* lies beyond the end), Overloaded,
        DependencyDown (the service stops).
        """
        if self._watchers >= MAXIMUM_WATCHERS:
            raise Overloaded("Too many streams of the audit log are open: repeat the call later.")
        self._watchers += 1
        try:
            resolved = await self._resolved(wanted)
            newest = await self._audit.newest_id()
            if after is not None and after > newest:
                raise InvalidRequest(
                    f"the log ends at {newest}: it was set back, or the id is another's", "after_event_id"
                )
            async with contextlib.aclosing(self._follow(resolved, newest if after is None else after)) as found:
                async for page in found:
                    yield page
        finally:
            self._watchers -= 1

    def end_streams(self) -> None:
        """End every stream, and refuse new ones: the service is about to stop."""
        self._is_ending.set()

    async def _follow(self, wanted: AuditFilter, after: int) -> AsyncGenerator[AuditPage, None]:
        loop = asyncio.get_running_loop()
        tell_time = loop.time()
        while not self._is_ending.is_set():
            page = await self._audit.read_after(wanted, after, AT_ONCE)
            if page.events or loop.time() >= tell_time:
                yield page
                tell_time = loop.time() + IDLE_SECONDS
            if page.next_id == after:
                await self._pause()
            after = page.next_id or after
        raise DependencyDown("The service is stopping: open the stream again after the last event id.")

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await self._is_ending.wait()

    async def _resolved(self, wanted: Wanted) -> AuditFilter:
        return replace(
            wanted.filter,
            account_id=await self._account_id(wanted.account),
            caller_account_id=await self._account_id(wanted.caller),
        )

    async def _account_id(self, ref: AccountRef | None) -> str:
        """By its id an account is found in the log even when it was deleted."""
        if ref is None:
            return ""
        if ref.account_id is not None:
            return ref.account_id
        return (await self._accounts.get(normalise_ref(ref))).account_id
