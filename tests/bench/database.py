"""Where the service under test keeps its data: SQLite in a file, or the PostgreSQL that IDENTITY_BENCH_DATABASE names.

PostgreSQL's driver and starter are loaded only where it is measured.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

VARIABLE = "IDENTITY_BENCH_DATABASE"
"""postgresql://USER@HOST:PORT of a server whose user may create databases."""

OWN = "postgresql"
"""In its place: start one for this run."""

_NUMBERS = count(1)


@contextmanager
def chosen(address: str) -> Iterator[None]:
    """Have the benches use the server at *address*, OWN for a fresh one, or SQLite if it is empty."""
    if address != OWN:
        os.environ[VARIABLE] = address
        yield
        return
    from tests.postgres_server import PostgresServer

    server = PostgresServer()
    os.environ[VARIABLE] = server.address
    try:
        yield
    finally:
        server.stop()


@contextmanager
def empty(folder: Path) -> Iterator[str]:
    """The URL of an empty database; its schema is the newest, or is made when it is opened."""
    address = os.environ.get(VARIABLE, "")
    if not address:
        yield f"sqlite:///{folder}/identity.db"
        return
    from identity.storage.postgres import migrate_postgres

    name = f"identity_bench_{os.getpid()}_{next(_NUMBERS)}"
    execute(f"{address}/postgres", f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        asyncio.run(migrate_postgres(f"{address}/{name}"))
        yield f"{address}/{name}"
    finally:
        execute(f"{address}/postgres", f"DROP DATABASE {name} WITH (FORCE)")


def is_sqlite(url: str) -> bool:
    return url.startswith("sqlite")


def durability(url: str) -> str:
    """Which database, and what its commits withstand: stands beside every rate."""
    if is_sqlite(url):
        return "SQLite, WAL, synchronous=FULL"

    async def ask(connection: Any) -> str:
        version = await connection.fetchval("SHOW server_version")
        settings = [f"{name}={await connection.fetchval(f'SHOW {name}')}" for name in ("fsync", "synchronous_commit")]
        return f"PostgreSQL {version.split()[0]}, {', '.join(settings)}"

    said: str = _on_postgres(url, ask)
    return said


def insert(url: str, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Put *rows* into *table* past the service: a million of them in seconds."""
    if not is_sqlite(url):
        _on_postgres(url, lambda driver: driver.copy_records_to_table(table, records=rows, columns=columns))
        return
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        places = ", ".join("?" * len(columns))
        connection.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", rows)


def execute(url: str, sql: str) -> None:
    """Run one statement past the service."""
    if not is_sqlite(url):
        _on_postgres(url, lambda driver: driver.execute(sql))
        return
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute(sql)


def megabytes(url: str) -> float:
    """How large the database is, in MB of 10^6 bytes."""
    if is_sqlite(url):
        return Path(url.removeprefix("sqlite:///")).stat().st_size / 1e6
    size: int = _on_postgres(url, lambda driver: driver.fetchval("SELECT pg_database_size(current_database())"))
    return size / 1e6


def _on_postgres(url: str, work: Callable[[Any], Awaitable[Any]]) -> Any:
    import asyncpg

    async def run() -> Any:
        connection = await asyncpg.connect(url)
        try:
            return await work(connection)
        finally:
            await connection.close()

    return asyncio.run(run())
