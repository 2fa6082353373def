"""SqlAuditStore: rows of refused attempts, and the log as it is read. Rows of acts are written in the acts' own
transactions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, delete, func, or_, select, text, update

from identity.domain.audit_events import OK, REFUSED, AuditEvent, AuditFilter, AuditPage, Personal
from identity.domain.values import Act
from identity.storage.access import Access
from identity.storage.sql.common import Moment, insert_event, is_postgres
from identity.storage.tables import audit_events, audit_personal, audit_seals
from identity_client.clock import Clock
from identity_client.errors import DependencyDown

NAMES_A_MINUTE = 200
"""Refusals, of known callers and of others, that get a row of their own in one minute. Beyond it, those of one reason
share one row: an attacker who invents names must neither fill the disk nor keep the writer busy."""

SCANNED_EVENTS = 50_000
"""The most events that are looked through for one page, about 50 ms: a rare filter must not keep the readers busy."""

_CLOCK_SLACK_MS = 3_600_000
"""Ids grow with time, but for a clock that was set: by how much it may have been wrong when times become ids."""

_EVENTS = select(
    audit_events,
    audit_personal.c.origin,
    audit_personal.c.user_agent,
    audit_personal.c.note,
    audit_personal.c.name_hash,
    audit_personal.c.attempt_count,
).join_from(audit_events, audit_personal, audit_events.c.event_id == audit_personal.c.event_id, isouter=True)


class SqlAuditStore:
    """See domain.ports.AuditStore."""

    def __init__(self, access: Access, clock: Clock) -> None:
        self._access = access
        self._clock = clock
        self._minute = -1
        # Those of known callers apart: whoever invents names must not hide what they try.
        self._noted: dict[bool, Counter[str]] = {}

    async def note_refusal(
        self,
        action: str,
        reason: str,
        name_hash: str,
        act: Act,
        account_id: str | None = None,
        subject: str = "",
    ) -> None:
        minute = int(self._clock.now()) // 60
        if minute != self._minute:
            self._minute, self._noted = minute, {True: Counter(), False: Counter()}
        noted = self._noted[act.caller is not None]
        who = name_hash or f"{account_id or ''} {act.caller.grant_id if act.caller else ''}"
        key, note = f"{action} {reason} {subject} {who} {act.origin} {minute}", ""
        if len(noted) >= NAMES_A_MINUTE and key not in noted:
            act = replace(act, origin="", user_agent="", caller=None)
            name_hash, account_id, subject = "", None, ""
            key, note = f"{action} {reason} many {minute}", "many names"
        noted[key] += 1
        count = noted[key]
        if count & (count - 1):
            return  # written whenever the count has doubled: a flood writes little
        added = count - count // 2
        personal = Personal(act.origin, act.user_agent, note, name_hash)

        def work(connection: Connection, moment: Moment) -> None:
            counted = update(audit_personal).where(audit_personal.c.refusal_key == key)
            counted = counted.values(attempt_count=audit_personal.c.attempt_count + added)
            if connection.execute(counted).rowcount == 0:
                ids: dict[str, str | None] = {"account_id": account_id, "grant_id": None, "subject": subject}
                insert_event(connection, act, moment, action, reason, personal, ids, key, added)

        try:
            await self._access.write(work)
        except DependencyDown:
            noted.pop(key, None)  # the next one shall leave the trace that this one could not
            raise

    async def list_page(self, wanted: AuditFilter, before: int | None, limit: int) -> AuditPage:
        def work(connection: Connection, _: Moment) -> AuditPage:
            low, high = _id_bounds(connection, wanted)
            indexed = [*_indexed(wanted), audit_events.c.event_id >= low, audit_events.c.event_id < high]
            if before is not None:
                indexed.append(audit_events.c.event_id < before)
            newest_first = audit_events.c.event_id.desc()
            stop = _nth_id(connection, indexed, newest_first)
            if stop is not None:
                indexed.append(audit_events.c.event_id > stop)
            events = _read(connection, [*indexed, *_others(wanted)], newest_first, limit + 1)
            if len(events) > limit:
                return AuditPage(events[:limit], events[limit - 1].event_id)
            return AuditPage(events, None if stop is None else stop + 1)

        return await self._access.read(work)

    async def read_after(self, wanted: AuditFilter, after: int, limit: int) -> AuditPage:
        def work(connection: Connection, _: Moment) -> AuditPage:
            settled = settled_id(connection)
            indexed = [*_indexed(wanted), audit_events.c.event_id > after, audit_events.c.event_id <= settled]
            oldest_first = audit_events.c.event_id.asc()
            stop = _nth_id(connection, indexed, oldest_first)
            if stop is not None:
                indexed.append(audit_events.c.event_id < stop)
            events = _read(connection, [*indexed, *_others(wanted)], oldest_first, limit)
            if len(events) == limit:
                return AuditPage(events, events[-1].event_id)
            return AuditPage(events, max(after, settled) if stop is None else stop - 1)

        return await self._access.read(work)

    async def newest_id(self) -> int:
        return await self._access.read(lambda connection, _: settled_id(connection))


def erase_audit(connection: Connection, account_id: str) -> int:
    """Erase what the audit log says of a person: places, programs and notes of all events that they caused or that
    concern them, refused attempts at their name included; -> how many events. The events and their seals stay.

    To be called in the transaction that deletes the account, before that act's own row is written.
    """
    events = select(audit_events.c.event_id).where(
        or_(audit_events.c.account_id == account_id, audit_events.c.caller_account_id == account_id)
    )
    names = select(audit_personal.c.name_hash).where(
        audit_personal.c.event_id.in_(events),
        audit_personal.c.refusal_key.is_not(None),
        audit_personal.c.name_hash != "",
    )
    name_hashes = list(connection.execute(names.distinct()).scalars())
    at_the_name = and_(audit_personal.c.refusal_key.is_not(None), audit_personal.c.name_hash.in_(name_hashes))
    erased = delete(audit_personal).where(or_(audit_personal.c.event_id.in_(events), at_the_name))
    return connection.execute(erased).rowcount


def _read(connection: Connection, conditions: list[ColumnElement[bool]], order: Any, limit: int) -> list[AuditEvent]:
    rows = connection.execute(_EVENTS.where(*conditions).order_by(order).limit(limit)).mappings()
    return [_event(row) for row in rows]


def _indexed(wanted: AuditFilter) -> list[ColumnElement[bool]]:
    """The conditions that an index answers."""
    columns = (
        (audit_events.c.account_id, wanted.account_id),
        (audit_events.c.caller_account_id, wanted.caller_account_id),
    )
    return [column == value for column, value in columns if value]


def _others(wanted: AuditFilter) -> list[ColumnElement[bool]]:
    """The conditions that every event is looked at for."""
    columns = (
        (audit_events.c.grant_id, wanted.grant_id),
        (audit_events.c.request_id, wanted.request_id),
        (audit_personal.c.origin, wanted.origin),
        (func.substr(audit_events.c.action, 1, len(wanted.action_prefix)), wanted.action_prefix),
    )
    found = [column == value for column, value in columns if value]
    if wanted.outcome == REFUSED:
        found.append(audit_events.c.outcome != OK)
    elif wanted.outcome:
        found.append(audit_events.c.outcome == wanted.outcome)
    if wanted.start_ms is not None:
        found.append(audit_events.c.time_ms >= wanted.start_ms)
    if wanted.end_ms is not None:
        found.append(audit_events.c.time_ms < wanted.end_ms)
    return found


def _nth_id(connection: Connection, indexed: list[ColumnElement[bool]], order: Any) -> int | None:
    """The first event that is too many to be looked through for one page."""
    ids = select(audit_events.c.event_id).where(*indexed).order_by(order).offset(SCANNED_EVENTS).limit(1)
    return connection.execute(ids).scalar()


def highest_id(connection: Connection) -> int:
    """The highest event id that was ever given, 0 for none; the event itself may have been removed for its age."""
    return connection.execute(_HIGHEST_ID_OF_POSTGRES if is_postgres(connection) else _HIGHEST_ID).scalar() or 0


def settled_id(connection: Connection) -> int:
    """The highest id up to which no event is still to come.

    On PostgreSQL ids are given before the commit, and commits overtake each other: there it is the last one sealed, as
    the sealer waits for those that write.
    """
    if not is_postgres(connection):
        return highest_id(connection)
    return connection.execute(select(func.max(audit_seals.c.last_event_id))).scalar() or 0


_HIGHEST_ID = text("SELECT seq FROM sqlite_sequence WHERE name = 'audit_events'")
_HIGHEST_ID_OF_POSTGRES = text("SELECT pg_sequence_last_value(pg_get_serial_sequence('audit_events', 'event_id'))")


def _id_bounds(connection: Connection, wanted: AuditFilter) -> tuple[int, int]:
    """Between which ids the wanted times lie: from the first, below the second."""
    end = highest_id(connection) + 1
    low = 0 if wanted.start_ms is None else _first_id_since(connection, wanted.start_ms - _CLOCK_SLACK_MS, end)
    high = end if wanted.end_ms is None else _first_id_since(connection, wanted.end_ms + _CLOCK_SLACK_MS, end)
    return low, high


def _first_id_since(connection: Connection, time_ms: int, end: int) -> int:
    """The first event of that time or later, found by halving; *end* if there is none."""
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        found = select(audit_events.c.event_id, audit_events.c.time_ms).where(audit_events.c.event_id >= middle)
        row = connection.execute(found.order_by(audit_events.c.event_id).limit(1)).first()
        if row is None or row.time_ms >= time_ms:
            high = middle
        else:
            low = row.event_id + 1
    return low


def _event(row: RowMapping) -> AuditEvent:
    is_erased = row["origin"] is None
    return AuditEvent(
        event_id=row["event_id"],
        time_ms=row["time_ms"],
        action=row["action"],
        outcome=row["outcome"],
        account_id=row["account_id"] or "",
        grant_id=row["grant_id"] or "",
        caller_account_id=row["caller_account_id"] or "",
        caller_grant_id=row["caller_grant_id"] or "",
        subject=row["subject"],
        request_id=row["request_id"],
        personal=None if is_erased else Personal(row["origin"], row["user_agent"], row["note"], row["name_hash"]),
        attempt_count=1 if is_erased else row["attempt_count"],
    )
