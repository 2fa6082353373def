"""Where the service under test keeps its data: SQLite in a file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path


@contextmanager
def empty(folder: Path) -> Iterator[str]:
    """The URL of an empty database."""
    yield f"sqlite:///{folder}/identity.db"


def is_sqlite(settings: str) -> bool:
    """Whether that is what `durability` says."""
    return settings.startswith("SQLite")


def durability(url: str) -> str:
    """Which database, and what its commits withstand: stands beside every rate."""
    return "SQLite, WAL, synchronous=FULL"


def insert(url: str, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Put *rows* into *table* past the service: a million of them in seconds."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        places = ", ".join("?" * len(columns))
        connection.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", rows)


def execute(url: str, sql: str) -> None:
    """Run one statement past the service."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute(sql)
