"""Empty databases of both kinds for tests, and a way into them that is not the service's."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from tests import postgres_server

KINDS = ("sqlite", "postgresql")


def is_postgres(url: str) -> bool:
    return url.startswith("postgresql")


def query(url: str, sql: str) -> list[tuple[Any, ...]]:
    """The rows of one statement, by a connection of its own; what it changed is committed."""
    if is_postgres(url):
        return postgres_server.query(url, sql)
    with closing(sqlite3.connect(path_of(url))) as connection, connection:
        return connection.execute(sql).fetchall()


def execute(url: str, sql: str) -> int:
    """Run one statement; -> how many rows it touched."""
    if is_postgres(url):
        return postgres_server.execute(url, sql)
    with closing(sqlite3.connect(path_of(url))) as connection, connection:
        return connection.execute(sql).rowcount


def table_names(url: str) -> list[str]:
    if is_postgres(url):
        names = query(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    else:
        names = query(url, "SELECT name FROM sqlite_master WHERE type = 'table'")
    return sorted(name for (name,) in names)


def path_of(url: str) -> Path:
    """The file of an SQLite database."""
    return Path(url.removeprefix("sqlite:///"))
