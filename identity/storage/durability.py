"""Whether PostgreSQL keeps what it has acknowledged: the settings that trade that for speed, and what to do of each."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

SYNCHRONOUS_COMMIT = (
    "SELECT set_config('synchronous_commit', 'on', false) "
    "WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')"
)
"""Run once on each connection of ours: at its commits the journal is on the disk, whatever is set for the role, the
database or the server. What asks for more (`remote_apply`) stays."""

_SETTINGS = text("SELECT name, reset_val FROM pg_settings WHERE name = ANY(:names)")
_NAMES = ("fsync", "full_page_writes", "synchronous_commit", "synchronous_standby_names")
_FOLLOWERS = text("SELECT count(*) FROM pg_stat_replication")


@dataclass(frozen=True, slots=True)
class Durability:
    """What is set outside our connections."""

    fsync: bool
    full_page_writes: bool
    synchronous_commit: str
    has_synchronous_standby: bool
    follower_count: int

    def losses(self) -> list[tuple[str, str]]:
        """What of the server no connection can make good: what a crash of its machine can cost, and what mends it."""
        found = []
        if not self.fsync:
            found.append(("fsync is off: a crash of the machine loses what was acknowledged, or the database", _FSYNC))
        if not self.full_page_writes:
            found.append(("full_page_writes is off: a crash of the machine can leave torn pages", _FULL_PAGE_WRITES))
        return found


_FSYNC = "Set fsync = on in postgresql.conf and reload. If the machine has crashed meanwhile, restore a backup."
_FULL_PAGE_WRITES = "Set full_page_writes = on in postgresql.conf and reload; a checkpoint later it holds."


def read_durability(connection: Connection) -> Durability:
    """*connection*: to PostgreSQL."""
    held = {row.name: row.reset_val for row in connection.execute(_SETTINGS, {"names": list(_NAMES)})}
    return Durability(
        fsync=held["fsync"] == "on",
        full_page_writes=held["full_page_writes"] == "on",
        synchronous_commit=held["synchronous_commit"],
        has_synchronous_standby=bool(held["synchronous_standby_names"]),
        follower_count=connection.execute(_FOLLOWERS).scalar_one(),
    )
