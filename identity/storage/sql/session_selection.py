"""SqlSessionSelection: live sessions of any number of accounts, walked through by account and ended in short
transactions, a few statements each, however many there are.

The feed gets an entry a session, unless nothing of it can still be taken for good: 24 bytes at a peer, and no token of
another grant is outdated by it.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address

from sqlalchemy import ARRAY, ColumnElement, Connection, any_, func, literal, select, tuple_, update

from identity.domain.grants import GrantKind, Place, SessionFilter, SessionPart
from identity.domain.values import Act, Ended, EndReason
from identity.storage.access import Access
from identity.storage.sql.common import Moment, is_postgres, publish_grants, write_audit
from identity.storage.sql.rows import confirm_caller, is_live_grant
from identity.storage.tables import TEXT, grants

_PLACE = (grants.c.account_id, grants.c.create_time, grants.c.grant_id)


class SqlSessionSelection:
    """See domain.ports.SessionSelection."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def next_part(self, which: SessionFilter, after: Place | None, limit: int) -> SessionPart:
        def work(connection: Connection, moment: Moment) -> SessionPart:
            walk = select(*_PLACE).where(*_conditions(which, SessionPart(after, None), moment)).order_by(*_PLACE)
            last = connection.execute(walk.offset(limit - 1).limit(1)).first()
            part = SessionPart(after, None if last is None else (last[0], last[1], last[2]))
            if which.origin is None:
                return part
            addresses = select(grants.c.ip_address).where(*_conditions(which, part, moment)).distinct()
            found = connection.execute(addresses).scalars()
            return SessionPart(part.after, part.through, tuple(text for text in found if _is_in(text, which.origin)))

        return await self._access.read(work)

    async def count(self, which: SessionFilter, part: SessionPart) -> int:
        def work(connection: Connection, moment: Moment) -> int:
            counted = select(func.count()).select_from(grants).where(*_conditions(which, part, moment))
            return connection.execute(counted).scalar_one()

        return await self._access.read(work)

    async def end(self, which: SessionFilter, part: SessionPart, note: str, act: Act, *, confirm: bool) -> Ended:
        def work(connection: Connection, moment: Moment) -> Ended:
            if confirm:
                confirm_caller(connection, act, moment)
            conditions = _hold(connection, _conditions(which, part, moment))
            is_caller_among = _is_caller_among(connection, conditions, act)
            counted = select(func.count()).select_from(grants).where(*conditions)
            count = connection.execute(counted).scalar_one()
            if count or part.after is None:
                account_id = None if which.account is None else which.account.account_id
                write_audit(connection, act, moment, "sessions.revoke", account_id, note=f"{count} sessions, {note}")
            version = publish_grants(connection, conditions, moment)
            ended = update(grants).where(*conditions).values(end_time=moment.now, end_reason=EndReason.REVOKED)
            connection.execute(ended)
            return Ended(count, version, is_caller_among)

        return await self._access.write(work)


def _hold(connection: Connection, conditions: list[ColumnElement[bool]]) -> list[ColumnElement[bool]]:
    """Conditions of the same sessions, which nobody changes until the transaction ends, and of no others: where others
    write meanwhile, each statement sees what they have committed."""
    if not is_postgres(connection):
        return conditions
    held = select(grants.c.grant_id).where(*conditions).order_by(grants.c.grant_id).with_for_update()
    grant_ids = list(connection.execute(held).scalars())
    return [grants.c.grant_id == any_(literal(grant_ids, ARRAY(TEXT)))]


def _is_caller_among(connection: Connection, conditions: list[ColumnElement[bool]], act: Act) -> bool:
    if act.caller is None:
        return False
    own = select(grants.c.grant_id).where(grants.c.grant_id == act.caller.grant_id, *conditions)
    return connection.execute(own).first() is not None


def _conditions(which: SessionFilter, part: SessionPart, moment: Moment) -> list[ColumnElement[bool]]:
    conditions = [grants.c.kind == GrantKind.SESSION, is_live_grant(moment)]
    if part.after is not None:
        conditions.append(tuple_(*_PLACE) > part.after)
    if part.through is not None:
        conditions.append(tuple_(*_PLACE) <= part.through)
    if part.addresses is not None:
        conditions.append(grants.c.ip_address.in_(part.addresses))
    if which.account is not None:
        conditions.append(grants.c.account_id == which.account.account_id)
    if which.issued_before is not None:
        conditions.append(grants.c.create_time < which.issued_before)
    return conditions


def _is_in(text: str | None, network: IPv4Network | IPv6Network) -> bool:
    try:
        address = ip_address(text or "")
    except ValueError:  # a Unix socket, or unknown
        return False
    return (getattr(address, "ipv4_mapped", None) or address) in network
