"""SqlSweeper: removes rows that nothing asks for any more, a few at a time."""

from __future__ import annotations

from sqlalchemy import Connection, delete, or_, select, tuple_

from identity.storage.access import Access
from identity.storage.sql.common import Moment
from identity.storage.sql.throttle import remove_expired
from identity.storage.tables import done_requests, grants, revocations, used_assertions

KEPT_SECONDS = 86_400
"""How long a dead grant's row still answers: its tokens are told `ended`, not `unknown`, for a day."""


class SqlSweeper:
    """See domain.ports.Sweeper. The grants are walked by their id: no index has to be kept for it."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def sweep(self, after: str, limit: int) -> str:
        next_after, dead = await self._access.read(lambda connection, moment: _look(connection, moment, after, limit))

        def remove(connection: Connection, moment: Moment) -> None:
            _remove_grants(connection, dead, moment)
            _remove_revocations(connection, limit, moment)
            _remove_assertions(connection, limit, moment)
            remove_expired(connection, limit, moment)
            _remove_done_requests(connection, limit, moment)

        await self._access.write(remove)
        return next_after


def _look(connection: Connection, moment: Moment, after: str, limit: int) -> tuple[str, list[str]]:
    columns = (grants.c.grant_id, grants.c.end_time, grants.c.expire_time)
    page = select(*columns).where(grants.c.grant_id > after).order_by(grants.c.grant_id).limit(limit)
    rows = connection.execute(page).all()
    next_after = rows[-1].grant_id if len(rows) == limit else ""
    return next_after, [row.grant_id for row in rows if _is_dead(row.end_time, row.expire_time, moment)]


def _is_dead(end_time: int | None, expire_time: int | None, moment: Moment) -> bool:
    times = [time for time in (end_time, expire_time) if time is not None]
    return bool(times) and min(times) <= moment.now - KEPT_SECONDS


def _remove_grants(connection: Connection, dead: list[str], moment: Moment) -> None:
    """Those of *dead* that still are: a session may have been used since they were looked at."""
    until = moment.now - KEPT_SECONDS
    is_dead = or_(grants.c.end_time <= until, grants.c.expire_time <= until)
    if dead:
        connection.execute(delete(grants).where(grants.c.grant_id.in_(dead), is_dead))


def _remove_revocations(connection: Connection, limit: int, moment: Moment) -> None:
    expired = select(revocations.c.version).where(revocations.c.expire_time <= moment.now).limit(limit)
    connection.execute(delete(revocations).where(revocations.c.version.in_(expired)))


def _remove_assertions(connection: Connection, limit: int, moment: Moment) -> None:
    key = (used_assertions.c.key_id, used_assertions.c.assertion_hash)
    expired = select(*key).where(used_assertions.c.expire_time <= moment.now).limit(limit)
    connection.execute(delete(used_assertions).where(tuple_(*key).in_(expired)))


def _remove_done_requests(connection: Connection, limit: int, moment: Moment) -> None:
    key = (done_requests.c.caller_account_id, done_requests.c.request_id)
    expired = select(*key).where(done_requests.c.expire_time <= moment.now).limit(limit)
    connection.execute(delete(done_requests).where(tuple_(*key).in_(expired)))
