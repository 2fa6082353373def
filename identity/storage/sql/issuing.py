"""What each issue of a token leaves behind: its grant remembers it, and the audit log tells of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import Connection, bindparam, update

from identity.domain.audit_events import OK, Personal
from identity.domain.values import Act
from identity.storage.sql.common import INSERT_BOTH, Moment, event_rows, given, is_postgres, write_audit
from identity.storage.tables import grants


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


@cache
def _move(*names: str) -> Any:
    """The statement is built once: to build it takes longer than to run it."""
    moved = update(grants).where(grants.c.grant_id == bindparam("moved_grant_id"))
    return moved.values({name: bindparam(f"new_{name}", type_=grants.c[name].type) for name in names})


@cache
def _move_and_audit(*names: str) -> Any:
    return INSERT_BOTH.add_cte(_move(*names).cte("moved"))
