"""Whether the audit log is as it was sealed: every event, every seal, and nothing besides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, groupby

from sqlalchemy import Connection, func, select

from identity.domain.audit_events import Personal
from identity.domain.audit_seals import ChainBroken, Seal, SealKey, check_events, forged
from identity.storage.sql.audit import highest_id
from identity.storage.sql.audit_seals import count_between, find_head, find_newest_seal, rows_between, seals_after
from identity.storage.sql.common import is_postgres
from identity.storage.tables import audit_events, audit_personal

_LOWEST_ID = -(2**63)


@dataclass(frozen=True, slots=True)
class AuditReport:
    """*problems* name the range each, and what is wrong with it."""

    problems: list[str]
    first: Seal | None
    newest: Seal | None
    removed_through: int  # seals whose events were removed for their age
    unsealed_count: int
    unsealed_seconds: int  # between the oldest unsealed event and the newest


def check_audit(connection: Connection, key: SealKey) -> AuditReport:
    """Look at all of it, at one instant; some twenty seconds for a million events."""
    head, newest = find_head(connection), find_newest_seal(connection)
    problems = []
    try:
        key.check_end(head, newest)
    except ChainBroken as broken:
        problems.append(str(broken))
    removed_through = head.removed_through if head is not None and key.is_genuine(head) else 0
    problems += _seal_problems(connection, key, removed_through)
    last = newest.last_event_id if newest else 0
    problems += _number_problems(connection, last)
    problems += _personal_problems(connection)
    count, seconds = _unsealed(connection, last)
    first = next(seals_after(connection, 0), None)
    return AuditReport(problems, first, newest, removed_through, count, seconds)


def _seal_problems(connection: Connection, key: SealKey, removed_through: int) -> Iterator[str]:
    previous = None
    for is_genuine, run in groupby(seals_after(connection, 0), key.is_genuine):
        first = seal = next(run)
        for seal in chain((first,), run):
            if is_genuine:
                yield from _link_problems(key, previous, seal)
                yield from _event_problems(connection, seal, seal.seal_number <= removed_through)
            previous = seal
        if not is_genuine:
            yield forged(first, seal)


def _link_problems(key: SealKey, previous: Seal | None, seal: Seal) -> Iterator[str]:
    try:
        key.check_link(previous, seal)
    except ChainBroken as broken:
        yield str(broken)


def _event_problems(connection: Connection, seal: Seal, is_removed: bool) -> Iterator[str]:
    if not is_removed:
        try:
            check_events(seal, rows_between(connection, seal.first_event_id, seal.last_event_id))
        except ChainBroken as broken:
            yield str(broken)
    elif count := count_between(connection, seal.first_event_id, seal.last_event_id):
        yield f"{seal.range}: {count} events were inserted where all had been removed for their age"


def _number_problems(connection: Connection, last_sealed: int) -> Iterator[str]:
    """Event ids are given once and in order, by SQLite without gaps: what no seal covers yet shows by its numbers."""
    highest = highest_id(connection)
    if highest < last_sealed:
        yield f"the numbering of events was set back from {last_sealed} to {highest}"
    if count := count_between(connection, _LOWEST_ID, 0):
        yield f"{count} events were inserted before the first"
    if is_postgres(connection):
        return  # its numbers have gaps, where an act was undone
    count = count_between(connection, last_sealed + 1, 2**63 - 1)
    if count < highest - last_sealed:
        missing = highest - last_sealed - count
        yield f"after the last seal (events {last_sealed + 1}-{highest}): {missing} events were removed"


def _personal_problems(connection: Connection) -> Iterator[str]:
    columns = (audit_personal.c.origin, audit_personal.c.user_agent, audit_personal.c.note, audit_personal.c.name_hash)
    rows = select(audit_events.c.event_id, audit_events.c.personal_hash, audit_personal.c.salt, *columns)
    joined = rows.join_from(audit_events, audit_personal, audit_events.c.event_id == audit_personal.c.event_id)
    for event_id, personal_hash, salt, *fields in connection.execute(joined):
        if Personal(*fields).hash(salt) != personal_hash:
            yield f"event {event_id}: its origin, user agent, note or name hash was changed"


def _unsealed(connection: Connection, last_sealed: int) -> tuple[int, int]:
    """-> how many events, and the seconds between the oldest and the newest of them."""
    time_ms = audit_events.c.time_ms
    row = connection.execute(
        select(func.count(), func.min(time_ms), func.max(time_ms)).where(audit_events.c.event_id > last_sealed)
    ).one()
    return row[0], (row[2] - row[1]) // 1000 if row[0] else 0
