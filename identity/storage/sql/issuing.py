"""What each issue of a token leaves behind: its grant remembers it, and the audit log tells of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from identity.domain.audit_events import OK, Personal
from identity.domain.values import Act
from identity.storage.sql.common import (
    CONFIRMS,
    INSERT_BOTH,
    Moment,
    event_rows,
    given,
    insert_both,
    is_postgres,
    write_audit,
)
from identity.storage.tables import accounts, audit_personal, grants


def marks_of_use(row: Mapping[Any, Any], moment: Moment, access_lifetime: int) -> dict[str, int]:
    """What changes of a grant with another token: until when one may live, so that its revocation is kept as long, and
    when it was used, to the minute. Empty where it stands so already.
    """
    latest = max(row["latest_expire_time"], moment.now + access_lifetime)
    marks = {"latest_expire_time": latest, "last_used_time": to_the_minute(moment)}
    return {name: value for name, value in marks.items() if row[name] != value}


def to_the_minute(moment: Moment) -> int:
    """Uses are noted coarsely."""
    return moment.now - moment.now % 60


def note_issue(
    connection: Connection,
    row: Mapping[Any, Any],
    moved: dict[str, int],
    act: Act,
    moment: Moment,
    action: str,
    subject: str = "",
) -> None:
    """Write the columns of a held grant that move, and the audit row of the act, on PostgreSQL in one statement."""
    values = {f"new_{name}": value for name, value in moved.items()} | {"moved_grant_id": row["grant_id"]}
    if not moved or not is_postgres(connection):
        if moved:
            connection.execute(_move(*sorted(moved)), values)
        write_audit(connection, act, moment, action, row["account_id"], row["grant_id"], subject=subject)
        return
    ids = {"account_id": row["account_id"], "grant_id": row["grant_id"], "subject": subject}
    event, side = event_rows(act, moment, action, OK, Personal(act.origin, act.user_agent, ""), ids)
    connection.execute(_move_and_audit(*sorted(moved)), given(event, side) | values)


def note_use(
    connection: Connection, row: Mapping[Any, Any], moved: dict[str, int], act: Act, moment: Moment, action: str
) -> bool:
    """The same for a row of joined_grants that was read and is not held; -> whether it still stands as it was read.

    Where the grant has ended since, or its session was renewed, or the account's generation has risen, as it does with
    every change of what an account may, nothing is written. Otherwise nobody ends it, nor changes its account, until
    the transaction ends; it may be that of this statement alone (Access.issue).
    """
    if not is_postgres(connection):
        note_issue(connection, row, moved, act, moment, action)
        return True
    ids = {"account_id": row["account_id"], "grant_id": row["grant_id"], "subject": ""}
    event, side = event_rows(act, moment, action, OK, Personal(act.origin, act.user_agent, ""), ids)
    as_read = {f"read_{name}": row[name] for name in ("account_id", "generation", "count", "latest_expire_time")}
    values = {f"new_{name}": value for name, value in moved.items()} | {"moved_grant_id": row["grant_id"]}
    noted = connection.execute(_confirm_and_audit(*sorted(moved)), given(event, side) | as_read | values)
    return noted.first() is not None


@cache
def _confirm_and_audit(*names: str) -> Any:
    """The account is held, and then the grant; what is held is audited. Others that use the grant may hold both, too,
    unless it moves: then they wait, and begin again if it was moved as far as they would have.
    """
    account = (
        select(accounts.c.account_id)
        .where(accounts.c.account_id == bindparam("read_account_id"))
        .where(accounts.c.generation == bindparam("read_generation"))
        .with_for_update(read=True)
        .cte("account")
    )
    stands = (
        (grants.c.grant_id == bindparam("moved_grant_id"))
        & (grants.c.account_id == account.c.account_id)
        & grants.c.end_time.is_(None)
        & grants.c.count.is_not_distinct_from(bindparam("read_count"))
    )
    if "latest_expire_time" in names:
        stands &= grants.c.latest_expire_time == bindparam("read_latest_expire_time")
    if names:
        held = _move(*names).where(stands).returning(grants.c.grant_id).cte("held")
    else:
        held = select(grants.c.grant_id).where(stands).with_for_update(of=grants, read=True).cte("held")
    confirmed = insert_both(held).returning(audit_personal.c.event_id)
    return confirmed.execution_options(**{CONFIRMS: True})


@cache
def _move(*names: str) -> Any:
    """The statement is built once: to build it takes longer than to run it."""
    moved = update(grants).where(grants.c.grant_id == bindparam("moved_grant_id"))
    return moved.values({name: bindparam(f"new_{name}", type_=grants.c[name].type) for name in names})


@cache
def _move_and_audit(*names: str) -> Any:
    return INSERT_BOTH.add_cte(_move(*names).cte("moved"))
