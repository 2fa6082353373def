"""SqlSessionSelection: sessions of any number of accounts, looked at by the readers and ended in short transactions.

The feed gets one entry an account (its generation), not one a session: the fewest that the kinds of entries allow. An
account none of whose ended sessions can still have a token alive gets none.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address

from sqlalchemy import Connection, select, tuple_, update

from identity.domain.grants import GrantKind, Place, SelectedSessions, SessionFilter
from identity.domain.values import Act, Ended, EndReason
from identity.storage.access import Access
from identity.storage.sql.common import LONGEST_LEEWAY_SECONDS, Moment, publish_generations, write_audit
from identity.storage.sql.rows import confirm_caller, is_live_grant, latest_use
from identity.storage.tables import grants


class SqlSessionSelection:
    """See domain.ports.SessionSelection."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def select(self, which: SessionFilter, after: Place | None, limit: int) -> SelectedSessions:
        def work(connection: Connection, moment: Moment) -> SelectedSessions:
            order = (grants.c.account_id, grants.c.create_time, grants.c.grant_id)
            page = select(*order, grants.c.ip_address).order_by(*order).limit(limit)
            page = page.where(grants.c.kind == GrantKind.SESSION, is_live_grant(moment))
            if after is not None:
                page = page.where(tuple_(*order) > after)
            if which.account is not None:
                page = page.where(grants.c.account_id == which.account.account_id)
            if which.issued_before is not None:
                page = page.where(grants.c.create_time < which.issued_before)
            rows = connection.execute(page).all()
            admitted = tuple(row.grant_id for row in rows if _is_from(row.ip_address, which.origin))
            return SelectedSessions(admitted, tuple(rows[-1][:3]) if len(rows) == limit else None)

        return await self._access.read(work)

    async def end(self, grant_ids: tuple[str, ...], note: str, act: Act, *, confirm: bool) -> Ended:
        def work(connection: Connection, moment: Moment) -> Ended:
            if confirm:
                confirm_caller(connection, act, moment)
            ended = update(grants).where(grants.c.grant_id.in_(grant_ids), grants.c.end_time.is_(None))
            ended = ended.values(end_time=moment.now, end_reason=EndReason.REVOKED)
            rows = connection.execute(ended.returning(grants)).mappings().all()
            alive = {row["account_id"] for row in rows if latest_use(row, moment) + LONGEST_LEEWAY_SECONDS > moment.now}
            version = publish_generations(connection, alive, moment)
            write_audit(connection, act, moment, "sessions.revoke", note=f"{len(rows)} sessions, {note}")
            return Ended(len(rows), version)

        return await self._access.write(work)


def _is_from(text: str | None, origin: IPv4Network | IPv6Network | None) -> bool:
    if origin is None:
        return True
    try:
        address = ip_address(text or "")
    except ValueError:  # a Unix socket, or unknown
        return False
    return (getattr(address, "ipv4_mapped", None) or address) in origin
