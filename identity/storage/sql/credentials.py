"""SqlCredentialStore: what machines prove themselves with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from sqlalchemy import Connection, RowMapping, insert, update
from sqlalchemy.exc import IntegrityError

from identity.domain.grants import (
    Admit,
    ApiKeyUse,
    Credential,
    CredentialRecord,
    CredentialTerms,
    GrantKind,
    GrantSnapshot,
    NewCredential,
    Prove,
    UsedAssertion,
)
from identity.domain.refusals import Cause, Rejected
from identity.domain.roles import narrow
from identity.domain.values import AccountKind, AccountRef, Act, EndReason
from identity.storage.access import Access
from identity.storage.sql.common import (
    Moment,
    join_words,
    need_transaction,
    split_words,
    take_turn,
    upsert,
    write_audit,
)
from identity.storage.sql.issuing import marks_of_use, note_use
from identity.storage.sql.once import find_done, note_done
from identity.storage.sql.rows import (
    account_row,
    confirm_caller,
    find_grant,
    find_grant_by_name,
    hold_account,
    hold_grant,
    is_live,
    is_live_grant,
    scopes_of,
    snapshot,
)
from identity.storage.sql.sessions import newest_first
from identity.storage.tables import grants, used_assertions
from identity_client.errors import CredentialAlreadyExists, GrantNotFound, InvalidRequest, SecretAlreadyShown

FindGrant = Callable[[Connection, str], RowMapping | None]


class SqlCredentialStore:
    """See domain.ports.CredentialStore."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def create(self, ref: AccountRef, credential: NewCredential, act: Act) -> Credential:
        def work(connection: Connection, moment: Moment) -> Credential:
            take_turn(connection)
            confirm_caller(connection, act, moment)
            done = find_done(connection, act, moment)
            if done is not None:
                return _done(connection, done)
            account = hold_account(connection, ref, is_changed=False)
            if account["kind"] != AccountKind.SERVICE and credential.kind is not GrantKind.API_KEY:
                raise InvalidRequest("a user has a password and API keys; this kind is for services", "account")
            row = insert_credential(connection, account["account_id"], credential, moment)
            narrow(scopes_of(connection, row), credential.terms.scopes)
            action = f"{credential.kind}.create"
            write_audit(connection, act, moment, action, account["account_id"], credential.grant_id)
            note_done(connection, act, credential.grant_id, moment)
            return _credential(row)

        return await self._access.write(work)

    async def list_page(self, ref: AccountRef, before: tuple[int, str] | None, limit: int) -> list[Credential]:
        def work(connection: Connection, moment: Moment) -> list[Credential]:
            account_id = account_row(connection, ref)["account_id"]
            is_its_own = (grants.c.account_id == account_id) & (grants.c.kind != GrantKind.SESSION)
            live = is_its_own & is_live_grant(moment)
            page = newest_first(before).where(live).limit(limit)
            return [_credential(row) for row in connection.execute(page).mappings()]

        return await self._access.read(work)

    async def find_by_name(self, kind: GrantKind, lookup_name: str) -> CredentialRecord | None:
        def work(connection: Connection, moment: Moment) -> CredentialRecord | None:
            row = find_grant_by_name(connection, lookup_name)
            return _record(row, moment) if row is not None and row["kind"] == kind else None

        return await self._access.look_up(work)

    async def use(self, grant_id: str, prove: Prove, admit: Admit, action: str, act: Act) -> GrantSnapshot:
        def work(connection: Connection, moment: Moment, find: FindGrant) -> GrantSnapshot | None:
            row = find(connection, grant_id)
            use = prove(_record(row, moment))
            assert row is not None  # noqa: S101 - nothing is proved of what is not there
            issued = snapshot(connection, row, moment, use.audience)
            issued = replace(
                issued,
                scopes=narrow(issued.scopes, use.requested_scopes),
                is_limited=issued.is_limited or bool(use.requested_scopes),
            )
            admit(issued)
            if use.assertion is not None:
                need_transaction(connection)
            marks = marks_of_use(row, moment, use.access_lifetime)
            if not note_use(connection, row, marks, act, moment, action):
                return None
            if use.assertion is not None:
                _spend(connection, row["lookup_name"], use.assertion)
            return issued

        # Nothing is held before the proof: whoever only knows an id makes nobody wait, and does not see who waits. What
        # changed between the reading and the writing is rare, but for the marks, which many would move at once when a
        # second begins; the last time it cannot.
        issued = await self._access.issue(partial(work, find=find_grant))
        issued = issued or await self._access.issue(partial(work, find=find_grant))
        issued = issued or await self._access.write(partial(work, find=hold_grant))
        assert issued is not None  # noqa: S101 - what is held does not change
        return issued


def insert_credential(connection: Connection, account_id: str, credential: NewCredential, moment: Moment) -> RowMapping:
    """-> its row of joined_grants. An expired one of the same lookup name makes way. Raises CredentialAlreadyExists."""
    if credential.lookup_name is not None:
        expired = (grants.c.lookup_name == credential.lookup_name) & (grants.c.expire_time <= moment.now)
        ended = update(grants).where(expired & grants.c.end_time.is_(None))
        connection.execute(ended.values(end_time=moment.now, end_reason=EndReason.EXPIRED))
    terms = credential.terms
    x, y = credential.public_key or (None, None)
    row = {
        "grant_id": credential.grant_id,
        "account_id": account_id,
        "kind": credential.kind,
        "create_time": moment.now,
        "latest_expire_time": 0,
        "expire_time": terms.expire_time,
        "audiences": join_words(terms.audiences),
        "requested_scopes": join_words(terms.scopes),
        "display_name": terms.display_name,
        "secret_hash": credential.secret_hash,
        "api_key_use": credential.use,
        "lookup_name": credential.lookup_name,
        "public_x": x,
        "public_y": y,
    }
    try:
        connection.execute(insert(grants).values(**row))
    except IntegrityError:
        if credential.lookup_name is None:
            raise
        raise CredentialAlreadyExists() from None
    inserted = find_grant(connection, credential.grant_id)
    if inserted is None:
        raise GrantNotFound()
    return inserted


def _done(connection: Connection, grant_id: str) -> Credential:
    """The credential that an earlier sending of the request created. Raises SecretAlreadyShown, GrantNotFound."""
    row = find_grant(connection, grant_id)
    if row is None:
        raise GrantNotFound()
    if row["secret_hash"] is not None:
        raise SecretAlreadyShown(resource_id=grant_id)
    return _credential(row)


def _spend(connection: Connection, key_id: str, assertion: UsedAssertion) -> None:
    """An assertion is good for one log-in, under whatever registration of its key. Raises Rejected."""
    row = {"key_id": key_id, "assertion_hash": assertion.assertion_hash, "expire_time": assertion.expire_time}
    if connection.execute(upsert(connection, used_assertions).values(**row).on_conflict_do_nothing()).rowcount == 0:
        raise Rejected(Cause.ASSERTION_REPLAYED)


def _record(row: RowMapping | None, moment: Moment) -> CredentialRecord | None:
    if row is None or row["kind"] == GrantKind.SESSION:
        return None
    return CredentialRecord(
        grant_id=row["grant_id"],
        kind=GrantKind(row["kind"]),
        normalised_username=row["normalised_username"],
        is_live=is_live(row, moment) and row["disable_time"] is None,
        audiences=split_words(row["audiences"]),
        secret_hash=row["secret_hash"],
        use=None if row["api_key_use"] is None else ApiKeyUse(row["api_key_use"]),
        public_key=None if row["public_x"] is None else (row["public_x"], row["public_y"]),
    )


def _credential(row: RowMapping) -> Credential:
    return Credential(
        grant_id=row["grant_id"],
        account_id=row["account_id"],
        kind=GrantKind(row["kind"]),
        terms=CredentialTerms(
            display_name=row["display_name"] or "",
            audiences=split_words(row["audiences"]),
            scopes=split_words(row["requested_scopes"]),
            expire_time=row["expire_time"],
        ),
        create_time=row["create_time"],
        last_used_time=row["last_used_time"],
        use=None if row["api_key_use"] is None else ApiKeyUse(row["api_key_use"]),
        lookup_name=row["lookup_name"],
    )
