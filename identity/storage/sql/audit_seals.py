"""SqlAuditSealStore: seals over ranges of the audit log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from identity import failpoints
from identity.domain.audit_seals import Seal, SealedRow, SealHead
from identity.storage.access import Access
from identity.storage.sql.common import Moment, is_postgres
from identity.storage.tables import audit_events, audit_head, audit_personal, audit_seals

_SEALED = [
    audit_events.c[name]
    for name in (
        "event_id",
        "time_ms",
        "action",
        "outcome",
        "account_id",
        "grant_id",
        "caller_account_id",
        "caller_grant_id",
        "subject",
        "request_id",
        "personal_hash",
    )
]
"""What is sealed of an event, in this order for ever: every digest was made so."""

_LOCK_MS = 250


class SqlAuditSealStore:
    """See domain.ports.AuditSealStore."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def find_end(self) -> tuple[SealHead | None, Seal | None]:
        return await self._access.read(lambda connection, _: (find_head(connection), find_newest_seal(connection)))

    async def rows_after(self, event_id: int, limit: int) -> list[SealedRow]:
        def work(connection: Connection, _: Moment) -> list[SealedRow]:
            _await_writers(connection)
            after = select(*_SEALED).where(audit_events.c.event_id > event_id)
            rows = connection.execute(after.order_by(audit_events.c.event_id).limit(limit))
            return [tuple(row) for row in rows]

        return await self._access.write(work)

    async def add(self, seal: Seal, head: SealHead | None, new_head: SealHead) -> bool:
        def work(connection: Connection, _: Moment) -> bool:
            try:
                with connection.begin_nested():
                    is_added = _move_head(connection, head, new_head)
                    if is_added:
                        connection.execute(insert(audit_seals).values(**asdict(seal)))
            except IntegrityError:
                return False
            failpoints.hit("seal.before_commit")
            return is_added

        return await self._access.write(work)

    async def sealed_before(self, removed_through: int, time_ms: int, event_limit: int) -> Seal | None:
        def work(connection: Connection, _: Moment) -> Seal | None:
            found, count = None, 0
            for seal in seals_after(connection, removed_through):
                count += seal.event_count
                if seal.time_ms >= time_ms or (found is not None and count > event_limit):
                    break
                found = seal
            return found

        return await self._access.read(work)

    async def remove_events(self, head: SealHead, new_head: SealHead, last: Seal) -> None:
        def work(connection: Connection, _: Moment) -> None:
            if _move_head(connection, head, new_head):
                for table in (audit_personal, audit_events):
                    connection.execute(delete(table).where(table.c.event_id <= last.last_event_id))

        await self._access.write(work)


def _await_writers(connection: Connection) -> None:
    """Let the events that have a number be committed, or not, before they are read; new ones wait meanwhile.

    PostgreSQL alone: there an event can have a lower number than another that is committed already. Those who write
    are soon done, or else this gives up (DependencyDown), and the next round of the sealer tries again.
    """
    if is_postgres(connection):
        connection.execute(text(f"SET LOCAL lock_timeout = {_LOCK_MS}"))
        connection.execute(text("LOCK TABLE audit_events IN SHARE MODE"))


def find_head(connection: Connection) -> SealHead | None:
    """Where the chain ends."""
    row = connection.execute(select(audit_head)).mappings().first()
    return None if row is None else SealHead(row["seal_number"], row["removed_through"], row["mac"])


def find_newest_seal(connection: Connection) -> Seal | None:
    """The seal with the greatest number."""
    newest = select(audit_seals).order_by(audit_seals.c.seal_number.desc()).limit(1)
    row = connection.execute(newest).mappings().first()
    return None if row is None else _seal(row)


def seals_after(connection: Connection, seal_number: int) -> Iterator[Seal]:
    """In the order of their numbers."""
    after = select(audit_seals).where(audit_seals.c.seal_number > seal_number).order_by(audit_seals.c.seal_number)
    return map(_seal, connection.execute(after).mappings())


def rows_between(connection: Connection, first_event_id: int, last_event_id: int) -> Iterator[SealedRow]:
    """The rows of a range, both ends included, as they are sealed."""
    within = audit_events.c.event_id.between(first_event_id, last_event_id)
    return map(tuple, connection.execute(select(*_SEALED).where(within).order_by(audit_events.c.event_id)))


def count_between(connection: Connection, first_event_id: int, last_event_id: int) -> int:
    """How many rows a range has."""
    within = audit_events.c.event_id.between(first_event_id, last_event_id)
    count: int = connection.execute(select(func.count()).select_from(audit_events).where(within)).scalar_one()
    return count


def _move_head(connection: Connection, head: SealHead | None, new_head: SealHead) -> bool:
    """Whether *head* still was the head. Raises IntegrityError: another's first was faster."""
    if head is None:
        connection.execute(insert(audit_head).values(id=1, **asdict(new_head)))
        return True
    is_it = (audit_head.c.seal_number == head.seal_number) & (audit_head.c.removed_through == head.removed_through)
    return connection.execute(update(audit_head).where(is_it).values(**asdict(new_head))).rowcount == 1


def _seal(row: RowMapping) -> Seal:
    return Seal(**row)
