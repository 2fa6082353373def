"""SqlSessionStore: log-ins of accounts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, insert, select, tuple_, update

from identity import failpoints
from identity.domain.grants import Admit, GrantKind, GrantSnapshot, NewSession, Session, SessionRecord
from identity.domain.refusals import Cause, Rejected
from identity.domain.roles import narrow
from identity.domain.values import AccountRef, Act, EndReason, PasswordChange
from identity.storage.access import Access
from identity.storage.sql.common import Moment, join_words, publish_generation, split_words, write_audit
from identity.storage.sql.issuing import marks_of_use, note_use, to_the_minute
from identity.storage.sql.rows import (
    find_grant,
    hold_account,
    is_live,
    scopes_of,
    snapshot,
)
from identity.storage.tables import accounts, grants
from identity_client.errors import AccountNotFound, GrantNotFound, SessionEnded


class SqlSessionStore:
    """See domain.ports.SessionStore."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def open(self, session: NewSession, admit: Admit, act: Act) -> GrantSnapshot:
        def work(connection: Connection, moment: Moment) -> GrantSnapshot:
            _login_account(connection, session.account_id, session.credential_version)
            return _insert(connection, session, admit, act, moment)

        return await self._access.write(work)

    async def change_password(
        self, change: PasswordChange, session: NewSession, admit: Admit, act: Act
    ) -> tuple[GrantSnapshot, int | None]:
        def work(connection: Connection, moment: Moment) -> tuple[GrantSnapshot, int | None]:
            account = _login_account(connection, change.account_id, change.credential_version, is_changed=True)
            generation = account["generation"] + 1
            changed = update(accounts).where(accounts.c.account_id == change.account_id)
            connection.execute(
                changed.values(
                    password_hash=change.password_hash,
                    credential_version=change.credential_version + 1,
                    generation=generation,
                    password_change_required=False,
                    update_time=moment.now,
                )
            )
            end_sessions(connection, change.account_id, EndReason.PASSWORD_CHANGED, moment)
            write_audit(connection, act, moment, "password.change", change.account_id)
            opened = _insert(connection, session, admit, act, moment)
            return opened, publish_generation(connection, change.account_id, generation, moment)

        return await self._access.write(work)

    async def find(self, grant_id: str) -> SessionRecord | None:
        def work(connection: Connection, _: Moment) -> SessionRecord | None:
            row = find_grant(connection, grant_id)
            if row is None or row["salt"] is None:
                return None
            return SessionRecord(
                grant_id=grant_id,
                account_id=row["account_id"],
                count=row["count"],
                salt=row["salt"],
                grace_until=row["grace_until"],
                expire_time=row["expire_time"],
                end_time=row["end_time"],
            )

        return await self._access.look_up(work)

    async def rotate(
        self, session: SessionRecord, grace_lifetime: int, access_lifetime: int, admit: Admit, act: Act
    ) -> GrantSnapshot | None:
        def work(connection: Connection, moment: Moment) -> GrantSnapshot | None:
            row = _found(connection, session, moment)
            if row is None:
                return None
            expire_time = min(moment.now + row["idle_lifetime"], row["absolute_expire_time"])
            moved = {"count": session.count + 1, "grace_until": moment.now + grace_lifetime, "expire_time": expire_time}
            moved |= marks_of_use(row, moment, access_lifetime)
            issued = _admitted(connection, {**row, **moved}, admit, moment)
            is_noted = note_use(connection, row, moved, act, moment, "session.refresh")
            failpoints.hit("rotate.before_commit")
            return issued if is_noted else None

        rotated = await self._access.issue(work)
        failpoints.hit("rotate.after_commit")
        return rotated

    async def repeat(
        self, session: SessionRecord, access_lifetime: int, admit: Admit, act: Act
    ) -> GrantSnapshot | None:
        def work(connection: Connection, moment: Moment) -> GrantSnapshot | None:
            row = _found(connection, session, moment)
            if row is None:
                return None
            issued = _admitted(connection, row, admit, moment)
            marks = marks_of_use(row, moment, access_lifetime)
            is_noted = note_use(connection, row, marks, act, moment, "session.refresh_repeat")
            return issued if is_noted else None

        return await self._access.issue(work)

    async def get(self, account_id: str, grant_id: str) -> Session:
        def work(connection: Connection, moment: Moment) -> Session:
            found = select(grants).where(live_sessions(account_id, moment), grants.c.grant_id == grant_id)
            row = connection.execute(found).mappings().first()
            if row is None:
                raise GrantNotFound()
            return _session(row)

        return await self._access.read(work)

    async def list_page(self, account_id: str, before: tuple[int, str] | None, limit: int) -> list[Session]:
        def work(connection: Connection, moment: Moment) -> list[Session]:
            page = newest_first(before).where(live_sessions(account_id, moment)).limit(limit)
            return [_session(row) for row in connection.execute(page).mappings()]

        return await self._access.read(work)


def live_sessions(account_id: str, moment: Moment) -> ColumnElement[bool]:
    """The condition of an account's live sessions."""
    return (
        (grants.c.account_id == account_id)
        & (grants.c.kind == GrantKind.SESSION)
        & grants.c.end_time.is_(None)
        & (grants.c.expire_time > moment.now)
    )


def newest_first(before: tuple[int, str] | None) -> Any:
    """Grants by time of creation, descending, below *before*."""
    order = (grants.c.create_time.desc(), grants.c.grant_id.desc())
    rows = select(grants).order_by(*order)
    return rows if before is None else rows.where(tuple_(grants.c.create_time, grants.c.grant_id) < before)


def end_sessions(connection: Connection, account_id: str, reason: EndReason, moment: Moment) -> int:
    """End every live session of an account; -> how many."""
    ended = update(grants).where(live_sessions(account_id, moment)).values(end_time=moment.now, end_reason=reason)
    return connection.execute(ended).rowcount


def _login_account(
    connection: Connection, account_id: str, credential_version: int, *, is_changed: bool = False
) -> RowMapping:
    """The account of a log-in, if its password and state are still those that were checked. Raises Rejected."""
    try:
        account = hold_account(connection, AccountRef(account_id=account_id), is_changed=is_changed)
    except AccountNotFound:
        raise Rejected(Cause.CREDENTIAL_CHANGED) from None
    if account["disable_time"] is not None or account["credential_version"] != credential_version:
        raise Rejected(Cause.CREDENTIAL_CHANGED)
    return account


def _insert(connection: Connection, session: NewSession, admit: Admit, act: Act, moment: Moment) -> GrantSnapshot:
    connection.execute(_INSERT, _session_row(session, act, moment))
    row = find_grant(connection, session.grant_id)
    assert row is not None  # noqa: S101 - inserted above, in this transaction
    narrow(scopes_of(connection, row), session.requested_scopes)
    write_audit(connection, act, moment, "session.open", session.account_id, session.grant_id)
    return _admitted(connection, row, admit, moment)


_INSERT = insert(grants)  # with the row as parameters: as values they would be built into the statement each time


def _session_row(session: NewSession, act: Act, moment: Moment) -> dict[str, Any]:
    absolute = moment.now + session.terms.absolute_lifetime
    has_access = session.token_hash is None
    return {
        "grant_id": session.grant_id,
        "account_id": session.account_id,
        "kind": GrantKind.SESSION,
        "create_time": moment.now,
        "last_used_time": to_the_minute(moment),
        "latest_expire_time": moment.now + session.access_lifetime if has_access else 0,
        "audiences": join_words(session.audiences),
        "requested_scopes": join_words(session.requested_scopes),
        "authentication_time": moment.now,
        "secret_hash": session.token_hash,
        "count": 0,
        "salt": session.refresh_salt,
        "grace_until": 0,
        "idle_lifetime": session.terms.idle_lifetime,
        "expire_time": min(moment.now + session.terms.idle_lifetime, absolute),
        "absolute_expire_time": absolute,
        "ip_address": act.origin,
        "user_agent": act.user_agent,
    }


def _found(connection: Connection, session: SessionRecord, moment: Moment) -> RowMapping | None:
    """The session's row where count and liveness are as *session* says. Raises SessionEnded: account disabled."""
    row = find_grant(connection, session.grant_id)
    if row is None or row["count"] != session.count or not is_live(row, moment):
        return None
    if row["disable_time"] is not None:
        raise SessionEnded()
    return row


def _admitted(connection: Connection, row: Mapping[Any, Any], admit: Admit, moment: Moment) -> GrantSnapshot:
    issued = snapshot(connection, row, moment)
    admit(issued)
    return issued


def _session(row: RowMapping) -> Session:
    return Session(
        session_id=row["grant_id"],
        account_id=row["account_id"],
        is_opaque=row["secret_hash"] is not None,
        has_refresh=row["salt"] is not None,
        audiences=split_words(row["audiences"]),
        create_time=row["create_time"],
        last_used_time=row["last_used_time"] or row["create_time"],
        idle_expire_time=row["expire_time"],
        absolute_expire_time=row["absolute_expire_time"],
        ip_address=row["ip_address"] or "",
        user_agent=row["user_agent"] or "",
    )
