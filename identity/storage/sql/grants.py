"""SqlGrantStore: sessions and machine credentials."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, RowMapping, Select, insert, select, update

from identity import failpoints
from identity.domain.roles import granted_scopes, narrow, still_granted
from identity.domain.values import (
    FIRST_PARTY,
    AccountRef,
    Act,
    Ended,
    EndReason,
    GrantKind,
    GrantSnapshot,
    NewSession,
    SecretRecord,
    SessionRecord,
)
from identity.storage.access import Access
from identity.storage.sql.common import (
    POLICY_VERSION,
    Moment,
    account_row,
    confirm_caller,
    is_live,
    join_words,
    publish,
    publish_generation,
    split_words,
    write_audit,
)
from identity.storage.tables import accounts, grants
from identity_client.errors import AccountNotFound, BadCredentials, GrantNotFound
from identity_client.trust.entries import EntryKind


class SqlGrantStore:
    """See domain.ports.GrantStore."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def open_session(self, session: NewSession, act: Act) -> GrantSnapshot:
        def work(connection: Connection, moment: Moment) -> GrantSnapshot:
            account = _login_account(connection, session)
            # What is not granted is refused before anything is written.
            narrow(granted_scopes(split_words(account["roles"])), session.requested_scopes)
            connection.execute(insert(grants).values(**_session_row(session, moment)))
            write_audit(connection, act, moment, "session.open", session.account_id, session.grant_id)
            return _session_snapshot(connection, session.grant_id, moment)

        return await self._access.write(work)

    async def find_secret(self, grant_id: str) -> SecretRecord | None:
        def work(connection: Connection, moment: Moment) -> SecretRecord | None:
            row = _find(connection, grant_id)
            if row is None or row["kind"] != GrantKind.CLIENT_SECRET:
                return None
            live = is_live(row, moment) and row["disable_time"] is None
            return SecretRecord(row["account_id"], row["normalised_username"], row["secret_hash"], live)

        return await self._access.read(work)

    async def use_secret(
        self, grant_id: str, audience: str, requested_scopes: tuple[str, ...], access_lifetime: int, act: Act
    ) -> GrantSnapshot:
        def work(connection: Connection, moment: Moment) -> GrantSnapshot:
            row = _find(connection, grant_id)
            if row is None or not is_live(row, moment) or row["disable_time"] is not None:
                raise BadCredentials()
            scopes = narrow(granted_scopes(split_words(row["roles"])), requested_scopes)
            _note_issue(connection, row, moment, access_lifetime)
            write_audit(connection, act, moment, "secret.use", row["account_id"], grant_id)
            return _snapshot(row, moment, row["normalised_username"], audience, scopes)

        return await self._access.write(work)

    async def find_session(self, grant_id: str) -> SessionRecord | None:
        def work(connection: Connection, _: Moment) -> SessionRecord | None:
            row = _find(connection, grant_id)
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

        return await self._access.read(work)

    async def rotate(
        self, session: SessionRecord, grace_lifetime: int, access_lifetime: int, act: Act
    ) -> GrantSnapshot | None:
        def work(connection: Connection, moment: Moment) -> GrantSnapshot | None:
            row = _held(connection, session, moment)
            if row is None:
                return None
            expire_time = min(moment.now + row["idle_lifetime"], row["absolute_expire_time"])
            moved = {"count": session.count + 1, "grace_until": moment.now + grace_lifetime, "expire_time": expire_time}
            _note_issue(connection, row, moment, access_lifetime, **moved)
            write_audit(connection, act, moment, "session.refresh", session.account_id, session.grant_id)
            failpoints.hit("rotate.before_commit")
            return _session_snapshot(connection, session.grant_id, moment)

        snapshot = await self._access.write(work)
        failpoints.hit("rotate.after_commit")
        return snapshot

    async def repeat(self, session: SessionRecord, access_lifetime: int, act: Act) -> GrantSnapshot | None:
        def work(connection: Connection, moment: Moment) -> GrantSnapshot | None:
            row = _held(connection, session, moment)
            if row is None:
                return None
            _note_issue(connection, row, moment, access_lifetime)
            write_audit(connection, act, moment, "session.refresh_repeat", session.account_id, session.grant_id)
            return _session_snapshot(connection, session.grant_id, moment)

        return await self._access.write(work)

    async def end(self, grant_id: str, reason: EndReason, note: str, act: Act) -> Ended:
        def work(connection: Connection, moment: Moment) -> Ended:
            confirm_caller(connection, act, moment)
            row = _find(connection, grant_id)
            if row is None:
                raise GrantNotFound()
            if row["end_time"] is not None:
                return Ended(0, None)
            ended = update(grants).where(grants.c.grant_id == grant_id)
            connection.execute(ended.values(end_time=moment.now, end_reason=reason))
            write_audit(connection, act, moment, f"grant.end.{reason}", row["account_id"], grant_id, note)
            return Ended(1, publish(connection, EntryKind.GRANT, grant_id, row["latest_expire_time"], moment))

        return await self._access.write(work)

    async def end_all(self, ref: AccountRef, note: str, act: Act) -> Ended:
        def work(connection: Connection, moment: Moment) -> Ended:
            confirm_caller(connection, act, moment)
            account = account_row(connection, ref)
            account_id, generation = account["account_id"], account["generation"] + 1
            is_account = accounts.c.account_id == account_id
            connection.execute(update(accounts).where(is_account).values(generation=generation, update_time=moment.now))
            live = (grants.c.account_id == account_id) & grants.c.end_time.is_(None)
            ended = update(grants).where(live).values(end_time=moment.now, end_reason=EndReason.ACCOUNT_REVOKED)
            count = connection.execute(ended).rowcount
            write_audit(connection, act, moment, "account.revoke", account_id, note=note)
            return Ended(count, publish_generation(connection, account_id, generation, moment))

        return await self._access.write(work)


_ACCOUNT_COLUMNS = (
    accounts.c.normalised_username,
    accounts.c.roles,
    accounts.c.generation,
    accounts.c.disable_time,
)


def _joined() -> Select[Any]:
    return select(grants, *_ACCOUNT_COLUMNS).join_from(grants, accounts)


def _find(connection: Connection, grant_id: str) -> RowMapping | None:
    """A grant with what matters of its account."""
    return connection.execute(_joined().where(grants.c.grant_id == grant_id)).mappings().first()


def _login_account(connection: Connection, session: NewSession) -> RowMapping:
    """The account of a log-in, if its password and state are still those that were checked. Raises BadCredentials."""
    try:
        account = account_row(connection, AccountRef(account_id=session.account_id))
    except AccountNotFound:
        raise BadCredentials() from None
    if account["disable_time"] is not None or account["credential_version"] != session.credential_version:
        raise BadCredentials()
    return account


def _session_row(session: NewSession, moment: Moment) -> dict[str, Any]:
    absolute = moment.now + session.terms.absolute_lifetime
    return {
        "grant_id": session.grant_id,
        "account_id": session.account_id,
        "kind": GrantKind.SESSION,
        "create_time": moment.now,
        "latest_expire_time": moment.now + session.access_lifetime,
        "audience": session.audience,
        "requested_scopes": join_words(session.requested_scopes),
        "authentication_time": moment.now,
        "count": 0,
        "salt": session.refresh_salt,
        "grace_until": 0,
        "idle_lifetime": session.terms.idle_lifetime,
        "expire_time": min(moment.now + session.terms.idle_lifetime, absolute),
        "absolute_expire_time": absolute,
    }


def _held(connection: Connection, session: SessionRecord, moment: Moment) -> RowMapping | None:
    """The session's row where count and liveness are as *session* says. Raises BadCredentials: account disabled."""
    row = _find(connection, session.grant_id)
    if row is None or row["count"] != session.count or not is_live(row, moment):
        return None
    if row["disable_time"] is not None:
        raise BadCredentials()
    return row


def _note_issue(
    connection: Connection, row: RowMapping, moment: Moment, access_lifetime: int, **values: object
) -> None:
    """Remember until when a token of this grant may live, so that its revocation is kept as long."""
    latest = max(row["latest_expire_time"], moment.now + access_lifetime)
    changed = update(grants).where(grants.c.grant_id == row["grant_id"])
    connection.execute(changed.values(latest_expire_time=latest, **values))


def _session_snapshot(connection: Connection, grant_id: str, moment: Moment) -> GrantSnapshot:
    row = connection.execute(_joined().where(grants.c.grant_id == grant_id)).mappings().one()
    scopes = still_granted(granted_scopes(split_words(row["roles"])), split_words(row["requested_scopes"]))
    return _snapshot(row, moment, FIRST_PARTY, row["audience"], scopes)


def _snapshot(row: RowMapping, moment: Moment, client_id: str, audience: str, scopes: tuple[str, ...]) -> GrantSnapshot:
    return GrantSnapshot(
        grant_id=row["grant_id"],
        account_id=row["account_id"],
        client_id=client_id,
        audience=audience,
        scopes=scopes,
        roles=split_words(row["roles"]),
        generation=row["generation"],
        policy_version=POLICY_VERSION,
        issue_time=moment.now,
        authentication_time=row["authentication_time"],
        authentication_methods=("pwd",) if row["kind"] == GrantKind.SESSION else (),
        refresh_expire_time=row["expire_time"] if row["salt"] is not None else None,
    )
