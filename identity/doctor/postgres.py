"""What `identity doctor` finds of PostgreSQL: whether it can lose what the service has acknowledged."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection

from ..storage.durability import Durability, read_durability
from .findings import Finding, Severity

_CHECK = "durability"


def examine_durability(connection: Connection) -> list[Finding]:
    """*connection*: to PostgreSQL."""
    held = read_durability(connection)
    findings = [Finding(_CHECK, Severity.ERROR, found, advice) for found, advice in held.losses()]
    findings += [*_commits(held), *_followers(held)]
    return findings or [Finding(_CHECK, Severity.OK, "what is acknowledged is on the disk")]


def _commits(held: Durability) -> Iterator[Finding]:
    """The service's own commits wait in any case, so this endangers only what others write."""
    if held.synchronous_commit in ("off", "local", "remote_write"):
        found = f"synchronous_commit is {held.synchronous_commit} for this role and database, or for the server"
        advice = (
            "The service waits for the disk all the same; a restore or a statement by hand does not. Set it to on: see "
            "SELECT * FROM pg_db_role_setting, and ALTER ROLE or ALTER DATABASE ... RESET synchronous_commit."
        )
        yield Finding(_CHECK, Severity.WARNING, found, advice)


def _followers(held: Durability) -> Iterator[Finding]:
    if held.follower_count and not held.has_synchronous_standby:
        found = f"{held.follower_count} servers follow this one, and no commit waits for any of them"
        advice = (
            "Name one in synchronous_standby_names, or run `identity fence` whenever one takes over: it may lack the "
            "last revocations."
        )
        yield Finding(_CHECK, Severity.WARNING, found, advice)
