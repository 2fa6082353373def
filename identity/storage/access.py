"""How stores reach the database: one way to read, one way to write, and the time of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from identity.storage.sql.common import Moment

T = TypeVar("T")

Work = Callable[[Connection, Moment], T]
"""A piece of a store: gets the connection of its transaction, and the time at which it runs. It may be run again from
its beginning, where the database made it give way to another."""


class Access(Protocol):
    """What each kind of database offers to the stores. Everything raises DependencyDown and Overloaded."""

    async def read(self, work: Work[T], *, is_long: bool = False) -> T:
        """Run *work* on one instant of the database. *is_long*: it may take some seconds."""

    async def look_up(self, work: Work[T]) -> T:
        """The same for *work* of a single statement, which sees one instant by itself, and is built only once."""

    async def write(self, work: Work[T], *, is_long: bool = False) -> T:
        """Run *work* in a transaction; return once it is durable. A caller that stops waiting does not stop it.
        *is_long*: it may take some seconds.

        SQLite runs one at a time. PostgreSQL runs several, so what a piece of work decides by must be held: see
        sql.rows.hold_grant, hold_account and take_turn, and sql.issuing.note_use, which confirms what was read. Rows
        are held in the order accounts, grants, feed head.
        """

    async def issue(self, work: Work[T]) -> T:
        """The same for *work* that reads what it decides by and holds none of it, and as the last thing confirms and
        writes all of it by sql.issuing.note_use: on PostgreSQL that needs no transaction.

        Each statement runs by itself then; whatever else is to be written calls for a transaction in time
        (sql.common.need_transaction), and *work* begins again in one.
        """

    def set_doorbell(self, ring: Callable[[], None]) -> None:
        """Have *ring* called, on the event loop, when a revocation was committed: here at once, elsewhere soon."""

    async def close(self) -> None:
        """Finish what waits and close every connection."""
