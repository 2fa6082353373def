"""The migrations make the very tables that the code uses, and carry every row along."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table, create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from identity.config import ConfigurationError
from identity.domain.audit_events import AuditFilter, Personal
from identity.domain.audit_seals import SealKey
from identity.domain.grants import CredentialTerms
from identity.domain.sealer import Sealer
from identity.domain.secrets import hash_secret
from identity.domain.values import EndReason, Standing, TokenIdentity
from identity.storage import schema
from identity.storage.database import Stores, open_stores
from identity.storage.inspection import integrity_problems, look
from identity.storage.postgres import migrate_postgres
from identity.storage.sql.audit_check import check_audit
from identity.storage.tables import metadata
from tests.clients.issuer import FixedClock, new_id
from tests.contract.builders import (
    ACT,
    LIFETIME,
    add_key,
    admit_all,
    by_id,
    count_rows,
    create_user,
    dump,
    find_credential,
    use_secret,
)
from tests.databases import KINDS, execute, is_postgres, query
from tests.postgres_server import Databases

SCRIPTS = str(Path(schema.__file__).with_name("migrations"))


async def test_migrated_tables_are_those_of_the_code(url: str, clock: FixedClock) -> None:
    await (await opened(url, clock)).close()
    assert await look(url, differences) == []


def differences(connection: Connection) -> list[object]:
    """Between the tables of a database and those of the code."""
    return list(compare_metadata(MigrationContext.configure(connection), metadata))


def test_the_newest_migration_is_the_one_that_the_code_expects() -> None:
    assert ScriptDirectory(SCRIPTS).get_current_head() == schema.REVISION


# -- from the first release with data in place -----------------------------------------------------------------------

NOW = 1_900_000_000
SALT = b"salt" * 4
SECRET = b"s" * 32


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database, without a schema."""
    if request.param == "sqlite":
        path = tmp_path / "identity.db"
        path.touch(0o600)
        yield f"sqlite:///{path}"
        return
    databases: Databases = request.getfixturevalue("databases")
    url = databases.create_empty()
    yield url
    databases.drop(url)


async def opened(url: str, clock: FixedClock) -> Stores:
    """Migrated, as each kind of database is."""
    if is_postgres(url):
        await migrate_postgres(url)
    return await open_stores(url, clock)


async def make_first_release(url: str) -> dict[str, str]:
    """A database as the first release left it, with a row of every kind; -> the ids."""
    named = {name: new_id() for name in ("carol", "eve", "orders", "session", "ended", "access", "secret")}

    def fill(connection: Connection) -> None:
        upgrade(connection, "0001")
        for name, rows in first_rows(named).items():
            table = Table(name, MetaData(), autoload_with=connection)
            for row in rows:
                connection.execute(table.insert().values(**row))

    await run(url, fill)
    return named


def upgrade(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", SCRIPTS)
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


async def run(url: str, work: Callable[[Connection], None]) -> None:
    """In one transaction."""
    if is_postgres(url):
        engine = create_async_engine(url.replace("postgresql", "postgresql+asyncpg", 1))
        async with engine.begin() as first:
            await first.run_sync(work)
        await engine.dispose()
    else:
        with create_engine(url, poolclass=NullPool).begin() as connection:
            work(connection)


def first_rows(named: dict[str, str]) -> dict[str, list[dict[str, object]]]:
    times = {"create_time": NOW - 100, "update_time": NOW - 100}
    account = {"generation": 3, "credential_version": 1, **times}
    user = {"kind": "user", "password_hash": "$argon2id$...", "disable_time": None, **account}
    service = {"kind": "service", "password_hash": None, "disable_time": None, **account}
    none = dict.fromkeys(("end_time", "end_reason", "secret_hash", "salt", "audience", "requested_scopes"))
    session = {
        **none,
        "kind": "session",
        "create_time": NOW - 100,
        "latest_expire_time": NOW + 500,
        "audience": "internal",
        "requested_scopes": "",
        "authentication_time": NOW - 100,
        "count": 2,
        "salt": SALT,
        "grace_until": NOW - 50,
        "idle_lifetime": 1_000,
        "expire_time": NOW + 900,
        "absolute_expire_time": NOW + 4_900,
    }
    secret = {**none, "kind": "client_secret", "create_time": NOW - 100, "latest_expire_time": 0}
    return {
        "accounts": [
            _account(named["carol"], "carol", "clerk night-watch", user),
            _account(named["eve"], "eve", "admin", user | {"disable_time": NOW - 10}),
            _account(named["orders"], "orders", "peer", service),
        ],
        "grants": [
            {"grant_id": named["session"], "account_id": named["carol"], **session},
            {"grant_id": named["access"], "account_id": named["carol"], **session, "salt": None},
            {
                "grant_id": named["ended"],
                "account_id": named["eve"],
                **session,
                "end_time": NOW,
                "end_reason": "revoked",
            },
            {"grant_id": named["secret"], "account_id": named["orders"], **secret, "secret_hash": hash_secret(SECRET)},
        ],
        "feed_head": [{"id": 1, "epoch": "e" * 16, "version": 7}],
        "revocations": [
            {"version": 7, "kind": 2, "name": named["ended"], "minimum": 0, "expire_time": NOW + 1_000},
        ],
        "audit_events": [
            {"time_ms": 1, "action": "session.open", "outcome": "ok", "origin": "", "request_id": "", "note": "kept"},
        ],
    }


def _account(account_id: str, name: str, roles: str, others: Mapping[str, object]) -> dict[str, object]:
    return {"account_id": account_id, "username": name, "normalised_username": name, "roles": roles, **others}


@pytest.fixture
async def upgraded(url: str, clock: FixedClock) -> AsyncIterator[tuple[Stores, dict[str, str]]]:
    named = await make_first_release(url)
    stores = await opened(url, clock)
    yield stores, named
    await stores.close()


Upgraded = tuple[Stores, dict[str, str]]


async def test_an_upgraded_database_has_the_tables_of_a_new_one(upgraded: Upgraded, url: str) -> None:
    assert await look(url, differences) == []
    assert await look(url, integrity_problems) == []


async def test_sessions_go_on_through_the_upgrade(upgraded: Upgraded, clock: FixedClock) -> None:
    stores, named = upgraded
    held = await stores.sessions.find(named["session"])
    assert held is not None
    assert (held.count, held.salt, held.expire_time) == (2, SALT, NOW + 900)
    rotated = await stores.sessions.rotate(held, 60, LIFETIME, admit_all, ACT)
    assert rotated is not None
    assert (rotated.roles, rotated.generation, rotated.policy_version) == (("clerk", "night-watch"), 3, 1)
    listed = await stores.sessions.list_page(named["carol"], None, 10)
    assert {found.session_id: (found.has_refresh, found.audiences) for found in listed} == {
        named["session"]: (True, ("internal",)),
        named["access"]: (False, ("internal",)),
    }
    assert (await stores.grants.end_session(named["carol"], named["access"], EndReason.LOGGED_OUT, ACT)).version == 8


async def test_secrets_log_in_after_the_upgrade_and_are_listed(upgraded: Upgraded) -> None:
    stores, named = upgraded
    record = await find_credential(stores, named["secret"])
    assert record is not None
    assert record.is_live
    assert record.secret_hash == hash_secret(SECRET)
    snapshot = await use_secret(stores, named["secret"])
    assert (snapshot.scopes, snapshot.client_id) == (("identity.introspect", "identity.watch"), "orders")
    [listed] = await stores.credentials.list_page(by_id(named["orders"]), None, 10)
    assert (listed.grant_id, listed.terms) == (named["secret"], CredentialTerms())


async def test_every_role_that_was_borne_is_a_role_after_the_upgrade(upgraded: Upgraded) -> None:
    stores, named = upgraded
    roles = {role.name: (role.scopes, role.is_built_in) for role in await stores.roles.list_page("", 10)}
    assert roles == {
        "admin": (("identity.admin", "identity.admin.read", "identity.audit"), True),
        "clerk": ((), False),
        "night-watch": ((), False),
        "peer": (("identity.introspect", "identity.watch"), True),
    }
    account, _ = await stores.accounts.set_roles(by_id(named["carol"]), ("clerk",), ACT)
    assert account.generation == 4
    assert not account.password_change_required


async def test_what_was_revoked_or_disabled_stays_so_through_the_upgrade(upgraded: Upgraded, url: str) -> None:
    stores, named = upgraded
    epoch, version, live = await stores.revocations.live_entries()
    assert (epoch, version, [entry.name for batch in live for entry in batch]) == ("e" * 16, 7, [named["ended"]])
    assert (await stores.accounts.get(by_id(named["eve"]))).disable_time == NOW - 10
    held = await stores.sessions.find(named["ended"])
    assert held is not None
    assert held.end_time == NOW
    assert count_rows(url, "audit_events") == 1


async def test_tokens_of_the_first_release_hold_after_the_upgrade(upgraded: Upgraded) -> None:
    stores, named = upgraded
    await add_key(stores)
    old = TokenIdentity(new_id(), named["session"], named["carol"], 3, 1, "key", ("clerk", "night-watch"))
    assert await stores.revocations.standings([old]) == [Standing.LIVE]


async def test_an_old_audit_log_is_kept_numbered_without_gaps_and_sealed(url: str, clock: FixedClock) -> None:
    await make_first_release(url)
    refused = "(9, 2, 'session.open', 'PASSWORD_WRONG', '192.0.2.7', 'request', 'name 1', 'key')"
    names = "event_id, time_ms, action, outcome, origin, request_id, note, refusal_key"
    execute(url, f"INSERT INTO audit_events ({names}) VALUES {refused}")
    stores = await opened(url, clock)
    await Sealer(stores.audit_seals, SealKey(bytes(32)), 0, clock).seal()
    events = (await stores.audit.list_page(AuditFilter(), None, 10)).events
    await create_user(stores, "dave")
    [newest] = (await stores.audit.list_page(AuditFilter(), None, 1)).events
    assert newest.event_id == 3
    await stores.close()
    assert [(event.event_id, event.outcome, event.personal) for event in events] == [
        (2, "PASSWORD_WRONG", Personal("192.0.2.7", "", "name 1")),
        (1, "ok", Personal("", "", "kept")),
    ]
    report = await look(url, lambda connection: check_audit(connection, SealKey(bytes(32))))
    assert report.problems == []


async def test_the_program_before_goes_on_with_the_feed_and_its_entries_are_nobodys_share(
    url: str, clock: FixedClock
) -> None:
    named = await make_first_release(url)
    await run(url, lambda connection: upgrade(connection, "0002"))
    before = {version: insert_as_before(url, version, named["session"]) for version in (8, 9)}
    stores = await opened(url, clock)
    after = {version: insert_as_before(url, version, named["session"]) for version in (10, 11)}
    execute(url, "UPDATE feed_head SET version = 11")
    changes = {version: entry.name for version, entry in await stores.revocations.entries_since(7, 1_000)}
    assert changes == before | after
    ended = await stores.grants.end(named["session"], EndReason.LOGGED_OUT, "", ACT)
    assert (ended.grant_count, ended.version) == (1, 12)
    owners = query(url, "SELECT account_id FROM revocations WHERE account_id IS NOT NULL")
    assert owners == [(named["carol"],)]
    await stores.close()


def insert_as_before(url: str, version: int, grant_id: str) -> str:
    """Revoke a token of a grant as the program of the schema 0002 does; -> its id."""
    token_id = new_id()
    columns = "version, kind, name, minimum, expire_time, grant_id"
    execute(
        url, f"INSERT INTO revocations ({columns}) VALUES ({version}, 1, '{token_id}', 0, {NOW + 500}, '{grant_id}')"
    )
    return token_id


async def test_an_upgrade_that_fails_leaves_the_old_database(
    url: str, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_first_release(url)
    before = dump(url)
    monkeypatch.setattr("secrets.token_hex", None)  # the migration's last part needs it
    with pytest.raises(TypeError):
        await opened(url, clock)
    assert dump(url) == before


async def test_a_postgres_with_an_old_schema_is_not_served_and_a_newer_one_is(
    databases: Databases, clock: FixedClock
) -> None:
    url = databases.create_empty()
    await make_first_release(url)
    with pytest.raises(ConfigurationError, match="identity migrate"):
        await open_stores(url, clock)
    await asyncio.gather(*(migrate_postgres(url) for _ in range(3)))  # one does it, the others find it done
    await (await open_stores(url, clock)).close()
    execute(url, "UPDATE alembic_version SET version_num = '9999'")
    await (await open_stores(url, clock)).close()  # while the replicas of the next release come up one by one
    databases.drop(url)
