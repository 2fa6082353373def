"""Single statements on PostgreSQL, run by the driver itself: for what happens with every call.

SQLAlchemy's execution takes two to three times the CPU of the driver's own, and a transaction two more round trips.
The statements are SQLAlchemy's all the same, compiled once. Only Access.look_up and Access.issue come here; what needs
a transaction has one, and a Connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import Connection, Dialect, Executable
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.util import await_, greenlet_spawn

from identity.storage.sql.common import CONFIRMS, NeedsTransaction

T = TypeVar("T")

_STATEMENTS = 128
"""More than there are: each is built once, when its module is loaded or first needs it."""


class DirectConnection:
    """As much of a Connection as single statements need: for SELECT, and for one that confirms what was read."""

    dialect: Dialect = PGDialect_asyncpg()  # type: ignore[no-untyped-call]

    def __init__(self, connection: Connection) -> None:
        self._driver: asyncpg.Connection = connection.connection.driver_connection
        self.info = connection.info
        self.is_torn = False

    def execute(self, statement: Any, parameters: Mapping[str, Any] | None = None) -> Rows:
        """Raises whatever the driver raises; NeedsTransaction, so that nothing can be written by half."""
        if not (statement.is_select or CONFIRMS in statement.get_execution_options()):
            raise NeedsTransaction
        return Rows(self._fetch(statement, parameters or {}))

    def in_transaction(self) -> bool:
        return False

    def _fetch(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[asyncpg.Record]:
        sql, names, fixed = _compiled(statement)
        values = [parameters[name] if name in parameters else fixed[name] for name in names]
        self.is_torn = True  # unless it answers: what became of a statement that was left is not known
        try:
            records: Sequence[asyncpg.Record] = await_(self._driver.fetch(sql, *values))
        except asyncpg.PostgresError:
            self.is_torn = False
            raise
        self.is_torn = False
        return records


class Rows:
    """As much of a Result. A record is looked into by name and by place."""

    def __init__(self, records: Sequence[asyncpg.Record]) -> None:
        self._records = records

    def mappings(self) -> Rows:
        return self

    def __iter__(self) -> Iterator[asyncpg.Record]:
        return iter(self._records)

    def all(self) -> Sequence[asyncpg.Record]:
        return self._records

    def first(self) -> asyncpg.Record | None:
        return self._records[0] if self._records else None

    def one(self) -> asyncpg.Record:
        (record,) = self._records
        return record

    def scalar(self) -> Any:
        return self._records[0][0] if self._records else None


async def run_direct(engine: AsyncEngine, work: Callable[[Any], T]) -> T:
    """Run *work* with a DirectConnection. Raises as its execute does, and whatever *work* raises."""

    def run() -> T:
        with engine.sync_engine.connect() as connection:
            direct = DirectConnection(connection)
            try:
                return work(direct)
            finally:
                if direct.is_torn:
                    connection.invalidate()

    return await greenlet_spawn(run)


@lru_cache(_STATEMENTS)
def _compiled(statement: Any) -> tuple[str, Sequence[str], Mapping[str, Any]]:
    """-> the text, the names of what fills its places, and the values that the statement itself holds."""
    compiled: SQLCompiler = statement.compile(dialect=DirectConnection.dialect)
    assert compiled.positiontup is not None  # noqa: S101 - its places are numbered
    fixed = {name: bind.value for bind, name in compiled.bind_names.items() if not bind.required}
    return str(compiled), compiled.positiontup, fixed
