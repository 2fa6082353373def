"""What every store does: find an account, confirm who acts, append to the feed, write the audit row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, func, insert, select, update

from identity.domain.roles import granted_scopes
from identity.domain.values import Account, AccountKind, AccountRef, Act, Seconds
from identity.storage.tables import accounts, audit_events, feed_head, grants, revocations
from identity.storage.writer import PUBLISHED
from identity_client.errors import AccountNotFound, PermissionMissing, TokenOutdated, TokenRevoked
from identity_client.trust.entries import Entry, EntryKind

POLICY_VERSION = 1
"""Which version of the role table tokens are issued under; it moves once roles can be edited."""

LONGEST_LEEWAY_SECONDS = 30
ENTRY_MARGIN_SECONDS = LONGEST_LEEWAY_SECONDS + 600
"""How much longer than the last token a revocation is kept: leeway, and ten minutes for clocks and outages."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When a piece of work runs, by the service's clock."""

    time: float

    @property
    def now(self) -> Seconds:
        """In whole seconds."""
        return Seconds(int(self.time))


def join_words(words: tuple[str, ...]) -> str:
    """Names, which have no spaces, as one text."""
    return " ".join(words)


def split_words(text: str) -> tuple[str, ...]:
    """The same, back."""
    return tuple(text.split())


def account_row(connection: Connection, ref: AccountRef) -> RowMapping:
    """The row that *ref* (its username normalised) names. Raises AccountNotFound."""
    is_it = (
        accounts.c.account_id == ref.account_id
        if ref.account_id is not None
        else accounts.c.normalised_username == ref.username
    )
    row = connection.execute(select(accounts).where(is_it)).mappings().first()
    if row is None:
        raise AccountNotFound()
    return row


def account_of(row: RowMapping) -> Account:
    """A row of accounts as administrators see it."""
    return Account(
        account_id=row["account_id"],
        kind=AccountKind(row["kind"]),
        username=row["username"],
        roles=split_words(row["roles"]),
        generation=row["generation"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        disable_time=row["disable_time"],
    )


def confirm_caller(connection: Connection, act: Act, moment: Moment) -> None:
    """Whether whoever acts may still act, now that the write lock is held.

    An act without a caller is its holder's own, or the machine's. Raises TokenRevoked, TokenOutdated,
    PermissionMissing.
    """
    caller = act.caller
    if caller is None:
        return
    joined = select(grants, accounts.c.generation, accounts.c.roles, accounts.c.disable_time).join_from(
        grants, accounts
    )
    row = connection.execute(joined.where(grants.c.grant_id == caller.grant_id)).mappings().first()
    if row is None or row["account_id"] != caller.account_id or not is_live(row, moment):
        raise TokenRevoked()
    if row["generation"] != caller.generation:
        raise TokenOutdated()
    if row["disable_time"] is not None or is_recorded(connection, EntryKind.TOKEN, caller.token_id):
        raise TokenRevoked()
    if caller.required_scope not in granted_scopes(split_words(row["roles"])):
        raise PermissionMissing()


def is_live(grant: RowMapping, moment: Moment) -> bool:
    """Whether a grant has neither ended nor expired."""
    expire_time = grant["expire_time"]
    return grant["end_time"] is None and (expire_time is None or moment.now < expire_time)


def is_recorded(connection: Connection, kind: EntryKind, name: str) -> bool:
    """Whether the feed has an entry of this name."""
    found = select(revocations.c.version).where(revocations.c.kind == int(kind), revocations.c.name == name)
    return connection.execute(found.limit(1)).first() is not None


def publish(
    connection: Connection, kind: EntryKind, name: str, latest_expire_time: int, moment: Moment, minimum: int = 0
) -> int | None:
    """Append to the feed, if a token it concerns can still be alive; -> the version.

    Versions have no gaps: the number is taken from the head in the transaction of the act, under the write lock.
    """
    if latest_expire_time + LONGEST_LEEWAY_SECONDS <= moment.now:
        return None
    taken = update(feed_head).values(version=feed_head.c.version + 1).returning(feed_head.c.version)
    version: int = connection.execute(taken).scalar_one()
    entry = {"kind": int(kind), "name": name, "minimum": minimum}
    expire_time = latest_expire_time + ENTRY_MARGIN_SECONDS
    connection.execute(insert(revocations).values(version=version, expire_time=expire_time, **entry))
    connection.info[PUBLISHED] = True
    return version


def publish_generation(connection: Connection, account_id: str, generation: int, moment: Moment) -> int | None:
    """Tell peers that tokens of an older generation are outdated; -> the version."""
    latest = select(func.max(grants.c.latest_expire_time)).where(grants.c.account_id == account_id)
    latest_expire_time = connection.execute(latest).scalar() or 0
    return publish(connection, EntryKind.ACCOUNT, account_id, latest_expire_time, moment, generation)


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
) -> None:
    """The row of an act that is done, in its own transaction."""
    row = audit_row(act, moment, action, "ok", note)
    connection.execute(insert(audit_events).values(account_id=account_id, grant_id=grant_id, **row))


def audit_row(act: Act, moment: Moment, action: str, outcome: str, note: str = "") -> dict[str, Any]:
    """What all audit rows say."""
    return {
        "time_ms": int(moment.time * 1000),
        "action": action,
        "outcome": outcome,
        "caller_account_id": act.caller and act.caller.account_id,
        "caller_grant_id": act.caller and act.caller.grant_id,
        "origin": act.origin,
        "request_id": act.request_id,
        "note": note,
    }
