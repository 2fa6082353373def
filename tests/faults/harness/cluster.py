"""Two or three replicas on one PostgreSQL, each a process: what a test kills, stops and looks into."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from identity.config import Settings
from identity.domain.refresh_tokens import SALT_BYTES, RefreshTokens
from identity.house import LOCAL_ACT, open_house
from identity.storage.postgres import migrate_postgres
from identity.storage.sealing import MasterKey
from identity_client import aio
from identity_client.clock import SystemClock
from identity_client.trust.entries import id_text
from tests.faults.harness.replica import Replica
from tests.postgres_server import PostgresServer, query
from tests.rpc.api import ADMIN_PASSWORD, USER_PASSWORD

SERVICES = ("orders", "billing")
SESSIONS_PER_ACCOUNT = 10
IDLE_SECONDS = 100_000


@dataclass(frozen=True, slots=True)
class Opened:
    """A session that was put into the database, and the refresh token that its client would hold."""

    session_id: str
    account_id: str
    audience: str
    refresh_token: str


class Cluster:
    """*replicas* serve one database; they share the master key, and nothing else."""

    def __init__(self, postgres: PostgresServer, url: str, folder: Path, secrets_of: dict[str, str]) -> None:
        self.postgres = postgres
        self.url = url
        self.replicas: list[Replica] = []
        self._folder = folder
        self._secrets = secrets_of
        self._refresh_tokens = RefreshTokens(MasterKey.from_file(folder / "master.key").derive("refresh"))

    def add_replica(self, **settings: int) -> Replica:
        """A further one, not started."""
        lines = [
            'issuer = "https://identity.localhost"',
            'http_listen = "127.0.0.1:0"',
            f'database = "{self.url}"',
            f'master_key_file = "{self._folder / "master.key"}"',
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        replica = Replica(self._folder, f"replica{len(self.replicas)}", "\n".join(lines))
        self.replicas.append(replica)
        return replica

    def connection(self, first: int = 0, name: str = "orders") -> aio.Connection:
        """How the service *name* reaches the cluster: at every replica, beginning with the one at place *first*."""
        addresses = [replica.address for replica in self.replicas]
        return aio.Connection(",".join(addresses[first:] + addresses[:first]), name, self._secrets[name])

    async def open_sessions(self, count: int, audience: str = "internal") -> list[Opened]:
        """Put *count* sessions into the database, SESSIONS_PER_ACCOUNT of each account, at once."""
        now = int(time.time())
        accounts = [id_text(os.urandom(16)) for _ in range(0, count, SESSIONS_PER_ACCOUNT)]
        salts = [secrets.token_bytes(SALT_BYTES) for _ in range(count)]
        opened = []
        for number, salt in enumerate(salts):
            session_id = id_text(os.urandom(16))
            token = self._refresh_tokens.text(session_id, 0, salt)
            opened.append(Opened(session_id, accounts[number // SESSIONS_PER_ACCOUNT], audience, token))
        await self._copy("accounts", [_account_row(account_id, now) for account_id in accounts])
        await self._copy("grants", [_session_row(each, salt, now) for each, salt in zip(opened, salts, strict=True)])
        return opened

    async def _copy(self, table: str, rows: list[dict[str, Any]]) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            records = [tuple(row.values()) for row in rows]
            await connection.copy_records_to_table(table, records=records, columns=list(rows[0]))
        finally:
            await connection.close()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of one statement, by a connection of its own."""
        return query(self.url, sql)

    def ended(self) -> set[str]:
        """The sessions that the database holds for ended."""
        rows = self.query("SELECT grant_id FROM grants WHERE kind = 'session' AND end_time IS NOT NULL")
        return {session_id for (session_id,) in rows}

    def half_done(self) -> list[tuple[Any, ...]]:
        """Acts of which only a part is in the database: the end of a session without its audit row or its entry in the
        feed, or either without the end; and rotations that differ in number from their audit rows."""
        return self.query(_HALF_DONE)

    def unplanned_errors(self) -> list[str]:
        """What the replicas' logs tell that nobody had foreseen."""
        return [line for replica in self.replicas for line in replica.unplanned_errors()]

    async def start(self) -> None:
        """Start every replica, at the same moment."""
        await asyncio.gather(*(asyncio.to_thread(replica.start) for replica in self.replicas))

    async def stop(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(replica.stop) for replica in self.replicas))


async def new_database(postgres: PostgresServer) -> str:
    """-> the URL of one with the newest schema and without rows."""
    name = f"faults_{secrets.token_hex(4)}"
    query(f"{postgres.address}/postgres", f"CREATE DATABASE {name}")
    await migrate_postgres(f"{postgres.address}/{name}")
    return f"{postgres.address}/{name}"


@asynccontextmanager
async def cluster(postgres: PostgresServer, folder: Path, replicas: int = 2, **settings: int) -> AsyncIterator[Cluster]:
    """A running cluster over a new database of *postgres*, with the admin `root`, the user `carol` and SERVICES."""
    url = await new_database(postgres)
    made = Cluster(postgres, url, folder, await _populate(url, folder))
    for _ in range(replicas):
        made.add_replica(**settings)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


async def _populate(url: str, folder: Path) -> dict[str, str]:
    """Make the accounts; -> the secrets of the services."""
    MasterKey.generate(folder / "master.key")
    settings = Settings(database=url, master_key_file=str(folder / "master.key"), hash_memory_kib=64, hash_iterations=1)
    house = await open_house(settings, SystemClock())
    try:
        await house.accounts.create_user("root", ADMIN_PASSWORD, ("admin",), LOCAL_ACT)
        await house.accounts.create_user("carol", USER_PASSWORD, (), LOCAL_ACT)
        return {name: (await house.accounts.create_service(name, ("peer",), LOCAL_ACT))[2] for name in SERVICES}
    finally:
        await house.close()


def _account_row(account_id: str, now: int) -> dict[str, Any]:
    return {
        "account_id": account_id,
        "kind": "user",
        "username": account_id,
        "normalised_username": account_id.lower() + account_id,  # unique although ids differ in case alone
        "roles": "",
        "generation": 1,
        "credential_version": 1,
        "create_time": now,
        "update_time": now,
    }


def _session_row(opened: Opened, salt: bytes, now: int) -> dict[str, Any]:
    return {
        "grant_id": opened.session_id,
        "account_id": opened.account_id,
        "kind": "session",
        "create_time": now,
        "last_used_time": now,
        "latest_expire_time": now + 600,  # so that its end is told to peers
        "expire_time": now + IDLE_SECONDS,
        "audiences": opened.audience,
        "requested_scopes": "",
        "authentication_time": now,
        "count": 0,
        "salt": salt,
        "grace_until": 0,
        "idle_lifetime": IDLE_SECONDS,
        "absolute_expire_time": now + IDLE_SECONDS,
        "ip_address": "192.0.2.7",
        "user_agent": "",
    }


_HALF_DONE = """
WITH rows AS (
  SELECT grant_id, count(*) FILTER (WHERE action LIKE 'grant.end.%') AS ends,
    count(*) FILTER (WHERE action = 'session.refresh') AS rotations
  FROM audit_events WHERE outcome = 'ok' AND grant_id IS NOT NULL GROUP BY grant_id
), told AS (
  SELECT name AS grant_id, count(*) AS entries FROM revocations WHERE kind = 2 GROUP BY name
)
SELECT grant_id, end_reason, count, ends, rotations, entries
FROM grants LEFT JOIN rows USING (grant_id) LEFT JOIN told USING (grant_id)
WHERE kind = 'session' AND (
  coalesce(ends, 0) <> (end_time IS NOT NULL)::int
  OR coalesce(entries, 0) <> coalesce(ends, 0)
  OR coalesce(rotations, 0) <> count
)
"""
