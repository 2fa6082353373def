"""SqlAuditStore: rows of refused attempts. Rows of acts are written in the acts' own transactions."""

from __future__ import annotations

from sqlalchemy import Connection
from sqlalchemy.dialects.sqlite import insert

from identity.domain.values import Act
from identity.storage.access import Access
from identity.storage.sql.common import Moment, audit_row
from identity.storage.tables import audit_events


class SqlAuditStore:
    """See domain.ports.AuditStore."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def note_refusal(self, action: str, reason: str, name_digest: str, act: Act) -> None:
        def work(connection: Connection, moment: Moment) -> None:
            key = f"{action} {reason} {name_digest} {act.origin} {moment.now // 60}"
            row = audit_row(act, moment, action, reason, note=f"name {name_digest[:16]}")
            connection.execute(insert(audit_events).values(refusal_key=key, **row).on_conflict_do_nothing())

        await self._access.write(work)
