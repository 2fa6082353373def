"""SqlAccountStore: accounts, and the password of a user."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from identity.domain.grants import NewCredential
from identity.domain.values import (
    Account,
    AccountKind,
    AccountRef,
    Act,
    EndReason,
    NewAccount,
    PasswordRecord,
)
from identity.storage.access import Access
from identity.storage.sql.common import Moment, join_words, publish_generation, write_audit
from identity.storage.sql.credentials import insert_credential
from identity.storage.sql.rows import account_of, account_row, check_roles_exist, confirm_caller
from identity.storage.sql.sessions import end_sessions
from identity.storage.tables import accounts
from identity_client.errors import AccountAlreadyExists


class SqlAccountStore:
    """See domain.ports.AccountStore."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def create(self, account: NewAccount, credential: NewCredential | None, act: Act) -> Account:
        def work(connection: Connection, moment: Moment) -> Account:
            confirm_caller(connection, act, moment)
            check_roles_exist(connection, account.roles)
            _insert_account(connection, account, moment)
            if credential is not None:
                insert_credential(connection, account.account_id, credential, moment)
            grant_id = credential.grant_id if credential else None
            write_audit(connection, act, moment, "account.create", account.account_id, grant_id)
            return account_of(account_row(connection, AccountRef(account_id=account.account_id)))

        return await self._access.write(work)

    async def get(self, ref: AccountRef) -> Account:
        return await self._access.read(lambda connection, _: account_of(account_row(connection, ref)))

    async def list_page(self, after_username: str, limit: int) -> list[Account]:
        def work(connection: Connection, _: Moment) -> list[Account]:
            name = accounts.c.normalised_username
            page = select(accounts).where(name > after_username).order_by(name).limit(limit)
            return [account_of(row) for row in connection.execute(page).mappings()]

        return await self._access.read(work)

    async def set_roles(self, ref: AccountRef, roles: tuple[str, ...], act: Act) -> tuple[Account, int | None]:
        def work(connection: Connection, moment: Moment) -> tuple[Account, int | None]:
            confirm_caller(connection, act, moment)
            row = account_row(connection, ref)
            check_roles_exist(connection, roles)
            if row["roles"] == join_words(roles):
                return account_of(row), None
            account, version = _change(connection, row, moment, roles=join_words(roles))
            write_audit(connection, act, moment, "account.set_roles", account.account_id, note=join_words(roles))
            return account, version

        return await self._access.write(work)

    async def disable(self, ref: AccountRef, act: Act) -> tuple[Account, int | None]:
        def work(connection: Connection, moment: Moment) -> tuple[Account, int | None]:
            confirm_caller(connection, act, moment)
            row = account_row(connection, ref)
            if row["disable_time"] is not None:
                return account_of(row), None
            account, version = _change(connection, row, moment, disable_time=moment.now)
            end_sessions(connection, account.account_id, EndReason.ACCOUNT_DISABLED, moment)
            write_audit(connection, act, moment, "account.disable", account.account_id)
            return account, version

        return await self._access.write(work)

    async def enable(self, ref: AccountRef, act: Act) -> Account:
        def work(connection: Connection, moment: Moment) -> Account:
            confirm_caller(connection, act, moment)
            row = account_row(connection, ref)
            if row["disable_time"] is None:
                return account_of(row)
            changed = update(accounts).where(accounts.c.account_id == row["account_id"])
            connection.execute(changed.values(disable_time=None, update_time=moment.now))
            write_audit(connection, act, moment, "account.enable", row["account_id"])
            return account_of(account_row(connection, AccountRef(account_id=row["account_id"])))

        return await self._access.write(work)

    async def find_password(self, normalised_username: str) -> PasswordRecord | None:
        def work(connection: Connection, _: Moment) -> PasswordRecord | None:
            found = select(accounts).where(accounts.c.normalised_username == normalised_username)
            row = connection.execute(found).mappings().first()
            if row is None or row["password_hash"] is None:
                return None
            return PasswordRecord(
                account_id=row["account_id"],
                password_hash=row["password_hash"],
                credential_version=row["credential_version"],
                is_enabled=row["disable_time"] is None,
                password_change_required=row["password_change_required"],
            )

        return await self._access.read(work)

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
            found = select(accounts.c.account_id).where(
                accounts.c.normalised_username == name, accounts.c.kind == AccountKind.SERVICE
            )
            return connection.execute(found).first() is not None

        return await self._access.read(work)


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


def _change(connection: Connection, row: Any, moment: Moment, **values: object) -> tuple[Account, int | None]:
    """Change an account so that its older tokens are outdated; -> the account, the feed's version."""
    generation = row["generation"] + 1
    changed = update(accounts).where(accounts.c.account_id == row["account_id"])
    connection.execute(changed.values(generation=generation, update_time=moment.now, **values))
    version = publish_generation(connection, row["account_id"], generation, moment)
    return account_of(account_row(connection, AccountRef(account_id=row["account_id"]))), version
