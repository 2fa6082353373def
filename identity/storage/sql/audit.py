"""SqlAuditStore: rows of refused attempts. Rows of acts are written in the acts' own transactions."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection
from sqlalchemy.dialects.sqlite import insert

from identity.domain.values import Act
from identity.storage.access import Access
from identity.storage.sql.common import Moment, audit_row
from identity.storage.tables import audit_events
from identity_client.clock import Clock

NAMES_A_MINUTE = 200
"""Refusals that get a row of their own in one minute. Beyond it, those of one reason share one row: an attacker who
invents names must neither fill the disk nor keep the writer busy."""


class SqlAuditStore:
    """See domain.ports.AuditStore."""

    def __init__(self, access: Access, clock: Clock) -> None:
        self._access = access
        self._clock = clock
        self._minute = 0
        self._noted: set[str] = set()

    async def note_refusal(self, action: str, reason: str, name_digest: str, act: Act) -> None:
        minute = int(self._clock.now()) // 60
        if minute != self._minute:
            self._minute, self._noted = minute, set()
        if len(self._noted) >= NAMES_A_MINUTE:
            name_digest, act = "", replace(act, origin="")
        key = f"{action} {reason} {name_digest} {act.origin} {minute}"
        if key in self._noted:
            return
        self._noted.add(key)

        def work(connection: Connection, moment: Moment) -> None:
            note = f"name {name_digest[:16]}" if name_digest else "many names"
            row = audit_row(act, moment, action, reason, note)
            connection.execute(insert(audit_events).values(refusal_key=key, **row).on_conflict_do_nothing())

        await self._access.write(work)
