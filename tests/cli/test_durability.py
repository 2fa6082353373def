"""What PostgreSQL has acknowledged to the service is on the disk, whatever is set; where it cannot be, that is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest
from sqlalchemy import Connection, func, select

from identity.config import Settings
from identity.doctor import Finding, Patient, Severity, examine
from identity.storage.database import migrate_database, open_stores
from identity.storage.postgres import PostgresAccess
from identity.storage.sql.common import Moment
from tests.clients.issuer import FixedClock
from tests.postgres_server import PostgresServer, in_own_loop

FOLLOWED = ("wal_level=replica", "max_wal_senders=2")


@pytest.fixture(scope="module")
def sound() -> Iterator[PostgresServer]:
    server = PostgresServer(durable=True, settings=FOLLOWED)
    yield server
    server.stop()


@pytest.fixture
async def url(sound: PostgresServer) -> AsyncIterator[str]:
    """Of a database of its own with the newest schema, on a server that keeps what it commits."""
    address = f"{sound.address}/postgres"
    run(address, "CREATE DATABASE identity")
    await migrate_database(f"{sound.address}/identity")
    yield f"{sound.address}/identity"
    run(address, "DROP DATABASE identity WITH (FORCE)")
    run(address, "ALTER ROLE identity RESET ALL")


def run(url: str, sql: str) -> None:
    """One statement that counts no rows."""

    async def run_it() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(sql)
        await connection.close()

    in_own_loop(run_it)


async def durability(url: str) -> list[Finding]:
    findings = await examine(Patient(Settings(database=url), [], FixedClock(time.time())))
    return [finding for finding in findings if finding.check == "durability"]


_SETTING = select(func.current_setting("synchronous_commit"))


async def synchronous_commit(url: str) -> set[str]:
    """What is in force where the service writes, issues, reads and looks up."""
    access = PostgresAccess(url, FixedClock(time.time()), connections=3)

    def look(connection: Connection, _: Moment) -> str:
        return str(connection.execute(_SETTING).scalar())

    try:
        return {await way(look) for way in (access.write, access.issue, access.read, access.look_up)}
    finally:
        await access.close()


@pytest.mark.parametrize("whose", ["DATABASE", "ROLE"])
@pytest.mark.parametrize("value", ["off", "local", "remote_write"])
async def test_our_commits_wait_for_the_disk_and_the_setting_of_a_role_or_database_is_told(
    url: str, whose: str, value: str
) -> None:
    run(url, f"ALTER {whose} identity SET synchronous_commit = {value}")
    assert await synchronous_commit(url) == {"on"}
    [finding] = await durability(url)
    assert finding.severity is Severity.WARNING
    assert finding.found.startswith(f"synchronous_commit is {value} ")
    assert "RESET synchronous_commit" in finding.advice


async def test_what_waits_for_more_than_the_disk_is_left_alone(url: str) -> None:
    run(url, "ALTER DATABASE identity SET synchronous_commit = remote_apply")
    assert await synchronous_commit(url) == {"remote_apply"}
    assert [finding.severity for finding in await durability(url)] == [Severity.OK]


async def test_a_follower_for_which_no_commit_waits_is_told(url: str) -> None:
    assert [finding.severity for finding in await durability(url)] == [Severity.OK]
    follower = await asyncpg.connect(url, server_settings={"replication": "database"})
    try:
        [finding] = await durability(url)
    finally:
        await follower.close()
    assert finding.severity is Severity.WARNING
    assert finding.found.startswith("1 servers follow")
    assert "identity fence" in finding.advice


async def test_a_server_that_can_lose_what_it_acknowledged_is_an_error_and_told_at_the_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = await asyncio.to_thread(PostgresServer, durable=False, settings=("full_page_writes=off",))
    url = f"{server.address}/postgres"
    try:
        await migrate_database(url)
        findings = await durability(url)
        await (await open_stores(url, FixedClock(time.time()))).close()
    finally:
        await asyncio.to_thread(server.stop)
    assert [(each.severity, each.found.split(":")[0]) for each in findings] == [
        (Severity.ERROR, "fsync is off"),
        (Severity.ERROR, "full_page_writes is off"),
    ]
    assert all("postgresql.conf" in each.advice for each in findings)
    assert all(each.found in caplog.text for each in findings)


async def test_a_sound_server_starts_without_a_word(url: str, caplog: pytest.LogCaptureFixture) -> None:
    await (await open_stores(url, FixedClock(time.time()))).close()
    assert caplog.text == ""
