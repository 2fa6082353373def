"""SqlSealedStore: everything in the database that is sealed under the master key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from sqlalchemy import Connection, select, update

from identity import failpoints
from identity.domain.values import Act
from identity.storage.access import Access
from identity.storage.sealing import key_number, secret_context, signing_key_context
from identity.storage.sql.common import Moment, hold_signing_keys, upsert, write_audit
from identity.storage.tables import sealed_secrets, signing_keys

Reseal = Callable[[bytes, str], bytes]
"""A sealed value and its context -> the same under the newest key. Raises SealBroken."""


class SqlSealedStore:
    """Lasting secrets, and the private halves of signing keys."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def secrets(self) -> dict[str, bytes]:
        """Every lasting secret by its label, sealed."""
        return await self._access.read(lambda connection, _: all_secrets(connection))

    async def add_secrets(self, sealed: Mapping[str, bytes]) -> dict[str, bytes]:
        """Keep those that are not there yet; -> what is there now, which another replica may have written."""

        def work(connection: Connection, _: Moment) -> dict[str, bytes]:
            rows = [{"label": label, "sealed_secret": sealed[label]} for label in sorted(sealed)]
            connection.execute(upsert(connection, sealed_secrets).values(rows).on_conflict_do_nothing())
            return all_secrets(connection)

        return await self._access.write(work)

    async def count(self) -> Counter[int]:
        """How many values are sealed under each key, by its number."""
        return await self._access.read(lambda connection, _: count_sealed(connection))

    async def reseal(self, newest: int, reseal: Reseal, act: Act) -> int:
        """Have everything sealed under the *newest* key, at once or not at all; -> how many values were not.

        Whoever moves a signing key waits meanwhile. Raises what *reseal* raises.
        """

        def work(connection: Connection, moment: Moment) -> int:
            old = [value for value in _held_values(connection) if key_number(value[2]) != newest]
            for column, name, sealed in old:
                _save(connection, column, name, reseal(sealed, _CONTEXTS[column](name)))
            if old:
                numbers = sorted({key_number(sealed) for _, _, sealed in old})
                subject = f"{' '.join(map(str, numbers))} -> {newest}"
                write_audit(connection, act, moment, "master_key.reseal", note=f"{len(old)} values", subject=subject)
            failpoints.hit("reseal.before_commit")
            return len(old)

        return await self._access.write(work)


def all_secrets(connection: Connection) -> dict[str, bytes]:
    """Every lasting secret by its label, sealed."""
    return {row.label: row.sealed_secret for row in connection.execute(select(sealed_secrets))}


def count_sealed(connection: Connection) -> Counter[int]:
    """How many values are sealed under each key, by its number. Raises SealBroken: one is not sealed at all."""
    found = [sealed for query in _VALUES.values() for _, sealed in connection.execute(query)]
    return Counter(map(key_number, found))


_SECRET, _SIGNING_KEY = "sealed_secret", "sealed_private_key"
_CONTEXTS: dict[str, Callable[[str], str]] = {_SECRET: secret_context, _SIGNING_KEY: signing_key_context}
_VALUES = {
    _SIGNING_KEY: select(signing_keys.c.key_id, signing_keys.c.sealed_private_key)
    .where(signing_keys.c.sealed_private_key != b"")
    .order_by(signing_keys.c.create_time, signing_keys.c.key_id),
    _SECRET: select(sealed_secrets.c.label, sealed_secrets.c.sealed_secret).order_by(sealed_secrets.c.label),
}


def _held_values(connection: Connection) -> list[tuple[str, str, bytes]]:
    """Column, name and sealed value of each; nobody else changes one until the transaction ends.

    A lasting secret changes here alone. The first start of a version that knows another one adds it, maybe meanwhile:
    sealed under the newest key of the file, as everything is to be.
    """
    hold_signing_keys(connection)
    return [(column, name, sealed) for column, query in _VALUES.items() for name, sealed in connection.execute(query)]


def _save(connection: Connection, column: str, name: str, sealed: bytes) -> None:
    table, key = (
        (sealed_secrets, sealed_secrets.c.label) if column == _SECRET else (signing_keys, signing_keys.c.key_id)
    )
    connection.execute(update(table).where(key == name).values({column: sealed}))
