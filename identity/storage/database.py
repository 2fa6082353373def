"""Opens the database, and every store over it."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from identity.domain.meters import Meter, NoMeter
from identity.storage.access import Access
from identity.storage.metered import MeteredAccess
from identity.storage.sql.accounts import SqlAccountStore
from identity.storage.sql.audit import SqlAuditStore
from identity.storage.sql.audit_seals import SqlAuditSealStore
from identity.storage.sql.credentials import SqlCredentialStore
from identity.storage.sql.fence import SqlFenceStore
from identity.storage.sql.grants import SqlGrantStore
from identity.storage.sql.leases import SqlLeaseStore
from identity.storage.sql.revocations import SqlRevocationStore
from identity.storage.sql.roles import SqlRoleStore
from identity.storage.sql.sealed import SqlSealedStore
from identity.storage.sql.session_selection import SqlSessionSelection
from identity.storage.sql.sessions import SqlSessionStore
from identity.storage.sql.signing_keys import SqlSigningKeyStore
from identity.storage.sql.sweep import SqlSweeper
from identity.storage.sql.throttle import SqlThrottleStore
from identity_client.clock import Clock, SystemClock
from identity_client.errors import DependencyDown

DEFAULT_CONNECTIONS = 12


class Stores:
    """Every store of one database."""

    def __init__(self, access: Access, clock: Clock) -> None:
        self._access = access
        self.accounts = SqlAccountStore(access)
        self.roles = SqlRoleStore(access)
        self.sessions = SqlSessionStore(access)
        self.credentials = SqlCredentialStore(access)
        self.grants = SqlGrantStore(access)
        self.session_selection = SqlSessionSelection(access)
        self.sweeper = SqlSweeper(access)
        self.revocations = SqlRevocationStore(access)
        self.signing_keys = SqlSigningKeyStore(access)
        self.sealed = SqlSealedStore(access)
        self.fence = SqlFenceStore(access)
        self.leases = SqlLeaseStore(access)
        self.audit = SqlAuditStore(access, clock)
        self.throttle = SqlThrottleStore(access)
        self.audit_seals = SqlAuditSealStore(access)

    def set_doorbell(self, ring: Callable[[], None]) -> None:
        """Have *ring* called, on the event loop, when a revocation was committed: here at once, elsewhere soon."""
        self._access.set_doorbell(ring)

    async def close(self) -> None:
        """Finish what waits and close every connection."""
        await self._access.close()


def is_postgres(url: str) -> bool:
    """Whether *url* is that of a PostgreSQL; else it is that of an SQLite file."""
    return url.startswith("postgresql")


async def open_stores(
    url: str, clock: Clock, connections: int = DEFAULT_CONNECTIONS, meter: Meter | None = None
) -> Stores:
    """Open. An SQLite file is created and brought up to date; a PostgreSQL must have been (`identity migrate`), and
    gets at most *connections* connections. Raises DependencyDown, ConfigurationError (its schema is too old).
    """
    access = await _open_postgres(url, clock, connections) if is_postgres(url) else _open_sqlite(url, clock)
    return Stores(MeteredAccess(access, meter or NoMeter()), clock)


async def migrate_database(url: str) -> None:
    """Bring the schema up to date. Raises DependencyDown."""
    if is_postgres(url):
        from identity.storage.postgres import migrate_postgres

        await migrate_postgres(url)
    else:
        await _open_sqlite(url, SystemClock()).close()


async def _open_postgres(url: str, clock: Clock, connections: int) -> Access:
    from identity.storage.postgres import PostgresAccess  # loaded only where it is used, like its driver

    access = PostgresAccess(url, clock, connections)
    try:
        await access.check_schema()
        await access.warn_of_losses()
    except BaseException:
        await access.close()
        raise
    return access


def _open_sqlite(url: str, clock: Clock) -> Access:
    from identity.storage.sqlite import SqliteAccess

    try:
        return SqliteAccess(url, clock)
    except (DBAPIError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        raise DependencyDown(f"The database {make_url(url).database} cannot be opened: {cause}") from error
