"""What every store does: know the time, append to the feed, write the audit row."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    RowMapping,
    Table,
    and_,
    bindparam,
    case,
    cast,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from identity.domain.audit_events import OK, SALT_BYTES, Personal
from identity.domain.grants import ApiKeyUse, GrantKind
from identity.domain.values import Act, Seconds
from identity.storage.tables import audit_events, audit_personal, feed_head, grants, revocations
from identity_client.trust.entries import Entry, EntryKind

LONGEST_LEEWAY_SECONDS = 30
ENTRY_MARGIN_SECONDS = LONGEST_LEEWAY_SECONDS + 600
"""How much longer than the last token a revocation is kept: leeway, and ten minutes for clocks and outages."""

LONGEST_ACCESS_LIFETIME_SECONDS = 3_600
"""No access token lives longer (R20)."""

OPAQUE_CACHE_SECONDS = 60
"""How long at most a peer may go by its last introspection of a session token or API key."""

PUBLISHED = "published"
"""A key of Connection.info: set by work that appended to the feed."""

CONFIRMS = "confirms"
"""An execution option of a statement that writes only where what was read still stands, and answers a row if it does:
it needs no transaction around."""

CHANNEL = "identity_feed"
"""PostgreSQL tells on it that something was published."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When a piece of work runs, by the service's clock."""

    time: float

    @property
    def now(self) -> Seconds:
        """In whole seconds."""
        return Seconds(int(self.time))

    @property
    def now_ms(self) -> int:
        """In whole milliseconds."""
        return int(self.time * 1000)


def join_words(words: tuple[str, ...]) -> str:
    """Names, which have no spaces, as one text."""
    return " ".join(words)


def split_words(text: str) -> tuple[str, ...]:
    """The same, back."""
    return tuple(text.split())


def is_postgres(connection: Connection) -> bool:
    """Whether others may write at this moment; on SQLite nobody does."""
    return connection.dialect.name == "postgresql"


def upsert(connection: Connection, table: Table) -> Any:
    """INSERT with ON CONFLICT, in the database's own dialect."""
    return postgresql.insert(table) if is_postgres(connection) else sqlite.insert(table)


class NeedsTransaction(Exception):
    """Work that was begun without a transaction writes more than one statement can."""


def need_transaction(connection: Connection) -> None:
    """Raises NeedsTransaction, for Access.issue, where there is none; nothing must have been written yet."""
    if not connection.in_transaction():
        raise NeedsTransaction


def take_turn(connection: Connection) -> None:
    """Have administrators act one after another, at whichever replica, until the transaction ends: what one of them
    goes by (the last admin, a role that exists, a name that is free) no other changes meanwhile.
    """
    if is_postgres(connection):
        connection.execute(_TURN)


_TURN = text("SELECT pg_advisory_xact_lock(1)")


def hold_signing_keys(connection: Connection) -> None:
    """Nobody else adds, moves, reseals or removes a signing key until the transaction ends; what is read from now on
    stays.

    One lock for all of them: there is none for a key that is not there yet, and rows that are held one by one make
    those who come and go meanwhile wait for each other in a circle.
    """
    if is_postgres(connection):
        connection.execute(_SIGNING_KEYS)


_SIGNING_KEYS = text("SELECT pg_advisory_xact_lock(3)")


def take_time(connection: Connection) -> None:
    """Let the statements of this transaction take as long as they need: they touch every row there is."""
    if is_postgres(connection):
        connection.execute(text("SET LOCAL statement_timeout = 0"))


def publish(
    connection: Connection,
    kind: EntryKind,
    name: str,
    latest_expire_time: int,
    moment: Moment,
    minimum: int = 0,
    grant_id: str | None = None,
    account_id: str | None = None,
) -> int | None:
    """Append to the feed, if a token it concerns can still be alive; -> the version.

    *grant_id*: of a token. *account_id*: whose holder ended the token or grant.

    To be called as late as can be: the number is taken from the head in the transaction of the act, and the head is
    held until it ends. So versions have no gaps, and grow in the order of the commits, at whichever replica.
    """
    if not can_be_alive(latest_expire_time, moment):
        return None
    version = _advance(connection, 1)
    entry = {"kind": int(kind), "name": name, "minimum": minimum, "grant_id": grant_id, "account_id": account_id}
    expire_time = latest_expire_time + ENTRY_MARGIN_SECONDS
    connection.execute(insert(revocations).values(version=version, expire_time=expire_time, **entry))
    return version


def can_be_alive(latest_expire_time: int, moment: Moment) -> bool:
    """Whether a peer may still take a token that expires then."""
    return latest_expire_time + LONGEST_LEEWAY_SECONDS > moment.now


def _advance(connection: Connection, count: int) -> int:
    """Move the head on; -> the last of the *count* numbers that are ours. Doorbells ring once it is committed."""
    columns: list[Any] = [feed_head.c.version]
    if is_postgres(connection):
        columns.append(func.pg_notify(CHANNEL, ""))
    connection.info[PUBLISHED] = True
    moved = update(feed_head).values(version=feed_head.c.version + count).returning(*columns)
    version: int = connection.execute(moved).scalar_one()
    return version


def publish_generation(connection: Connection, account_id: str, generation: int, moment: Moment) -> int | None:
    """Tell peers that tokens of an older generation are outdated; -> the version. The account is held."""
    latest = latest_use_of_account(connection, account_id, moment)
    return publish(connection, EntryKind.ACCOUNT, account_id, latest, moment, generation)


def latest_use_of_account(connection: Connection, account_id: str, moment: Moment) -> int:
    """Until when at most something of an account can be taken for good by a peer that is not told."""
    is_introspected = (grants.c.kind == GrantKind.SESSION) | (grants.c.api_key_use == ApiKeyUse.BEARER)
    introspected = select(grants.c.grant_id).where(
        grants.c.account_id == account_id, grants.c.secret_hash.is_not(None), is_introspected
    )
    latest = select(func.max(grants.c.latest_expire_time)).where(grants.c.account_id == account_id)
    latest_expire_time: int = connection.execute(latest).scalar() or 0
    if connection.execute(introspected.limit(1)).first() is not None:
        return max(latest_expire_time, moment.now + OPAQUE_CACHE_SECONDS)
    return latest_expire_time


def publish_grants(connection: Connection, which: Sequence[ColumnElement[bool]], moment: Moment) -> int | None:
    """Tell peers of many grants at once: those that fit *which* and of which something can still be taken for good;
    -> the last version.
    """
    opaque_until = moment.now + OPAQUE_CACHE_SECONDS
    is_opaque = grants.c.secret_hash.is_not(None)
    is_longer = and_(is_opaque, grants.c.latest_expire_time < opaque_until)
    latest = case((is_longer, opaque_until), else_=grants.c.latest_expire_time)
    can_be_alive = or_(is_opaque, grants.c.latest_expire_time + LONGEST_LEEWAY_SECONDS > moment.now)
    head = _advance(connection, 0)
    place = func.row_number().over(order_by=grants.c.grant_id)
    entries = select(
        head + place, literal(int(EntryKind.GRANT)), grants.c.grant_id, literal(0), latest + ENTRY_MARGIN_SECONDS
    )
    columns = ["version", "kind", "name", "minimum", "expire_time"]
    inserted = insert(revocations).from_select(columns, entries.where(*which, can_be_alive))
    count = connection.execute(inserted).rowcount
    return _advance(connection, count) if count else None


def entry_of(row: RowMapping) -> Entry:
    """A row of revocations."""
    return Entry(EntryKind(row["kind"]), row["name"], row["expire_time"], row["minimum"])


def write_audit(
    connection: Connection,
    act: Act,
    moment: Moment,
    action: str,
    account_id: str | None = None,
    grant_id: str | None = None,
    note: str = "",
    subject: str = "",
) -> None:
    """The row of an act that is done, in its own transaction.

    *account_id*, *grant_id* and *subject* (roles, scopes, a key's id) are whom and what it concerns, and stay. *note*,
    like the place of the act, goes with the person when either account is erased.
    """
    ids = {"account_id": account_id, "grant_id": grant_id, "subject": subject}
    insert_event(connection, act, moment, action, OK, Personal(act.origin, act.user_agent, note), ids)


def insert_event(
    connection: Connection,
    act: Act,
    moment: Moment,
    action: str,
    outcome: str,
    personal: Personal,
    ids: dict[str, str | None],
    refusal_key: str | None = None,
    attempt_count: int = 1,
) -> None:
    """An event, and what it says of a person beside it."""
    row, side = event_rows(act, moment, action, outcome, personal, ids, refusal_key, attempt_count)
    if is_postgres(connection):
        connection.execute(INSERT_BOTH, given(row, side))
    else:
        inserted = connection.execute(_INSERT_EVENT, row)
        connection.execute(_INSERT_PERSONAL, {"event_id": inserted.lastrowid} | side)


def event_rows(
    act: Act,
    moment: Moment,
    action: str,
    outcome: str,
    personal: Personal,
    ids: dict[str, str | None],
    refusal_key: str | None = None,
    attempt_count: int = 1,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of an event, and those of its row in audit_personal; both without the id."""
    salt = secrets.token_bytes(SALT_BYTES)
    row = ids | {
        "time_ms": int(moment.time * 1000),
        "action": action,
        "outcome": outcome,
        "caller_account_id": act.caller and act.caller.account_id,
        "caller_grant_id": act.caller and act.caller.grant_id,
        "request_id": act.request_id,
        "personal_hash": personal.hash(salt),
    }
    side = {
        "salt": salt,
        "origin": personal.origin,
        "user_agent": personal.user_agent,
        "note": personal.note,
        "name_hash": personal.name_hash,
        "refusal_key": refusal_key,
        "attempt_count": attempt_count,
    }
    return row, side


_INSERT_EVENT = insert(audit_events).inline()
_INSERT_PERSONAL = insert(audit_personal).inline()


def insert_both(held: FromClause | None = None) -> Any:
    """An event and its side row in one statement, which SQLite has not: each costs a round trip.

    *held*: they are inserted if this has a row, which is read first.
    """
    own, side = (
        [column for column in table.c if column.name != "event_id"] for table in (audit_events, audit_personal)
    )
    row = select(*(cast(_given(column), column.type) for column in own))
    row = row if held is None else row.select_from(held)
    inserted = insert(audit_events).from_select([column.name for column in own], row)
    event = inserted.returning(audit_events.c.event_id).cte("event")
    names = ["event_id", *(column.name for column in side)]
    given = [cast(_given(column), column.type) for column in side]
    return insert(audit_personal).from_select(names, select(event.c.event_id, *given))


def _given(column: ColumnElement[Any]) -> Any:
    # Not by the column's own name: SQLAlchemy would set columns of that name wherever the statement writes.
    return bindparam(f"given_{column.name}", type_=column.type)


def given(*rows: dict[str, Any]) -> dict[str, Any]:
    """The parameters of insert_both."""
    return {f"given_{name}": value for row in rows for name, value in row.items()}


INSERT_BOTH = insert_both()
