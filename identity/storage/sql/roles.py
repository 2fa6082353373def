"""SqlRoleStore: roles, and the policy version that moves with each change of one."""

from __future__ import annotations

import secrets

from sqlalchemy import Connection, RowMapping, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from identity.domain.values import Act, Role, RoleChange
from identity.storage.access import Access
from identity.storage.sql.common import (
    LONGEST_ACCESS_LIFETIME_SECONDS,
    Moment,
    join_words,
    publish,
    split_words,
    take_turn,
    write_audit,
)
from identity.storage.sql.once import find_done, note_done
from identity.storage.sql.rows import bears, confirm_caller
from identity.storage.tables import accounts, policy, roles
from identity_client.errors import RoleAlreadyExists, RoleBuiltIn, RoleInUse, RoleNotFound
from identity_client.trust.entries import EntryKind


class SqlRoleStore:
    """See domain.ports.RoleStore."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def create(self, name: str, scopes: tuple[str, ...], description: str, act: Act) -> Role:
        def work(connection: Connection, moment: Moment) -> Role:
            take_turn(connection)
            confirm_caller(connection, act, moment)
            done = find_done(connection, act, moment)
            if done is not None:
                return _role(_row(connection, done))
            row = {"name": name, "scopes": join_words(scopes), "description": description, "is_built_in": False}
            times = {"create_time": moment.now, "update_time": moment.now}
            version = _move_policy(connection)
            try:
                connection.execute(insert(roles).values(minimum_policy_version=version, **row, **times))
            except IntegrityError:
                raise RoleAlreadyExists() from None
            write_audit(connection, act, moment, "role.create", subject=join_words((name, *scopes)))
            note_done(connection, act, name, moment)
            return _role(_row(connection, name))

        return await self._access.write(work)

    async def get(self, name: str) -> Role:
        return await self._access.read(lambda connection, _: _role(_row(connection, name)))

    async def list_page(self, after_name: str, limit: int) -> list[Role]:
        def work(connection: Connection, _: Moment) -> list[Role]:
            page = select(roles).where(roles.c.name > after_name).order_by(roles.c.name).limit(limit)
            return [_role(row) for row in connection.execute(page).mappings()]

        return await self._access.read(work)

    async def update(self, name: str, change: RoleChange, act: Act) -> tuple[Role, int | None]:
        def work(connection: Connection, moment: Moment) -> tuple[Role, int | None]:
            take_turn(connection)
            confirm_caller(connection, act, moment)
            old = _changeable(_row(connection, name))
            scopes = old.scopes if change.scopes is None else change.scopes
            description = old.description if change.description is None else change.description
            if (scopes, description) == (old.scopes, old.description):
                return old, None
            values: dict[str, object] = {"scopes": join_words(scopes), "description": description}
            policy_version = None if scopes == old.scopes else _move_policy(connection)
            is_narrower = not set(old.scopes).issubset(scopes)
            if is_narrower:
                values["minimum_policy_version"] = policy_version
            connection.execute(update(roles).where(roles.c.name == name).values(update_time=moment.now, **values))
            write_audit(connection, act, moment, "role.update", subject=join_words((name, *scopes)))
            role = _role(_row(connection, name))
            return role, _outdate(connection, name, policy_version, moment) if is_narrower and policy_version else None

        return await self._access.write(work)

    async def delete(self, name: str, act: Act) -> None:
        def work(connection: Connection, moment: Moment) -> None:
            take_turn(connection)
            confirm_caller(connection, act, moment)
            _changeable(_row(connection, name))
            if connection.execute(select(accounts.c.account_id).where(bears(name)).limit(1)).first() is not None:
                raise RoleInUse()
            _move_policy(connection)
            connection.execute(delete(roles).where(roles.c.name == name))
            write_audit(connection, act, moment, "role.delete", subject=name)

        await self._access.write(work)


def _move_policy(connection: Connection) -> int:
    """-> the new version."""
    moved = update(policy).values(version=policy.c.version + 1, stamp=secrets.token_hex(8))
    version: int = connection.execute(moved.returning(policy.c.version)).scalar_one()
    return version


def _outdate(connection: Connection, name: str, policy_version: int, moment: Moment) -> int | None:
    """Tell peers that tokens of an older policy which carry the role are outdated: one entry for all its members."""
    latest = moment.now + LONGEST_ACCESS_LIFETIME_SECONDS
    return publish(connection, EntryKind.ROLE, name, latest, moment, policy_version)


def _row(connection: Connection, name: str) -> RowMapping:
    row = connection.execute(select(roles).where(roles.c.name == name)).mappings().first()
    if row is None:
        raise RoleNotFound()
    return row


def _changeable(row: RowMapping) -> Role:
    if row["is_built_in"]:
        raise RoleBuiltIn()
    return _role(row)


def _role(row: RowMapping) -> Role:
    return Role(
        name=row["name"],
        scopes=split_words(row["scopes"]),
        description=row["description"],
        is_built_in=row["is_built_in"],
        create_time=row["create_time"],
        update_time=row["update_time"],
    )
