"""SqlAccountStore: accounts, and the password of a user."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from identity.domain.grants import NewCredential
from identity.domain.values import (
    EVERY_ACCOUNT,
    Account,
    AccountChange,
    AccountFilter,
    AccountKind,
    AccountRef,
    Act,
    Ended,
    EndReason,
    NewAccount,
    PasswordRecord,
)
from identity.storage.access import Access
from identity.storage.sql.audit import erase_audit
from identity.storage.sql.common import (
    Moment,
    join_words,
    latest_use_of_account,
    publish,
    publish_generation,
    take_turn,
    write_audit,
)
from identity.storage.sql.credentials import insert_credential
from identity.storage.sql.once import find_done, note_done
from identity.storage.sql.rows import (
    ADMIN_ROLE,
    account_of,
    account_row,
    bears,
    check_admin_remains,
    check_roles_exist,
    confirm_caller,
    find_account_by_name,
    hold_account,
    is_live_grant,
)
from identity.storage.sql.sessions import end_sessions
from identity.storage.tables import accounts, done_requests, grants
from identity_client.errors import AccountAlreadyExists, InvalidRequest, SecretAlreadyShown
from identity_client.trust.entries import EntryKind

_AFTER_EVERY_CHARACTER = "\U0010ffff"
"""Sorts after every character that a username may have: it is none."""


class SqlAccountStore:
    """See domain.ports.AccountStore."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def create(self, account: NewAccount, credential: NewCredential | None, act: Act) -> Account:
        def work(connection: Connection, moment: Moment) -> Account:
            take_turn(connection)
            confirm_caller(connection, act, moment)
            done = find_done(connection, act, moment)
            if done is not None and credential is not None:
                raise SecretAlreadyShown(resource_id=done)
            if done is not None:
                return account_of(account_row(connection, AccountRef(account_id=done)))
            check_roles_exist(connection, account.roles)
            _insert_account(connection, account, moment)
            if credential is not None:
                insert_credential(connection, account.account_id, credential, moment)
            grant_id = credential.grant_id if credential else None
            write_audit(connection, act, moment, "account.create", account.account_id, grant_id)
            note_done(connection, act, account.account_id, moment)
            return account_of(account_row(connection, AccountRef(account_id=account.account_id)))

        return await self._access.write(work)

    async def get(self, ref: AccountRef) -> Account:
        return await self._access.read(lambda connection, _: account_of(account_row(connection, ref)))

    async def list_page(self, after_username: str, limit: int, which: AccountFilter = EVERY_ACCOUNT) -> list[Account]:
        def work(connection: Connection, _: Moment) -> list[Account]:
            name = accounts.c.normalised_username
            page = select(accounts).where(name > after_username, *_conditions(which)).order_by(name).limit(limit)
            return [account_of(row) for row in connection.execute(page).mappings()]

        return await self._access.read(work)

    async def update(self, ref: AccountRef, change: AccountChange, act: Act) -> Account:
        def work(connection: Connection, moment: Moment) -> Account:
            take_turn(connection)
            confirm_caller(connection, act, moment)
            row = _user_row(connection, ref)
            values = {name: value for name, value in asdict(change).items() if value not in (None, row[name])}
            if not values:
                return account_of(row)
            changed = update(accounts).where(accounts.c.account_id == row["account_id"])
            try:
                connection.execute(changed.values(update_time=moment.now, **values))
            except IntegrityError:
                raise AccountAlreadyExists() from None
            note = join_words(tuple(sorted(values.keys() - {"normalised_username"})))
            write_audit(connection, act, moment, "account.update", row["account_id"], note=note)
            return account_of(account_row(connection, AccountRef(account_id=row["account_id"])))

        return await self._access.write(work)

    async def delete(self, ref: AccountRef, note: str, act: Act) -> Ended:
        def work(connection: Connection, moment: Moment) -> Ended:
            take_turn(connection)
            confirm_caller(connection, act, moment)
            row = hold_account(connection, ref)
            check_admin_remains(connection, row)
            account_id = row["account_id"]
            latest = latest_use_of_account(connection, account_id, moment)
            live = select(func.count()).where(grants.c.account_id == account_id, is_live_grant(moment))
            count = connection.execute(live).scalar_one()
            _erase(connection, account_id)
            is_own = act.caller is not None and act.caller.account_id == account_id
            placeless = replace(act, origin="", user_agent="") if is_own else act
            write_audit(connection, placeless, moment, "account.delete", account_id, note="" if is_own else note)
            generation = row["generation"] + 1
            return Ended(count, publish(connection, EntryKind.ACCOUNT, account_id, latest, moment, generation))

        return await self._access.write(work)

    async def set_password(
        self, ref: AccountRef, password_hash: str, is_change_required: bool, act: Act
    ) -> tuple[Account, Ended]:
        def work(connection: Connection, moment: Moment) -> tuple[Account, Ended]:
            take_turn(connection)
            confirm_caller(connection, act, moment)
            row = _user_row(connection, ref)
            account = _change(
                connection,
                row,
                moment,
                password_hash=password_hash,
                credential_version=row["credential_version"] + 1,
                password_change_required=is_change_required,
            )
            count = end_sessions(connection, account.account_id, EndReason.PASSWORD_CHANGED, moment)
            write_audit(connection, act, moment, "password.set", account.account_id)
            return account, Ended(count, _published(connection, account, moment))

        return await self._access.write(work)

    async def set_roles(self, ref: AccountRef, roles: tuple[str, ...], act: Act) -> tuple[Account, int | None]:
        def work(connection: Connection, moment: Moment) -> tuple[Account, int | None]:
            take_turn(connection)
            confirm_caller(connection, act, moment)
            row = hold_account(connection, ref)
            check_roles_exist(connection, roles)
            if row["roles"] == join_words(roles):
                return account_of(row), None
            if ADMIN_ROLE not in roles:
                check_admin_remains(connection, row)
            account = _change(connection, row, moment, roles=join_words(roles))
            write_audit(connection, act, moment, "account.set_roles", account.account_id, subject=join_words(roles))
            return account, _published(connection, account, moment)

        return await self._access.write(work)

    async def disable(self, ref: AccountRef, act: Act) -> tuple[Account, int | None]:
        def work(connection: Connection, moment: Moment) -> tuple[Account, int | None]:
            take_turn(connection)
            confirm_caller(connection, act, moment)
            row = hold_account(connection, ref)
            if row["disable_time"] is not None:
                return account_of(row), None
            check_admin_remains(connection, row)
            account = _change(connection, row, moment, disable_time=moment.now)
            end_sessions(connection, account.account_id, EndReason.ACCOUNT_DISABLED, moment)
            write_audit(connection, act, moment, "account.disable", account.account_id)
            return account, _published(connection, account, moment)

        return await self._access.write(work)

    async def enable(self, ref: AccountRef, act: Act) -> Account:
        def work(connection: Connection, moment: Moment) -> Account:
            take_turn(connection)
            confirm_caller(connection, act, moment)
            row = hold_account(connection, ref)
            if row["disable_time"] is None:
                return account_of(row)
            changed = update(accounts).where(accounts.c.account_id == row["account_id"])
            connection.execute(changed.values(disable_time=None, update_time=moment.now))
            write_audit(connection, act, moment, "account.enable", row["account_id"])
            return account_of(account_row(connection, AccountRef(account_id=row["account_id"])))

        return await self._access.write(work)

    async def find_password(self, normalised_username: str) -> PasswordRecord | None:
        def work(connection: Connection, _: Moment) -> PasswordRecord | None:
            row = find_account_by_name(connection, normalised_username)
            if row is None or row["password_hash"] is None:
                return None
            return PasswordRecord(
                account_id=row["account_id"],
                password_hash=row["password_hash"],
                credential_version=row["credential_version"],
                is_enabled=row["disable_time"] is None,
                password_change_required=row["password_change_required"],
            )

        return await self._access.look_up(work)

    async def replace_hash(self, account_id: str, old_hash: str, new_hash: str) -> None:
        def work(connection: Connection, _: Moment) -> None:
            is_it = (accounts.c.account_id == account_id) & (accounts.c.password_hash == old_hash)
            connection.execute(update(accounts).where(is_it).values(password_hash=new_hash))

        await self._access.write(work)

    async def note_challenge(self, account_id: str, act: Act) -> None:
        await self._access.write(
            lambda connection, moment: write_audit(connection, act, moment, "password.challenge", account_id)
        )

    async def is_audience(self, name: str) -> bool:
        def work(connection: Connection, _: Moment) -> bool:
            return connection.execute(_SERVICE_BY_NAME, {"name": name}).first() is not None

        return await self._access.look_up(work)


_SERVICE_BY_NAME = select(accounts.c.account_id).where(
    accounts.c.normalised_username == bindparam("name"), accounts.c.kind == AccountKind.SERVICE
)


def _insert_account(connection: Connection, account: NewAccount, moment: Moment) -> None:
    row = {
        "account_id": account.account_id,
        "kind": account.kind,
        "username": account.username,
        "normalised_username": account.normalised_username,
        "roles": join_words(account.roles),
        "generation": 1,
        "credential_version": 1,
        "password_hash": account.password_hash,
        "password_change_required": account.password_change_required,
        "create_time": moment.now,
        "update_time": moment.now,
    }
    try:
        connection.execute(insert(accounts).values(**row))
    except IntegrityError:
        raise AccountAlreadyExists() from None


def _conditions(which: AccountFilter) -> list[ColumnElement[bool]]:
    conditions = []
    if which.kind is not None:
        conditions.append(accounts.c.kind == which.kind)
    if which.role:
        conditions.append(bears(which.role))
    if which.is_disabled is not None:
        conditions.append(accounts.c.disable_time.is_not(None) == which.is_disabled)
    if which.username_prefix:
        name = accounts.c.normalised_username
        conditions += [name >= which.username_prefix, name < which.username_prefix + _AFTER_EVERY_CHARACTER]
    return conditions


def _user_row(connection: Connection, ref: AccountRef) -> RowMapping:
    """The row of a person, held. Raises AccountNotFound, InvalidRequest."""
    row = hold_account(connection, ref)
    if row["kind"] != AccountKind.USER:
        raise InvalidRequest("this is a service: its name is an audience, and it has no password", "account")
    return row


def _erase(connection: Connection, account_id: str) -> None:
    """Remove the account with all that is personal: name, addresses, user agents, also those in the audit log. Its
    grants fall with it."""
    erase_audit(connection, account_id)
    connection.execute(delete(grants).where(grants.c.account_id == account_id))
    connection.execute(delete(done_requests).where(done_requests.c.caller_account_id == account_id))
    connection.execute(delete(accounts).where(accounts.c.account_id == account_id))


def _change(connection: Connection, row: Any, moment: Moment, **values: object) -> Account:
    """Change an account so that its older tokens are outdated, which is to be published."""
    generation = row["generation"] + 1
    changed = update(accounts).where(accounts.c.account_id == row["account_id"])
    connection.execute(changed.values(generation=generation, update_time=moment.now, **values))
    return account_of(account_row(connection, AccountRef(account_id=row["account_id"])))


def _published(connection: Connection, account: Account, moment: Moment) -> int | None:
    """-> the feed's version."""
    return publish_generation(connection, account.account_id, account.generation, moment)
