"""What every store does: know the time, append to the feed, write the audit row."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, case, func, insert, literal, or_, select, update

from identity.domain.audit_events import OK, SALT_BYTES, Personal
from identity.domain.grants import ApiKeyUse, GrantKind
from identity.domain.values import Act, Seconds
from identity.storage.tables import audit_events, audit_personal, feed_head, grants, revocations
from identity.storage.writer import PUBLISHED
from identity_client.trust.entries import Entry, EntryKind

LONGEST_LEEWAY_SECONDS = 30
ENTRY_MARGIN_SECONDS = LONGEST_LEEWAY_SECONDS + 600
"""How much longer than the last token a revocation is kept: leeway, and ten minutes for clocks and outages."""

LONGEST_ACCESS_LIFETIME_SECONDS = 3_600
"""No access token lives longer (R20)."""

OPAQUE_CACHE_SECONDS = 60
"""How long at most a peer may go by its last introspection of a session token or API key."""


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


def publish(
    connection: Connection,
    kind: EntryKind,
    name: str,
    latest_expire_time: int,
    moment: Moment,
    minimum: int = 0,
    grant_id: str | None = None,
) -> int | None:
    """Append to the feed, if a token it concerns can still be alive; -> the version. *grant_id*: of a token.

    Versions have no gaps: the number is taken from the head in the transaction of the act, under the write lock.
    """
    if latest_expire_time + LONGEST_LEEWAY_SECONDS <= moment.now:
        return None
    taken = update(feed_head).values(version=feed_head.c.version + 1).returning(feed_head.c.version)
    version: int = connection.execute(taken).scalar_one()
    entry = {"kind": int(kind), "name": name, "minimum": minimum, "grant_id": grant_id}
    expire_time = latest_expire_time + ENTRY_MARGIN_SECONDS
    connection.execute(insert(revocations).values(version=version, expire_time=expire_time, **entry))
    connection.info[PUBLISHED] = True
    return version


def publish_generation(connection: Connection, account_id: str, generation: int, moment: Moment) -> int | None:
    """Tell peers that tokens of an older generation are outdated; -> the version."""
    is_introspected = (grants.c.kind == GrantKind.SESSION) | (grants.c.api_key_use == ApiKeyUse.BEARER)
    introspected = select(grants.c.grant_id).where(
        grants.c.account_id == account_id, grants.c.secret_hash.is_not(None), is_introspected
    )
    latest = select(func.max(grants.c.latest_expire_time)).where(grants.c.account_id == account_id)
    latest_expire_time = connection.execute(latest).scalar() or 0
    if connection.execute(introspected.limit(1)).first() is not None:
        latest_expire_time = max(latest_expire_time, moment.now + OPAQUE_CACHE_SECONDS)
    return publish(connection, EntryKind.ACCOUNT, account_id, latest_expire_time, moment, generation)


def publish_grants(connection: Connection, which: Sequence[ColumnElement[bool]], moment: Moment) -> int | None:
    """Tell peers of many grants at once: those that fit *which* and of which something can still be taken for good;
    -> the last version.
    """
    opaque_until = moment.now + OPAQUE_CACHE_SECONDS
    is_opaque = grants.c.secret_hash.is_not(None)
    is_longer = and_(is_opaque, grants.c.latest_expire_time < opaque_until)
    latest = case((is_longer, opaque_until), else_=grants.c.latest_expire_time)
    can_be_alive = or_(is_opaque, grants.c.latest_expire_time + LONGEST_LEEWAY_SECONDS > moment.now)
    held = update(feed_head).values(version=feed_head.c.version).returning(feed_head.c.version)
    head: int = connection.execute(held).scalar_one()
    place = func.row_number().over(order_by=grants.c.grant_id)
    entries = select(
        head + place, literal(int(EntryKind.GRANT)), grants.c.grant_id, literal(0), latest + ENTRY_MARGIN_SECONDS
    )
    columns = ["version", "kind", "name", "minimum", "expire_time"]
    inserted = insert(revocations).from_select(columns, entries.where(*which, can_be_alive))
    count = connection.execute(inserted).rowcount
    if not count:
        return None
    connection.execute(update(feed_head).values(version=head + count))
    connection.info[PUBLISHED] = True
    return head + count


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
    salt = secrets.token_bytes(SALT_BYTES)
    row = {
        "time_ms": int(moment.time * 1000),
        "action": action,
        "outcome": outcome,
        "caller_account_id": act.caller and act.caller.account_id,
        "caller_grant_id": act.caller and act.caller.grant_id,
        "request_id": act.request_id,
        "personal_hash": personal.hash(salt),
    }
    inserted = connection.execute(_INSERT_EVENT, row | ids)
    side = {
        "event_id": inserted.lastrowid,
        "salt": salt,
        "origin": personal.origin,
        "user_agent": personal.user_agent,
        "note": personal.note,
        "name_hash": personal.name_hash,
        "refusal_key": refusal_key,
        "attempt_count": attempt_count,
    }
    connection.execute(_INSERT_PERSONAL, side)


_INSERT_EVENT = insert(audit_events).inline()
_INSERT_PERSONAL = insert(audit_personal).inline()
