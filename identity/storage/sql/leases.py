"""SqlLeaseStore: which replica does a job that needs one of them only."""

from __future__ import annotations

from sqlalchemy import Connection, RowMapping, bindparam, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from identity.storage.access import Access
from identity.storage.sql.common import Moment
from identity.storage.tables import leases


class SqlLeaseStore:
    """See domain.ports.LeaseStore. Whoever finds a lease taken, or their own with half of its time left, only reads."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def take(self, name: str, holder: str, seconds: float) -> bool:
        def look(connection: Connection, moment: Moment) -> bool | None:
            row = connection.execute(_BY_NAME, {"name": name}).mappings().first()
            return None if row is None else _known(row, holder, seconds, moment)

        def work(connection: Connection, moment: Moment) -> bool:
            expire_time_ms = moment.now_ms + int(seconds * 1000)
            values = {"holder": holder, "expire_time_ms": expire_time_ms}
            is_free = or_(leases.c.holder == holder, leases.c.expire_time_ms <= moment.now_ms)
            taken = update(leases).where(leases.c.name == name, is_free).values(**values)
            if connection.execute(taken).rowcount == 1:
                return True
            try:
                with connection.begin_nested():
                    connection.execute(insert(leases).values(name=name, **values))
            except IntegrityError:
                return False
            return True

        known = await self._access.look_up(look)
        return await self._access.write(work) if known is None else known

    async def release(self, holder: str) -> None:
        def work(connection: Connection, _: Moment) -> None:
            connection.execute(delete(leases).where(leases.c.holder == holder))

        await self._access.write(work)


_BY_NAME = select(leases).where(leases.c.name == bindparam("name"))


def _known(row: RowMapping, holder: str, seconds: float, moment: Moment) -> bool | None:
    """Whether the lease is held, where that needs no writing; None where it does."""
    left_ms = row["expire_time_ms"] - moment.now_ms
    if row["holder"] == holder:
        return True if left_ms > seconds * 500 else None
    return False if left_ms > 0 else None
