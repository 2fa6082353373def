"""Accounts, sessions and acts, the short way."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest

from identity.domain.grants import (
    Credential,
    CredentialRecord,
    CredentialUse,
    GrantKind,
    GrantSnapshot,
    NewCredential,
    NewSession,
    Prove,
    SessionTerms,
)
from identity.domain.refusals import Cause, Rejected
from identity.domain.values import (
    Account,
    AccountKind,
    AccountRef,
    Act,
    Caller,
    KeyState,
    NewAccount,
    Seconds,
    SigningKeyRecord,
    TokenIdentity,
)
from identity.storage.database import Stores
from identity_client.errors import TokenTooLarge
from identity_client.trust.entries import EntryKind
from tests.clients.issuer import new_id
from tests.databases import query, table_names

ACT = Act(request_id="request", origin="127.0.0.1")
LIFETIME = 600
TERMS = SessionTerms(idle_lifetime=1_000, absolute_lifetime=5_000)


ROLES = ("clerk", "manager", "auditor")


def admit_all(_: GrantSnapshot) -> None:
    """For tests in which nothing is too large."""


async def create_user(stores: Stores, username: str = "carol", *roles: str) -> Account:
    account = NewAccount(new_id(), AccountKind.USER, username, username, roles, "$argon2id$...")
    return await stores.accounts.create(account, None, ACT)


async def create_service(stores: Stores, username: str = "orders", *roles: str) -> tuple[Account, str]:
    """-> account, the id of its secret."""
    account = NewAccount(new_id(), AccountKind.SERVICE, username, username, roles, None)
    grant_id = new_id()
    first = NewCredential(grant_id, GrantKind.CLIENT_SECRET, secret_hash=secrets.token_bytes(32))
    return await stores.accounts.create(account, first, ACT), grant_id


async def use_secret(stores: Stores, grant_id: str, **changes: object) -> GrantSnapshot:
    use = replace(CredentialUse("internal", (), LIFETIME), **changes)  # type: ignore[arg-type]
    return await stores.credentials.use(grant_id, proves(use), admit_all, "client_secret.use", ACT)


def proves(use: CredentialUse) -> Prove:
    """As a log-in whose secret fits."""

    def prove(record: CredentialRecord | None) -> CredentialUse:
        if record is None or not record.is_live:
            raise Rejected(Cause.CREDENTIAL_ENDED)
        return use

    return prove


async def find_credential(stores: Stores, grant_id: str) -> CredentialRecord | None:
    """What a log-in compares with."""
    found: list[CredentialRecord | None] = []

    def look(record: CredentialRecord | None) -> CredentialUse:
        found.append(record)
        raise Rejected(Cause.SECRET_WRONG)

    with pytest.raises(Rejected):
        await stores.credentials.use(grant_id, look, admit_all, "client_secret.use", ACT)
    return found[0]


async def create_credential(stores: Stores, account: Account, kind: GrantKind, **changes: object) -> Credential:
    new = replace(NewCredential(new_id(), kind), **changes)  # type: ignore[arg-type]
    if kind in (GrantKind.CLIENT_SECRET, GrantKind.API_KEY):
        new = replace(new, secret_hash=secrets.token_bytes(32))
    return await stores.credentials.create(by_id(account.account_id), new, ACT)


class TooLarge:
    """An Admit that lets nothing through, and keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[GrantSnapshot] = []

    def __call__(self, snapshot: GrantSnapshot) -> None:
        self.seen.append(snapshot)
        raise TokenTooLarge()


def new_session(account: Account, **changes: object) -> NewSession:
    session = NewSession(
        grant_id=new_id(),
        account_id=account.account_id,
        credential_version=1,
        audiences=("internal",),
        requested_scopes=(),
        refresh_salt=secrets.token_bytes(16),
        access_lifetime=LIFETIME,
        terms=TERMS,
    )
    return replace(session, **changes)  # type: ignore[arg-type]


async def log_in(stores: Stores, account: Account, **changes: object) -> GrantSnapshot:
    return await stores.sessions.open(new_session(account, **changes), admit_all, ACT)


def identity_of(snapshot: GrantSnapshot, key_id: str = "key") -> TokenIdentity:
    return TokenIdentity(
        token_id=new_id(),
        grant_id=snapshot.grant_id,
        account_id=snapshot.account_id,
        generation=snapshot.generation,
        policy_version=snapshot.policy_version,
        key_id=key_id,
        roles=snapshot.roles,
    )


def act_of(snapshot: GrantSnapshot, token_id: str = "", scope: str = "identity.admin") -> Act:
    """An act by the holder of *snapshot*."""
    caller = Caller(snapshot.account_id, snapshot.grant_id, token_id or new_id(), snapshot.generation, scope)
    return replace(ACT, caller=caller)


def by_id(account_id: str) -> AccountRef:
    return AccountRef(account_id=account_id)


async def entries(stores: Stores) -> list[tuple[int, EntryKind, str, int, int]]:
    found = await stores.revocations.entries_since(0, 1_000)
    return [(version, entry.kind, entry.name, entry.minimum, entry.expire_time) for version, entry in found]


def dump(url: str, *but_tables: str) -> dict[str, list[tuple[object, ...]]]:
    """Every row of the database, but those of some tables."""
    return {
        name: sorted(query(url, f"SELECT * FROM {name}"), key=repr)
        for name in table_names(url)
        if name not in but_tables
    }


def audited(url: str) -> list[str]:
    """The actions and outcomes in the audit log, in order, without the fixture's own roles."""
    rows = query(url, "SELECT action, outcome FROM audit_events ORDER BY event_id")
    return [f"{action} {outcome}" for action, outcome in rows if action != "role.create"]


def count_rows(url: str, table: str) -> int:
    condition = " WHERE action != 'role.create'" if table == "audit_events" else ""  # the fixture's own roles
    [(count,)] = query(url, f"SELECT count(*) FROM {table}{condition}")
    return int(count)


async def add_key(stores: Stores, name: str = "key") -> SigningKeyRecord:
    record = SigningKeyRecord(name, KeyState.ACTIVE, bytes(32), bytes(32), b"sealed", Seconds(1))
    return await stores.signing_keys.add_active(record, ACT)
