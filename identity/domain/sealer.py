"""Seals the audit log as it grows, and removes what is too old to be kept, whole sealed ranges only."""

from __future__ import annotations

import logging

from identity_client.clock import Clock

from .audit_seals import Seal, SealHead, SealKey
from .ports import AuditSealStore

_log = logging.getLogger(__name__)

SEAL_EVENTS = 1_000
"""The most events under one seal: how exactly a broken range is named, and how much is read at once."""

REMOVED_EVENTS = 5_000
"""About how many events one run removes: seven million a day, and little while a clock is leaping ahead."""

_DAY_SECONDS = 86_400


class Sealer:
    """Makes the chain longer. Several may run: a range is sealed once."""

    def __init__(self, store: AuditSealStore, key: SealKey, retention_days: int, clock: Clock) -> None:
        """*retention_days*: for how long events are kept, 0 for ever."""
        self._store = store
        self._key = key
        self._retention_days = retention_days
        self._clock = clock

    async def seal(self) -> None:
        """Seal every event that is not. Raises ChainBroken: what is there was tampered with, and is left as it is."""
        while await self._seal_some() == SEAL_EVENTS:
            pass  # more is waiting

    async def remove_old(self) -> None:
        """Remove events whose seal is older than the retention; the seal stays. Raises ChainBroken."""
        if self._retention_days == 0:
            return
        head, newest = await self._checked_end()
        if head is None or newest is None:
            return
        old = await self._store.sealed_before(head.removed_through, self._cutoff_ms(), REMOVED_EVENTS)
        if old is not None:
            await self._store.remove_events(head, self._key.head(head.seal_number, old.seal_number), old)
            _log.info("audit events to %d were removed: older than %d days", old.last_event_id, self._retention_days)

    async def _seal_some(self) -> int:
        head, newest = await self._checked_end()
        rows = await self._store.rows_after(newest.last_event_id if newest else 0, SEAL_EVENTS)
        if not rows:
            return 0
        if head is None:
            _log.info("the audit log has no seals yet: the chain begins, as it does once in a database's life")
        seal = self._key.seal(newest, int(str(rows[-1][0])), rows, int(self._clock.now() * 1000))
        new_head = self._key.head(seal.seal_number, head.removed_through if head else 0)
        was_first = await self._store.add(seal, head, new_head)
        return len(rows) if was_first else SEAL_EVENTS  # another was faster: look again

    async def _checked_end(self) -> tuple[SealHead | None, Seal | None]:
        head, newest = await self._store.find_end()
        self._key.check_end(head, newest)
        return head, newest

    def _cutoff_ms(self) -> int:
        return int((self._clock.now() - self._retention_days * _DAY_SECONDS) * 1000)
