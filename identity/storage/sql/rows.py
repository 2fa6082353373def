"""Rows of accounts and grants: how they are found, what they grant now, and whether whoever acts may still act."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, bindparam, literal, or_, select, true

from identity.domain.grants import ApiKeyUse, GrantKind, GrantSnapshot
from identity.domain.roles import still_granted
from identity.domain.values import FIRST_PARTY, Account, AccountKind, AccountRef, Act
from identity.storage.sql.common import OPAQUE_CACHE_SECONDS, Moment, is_postgres, split_words
from identity.storage.tables import accounts, grants, policy, revocations, roles
from identity_client.errors import (
    AccountNotFound,
    LastAdmin,
    PermissionMissing,
    TokenOutdated,
    TokenRevoked,
    UnknownRole,
)
from identity_client.trust.entries import EntryKind

ADMIN_ROLE = "admin"

_ROLES = "roles"  # a key of Connection.info


def joined_grants() -> Select[Any]:
    """Grants, each with what matters of its account, and with the policy of now."""
    return (
        select(
            grants,
            accounts.c.kind.label("account_kind"),
            accounts.c.normalised_username,
            accounts.c.roles,
            accounts.c.generation,
            accounts.c.disable_time,
            policy.c.version.label("policy_version"),
            policy.c.stamp.label("policy_stamp"),
        )
        .join_from(grants, accounts)
        .join(policy, true())
    )


def find_grant(connection: Connection, grant_id: str) -> RowMapping | None:
    """A row of joined_grants."""
    return connection.execute(_BY_ID, {"id": grant_id}).mappings().first()


def find_grant_by_name(connection: Connection, lookup_name: str) -> RowMapping | None:
    """The row of joined_grants that is not ended and has this lookup name."""
    return connection.execute(_BY_NAME, {"name": lookup_name}).mappings().first()


def hold_grant(connection: Connection, grant_id: str) -> RowMapping | None:
    """The same, to act on: nobody changes the grant or its account until the transaction ends.

    The account is held first, and shared: whoever changes an account holds it alone, and its grants after it.
    """
    held = _HELD_BY_ID if is_postgres(connection) else _BY_ID
    return connection.execute(held, {"id": grant_id}).mappings().first()


def _held_grants() -> Select[Any]:
    """One row of joined_grants, its account locked before it: a subquery is run before what it is joined to."""
    of_grant = select(grants.c.account_id).where(grants.c.grant_id == bindparam("id")).scalar_subquery()
    held = select(accounts).where(accounts.c.account_id == of_grant).with_for_update(read=True).cte("held")
    return (
        select(
            grants,
            held.c.kind.label("account_kind"),
            held.c.normalised_username,
            held.c.roles,
            held.c.generation,
            held.c.disable_time,
            policy.c.version.label("policy_version"),
            policy.c.stamp.label("policy_stamp"),
        )
        .join_from(grants, held, grants.c.account_id == held.c.account_id)
        .join(policy, true())
        .where(grants.c.grant_id == bindparam("id"))
        .with_for_update(of=grants)
    )


_HELD_BY_ID = _held_grants()
_BY_NAME = joined_grants().where(grants.c.lookup_name == bindparam("name"), grants.c.end_time.is_(None))
_BY_ID = joined_grants().where(grants.c.grant_id == bindparam("id"))


def scopes_of(connection: Connection, row: Mapping[Any, Any]) -> tuple[str, ...]:
    """The scopes that the roles of a row of joined_grants grant now, sorted."""
    return granted(connection, row["policy_stamp"], split_words(row["roles"]))


def granted(connection: Connection, policy_stamp: str, role_names: Iterable[str]) -> tuple[str, ...]:
    """The scopes that roles grant together, sorted.

    The roles of one policy are remembered beside the connection. The stamp is random: a policy that was rolled back
    can never be taken for the one that comes instead.
    """
    held = connection.info.get(_ROLES)
    if held is None or held[0] != policy_stamp:
        rows = connection.execute(select(roles.c.name, roles.c.scopes)).all()
        held = connection.info[_ROLES] = (policy_stamp, {name: split_words(scopes) for name, scopes in rows})
    return tuple(sorted({scope for name in role_names for scope in held[1].get(name, ())}))


def account_row(connection: Connection, ref: AccountRef) -> RowMapping:
    """The row that *ref* (its username normalised) names. Raises AccountNotFound."""
    return _account_row(connection, ref, "")


def hold_account(connection: Connection, ref: AccountRef, *, is_changed: bool = True) -> RowMapping:
    """The same, to act on: nobody changes it until the transaction ends. *is_changed*: nor is anything issued to it."""
    return _account_row(connection, ref, _ALONE if is_changed else _SHARED)


def find_account_by_name(connection: Connection, normalised_username: str) -> RowMapping | None:
    """The row that has this name."""
    return connection.execute(_account(_NAME, ""), {"named": normalised_username}).mappings().first()


_ID, _NAME = accounts.c.account_id.name, accounts.c.normalised_username.name
_SHARED, _ALONE = "shared", "alone"


@cache
def _account(column: str, hold: str) -> Select[Any]:
    """The account that a parameter names in *column*, held alone, shared or not at all."""
    found = select(accounts).where(accounts.c[column] == bindparam("named"))
    return found.with_for_update(read=hold == _SHARED) if hold else found


def _account_row(connection: Connection, ref: AccountRef, hold: str) -> RowMapping:
    by_id = ref.account_id is not None
    found = _account(_ID if by_id else _NAME, hold)
    row = connection.execute(found, {"named": ref.account_id if by_id else ref.username}).mappings().first()
    if row is None:
        raise AccountNotFound()
    return row


def account_of(row: RowMapping) -> Account:
    """A row of accounts as administrators see it."""
    return Account(
        account_id=row["account_id"],
        kind=AccountKind(row["kind"]),
        username=row["username"],
        roles=split_words(row["roles"]),
        generation=row["generation"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        disable_time=row["disable_time"],
        password_change_required=row["password_change_required"],
    )


def bears(role: str) -> ColumnElement[bool]:
    """The condition of accounts that have a role."""
    return (literal(" ") + accounts.c.roles + literal(" ")).contains(f" {role} ", autoescape=True)


def check_admin_remains(connection: Connection, row: RowMapping) -> None:
    """Whether an enabled user has the role admin once the account of *row* no longer has, the write lock being held.

    Only people count: a service's credentials can expire or be revoked, and then nobody could log in. Raises LastAdmin.
    """
    is_admin = (accounts.c.kind == AccountKind.USER) & accounts.c.disable_time.is_(None) & bears(ADMIN_ROLE)
    admins = select(accounts.c.account_id).where(is_admin)
    account_id = row["account_id"]
    if connection.execute(admins.where(accounts.c.account_id == account_id)).first() is None:
        return
    if connection.execute(admins.where(accounts.c.account_id != account_id).limit(1)).first() is None:
        raise LastAdmin()


def confirm_caller(connection: Connection, act: Act, moment: Moment) -> None:
    """Whether whoever acts may still act, now that the write lock is held.

    An act without a caller is its holder's own, or the machine's. Raises TokenRevoked, TokenOutdated,
    PermissionMissing.
    """
    caller = act.caller
    if caller is None:
        return
    row = find_grant(connection, caller.grant_id)
    if row is None or row["account_id"] != caller.account_id or not is_live(row, moment):
        raise TokenRevoked()
    if row["generation"] != caller.generation:
        raise TokenOutdated()
    if row["disable_time"] is not None or is_recorded(connection, EntryKind.TOKEN, caller.token_id):
        raise TokenRevoked()
    if caller.required_scope and caller.required_scope not in scopes_of(connection, row):
        raise PermissionMissing()


def is_live(grant: RowMapping, moment: Moment) -> bool:
    """Whether a grant has neither ended nor expired."""
    expire_time = grant["expire_time"]
    return grant["end_time"] is None and (expire_time is None or moment.now < expire_time)


def is_live_grant(moment: Moment) -> ColumnElement[bool]:
    """The condition of grants that have neither ended nor expired."""
    return grants.c.end_time.is_(None) & or_(grants.c.expire_time.is_(None), grants.c.expire_time > moment.now)


def is_recorded(connection: Connection, kind: EntryKind, name: str) -> bool:
    """Whether the feed has an entry of this name."""
    return connection.execute(_RECORDED, {"kind": int(kind), "named": name}).first() is not None


_RECORDED = (
    select(revocations.c.version)
    .where(revocations.c.kind == bindparam("kind"), revocations.c.name == bindparam("named"))
    .limit(1)
)


def latest_use(row: RowMapping, moment: Moment) -> int:
    """Until when at most something that hangs off a grant can be taken for good by a peer that is not told."""
    latest: int = row["latest_expire_time"]
    is_introspected = row["kind"] == GrantKind.SESSION or row["api_key_use"] == ApiKeyUse.BEARER
    return max(latest, moment.now + OPAQUE_CACHE_SECONDS) if is_introspected and row["secret_hash"] else latest


def check_roles_exist(connection: Connection, names: tuple[str, ...]) -> None:
    """Raises UnknownRole, which names one."""
    known = set(connection.execute(select(roles.c.name).where(roles.c.name.in_(names))).scalars())
    if unknown := [name for name in names if name not in known]:
        raise UnknownRole(f"there is no role {unknown[0]}: create it first")


def snapshot(connection: Connection, row: Mapping[Any, Any], moment: Moment, audience: str = "") -> GrantSnapshot:
    """What is issued from a row of joined_grants, for the session's own audience or the one given."""
    is_session = row["kind"] == GrantKind.SESSION
    return GrantSnapshot(
        grant_id=row["grant_id"],
        account_id=row["account_id"],
        client_id=FIRST_PARTY if row["account_kind"] == AccountKind.USER else row["normalised_username"],
        audience=audience or row["audiences"].partition(" ")[0],
        scopes=still_granted(scopes_of(connection, row), split_words(row["requested_scopes"])),
        roles=split_words(row["roles"]),
        generation=row["generation"],
        policy_version=row["policy_version"],
        issue_time=moment.now,
        authentication_time=row["authentication_time"],
        authentication_methods=("pwd",) if is_session else (),
        idle_expire_time=row["expire_time"] if is_session else None,
        absolute_expire_time=row["absolute_expire_time"],
        latest_expire_time=row["expire_time"],
        is_limited=bool(row["requested_scopes"]),
    )
