"""SqlSigningKeyStore: the service's own keys, their private halves sealed."""

from __future__ import annotations

from sqlalchemy import Connection, RowMapping, insert, select

from identity.domain.values import Act, KeyState, SigningKeyRecord
from identity.storage.access import Access
from identity.storage.sql.common import Moment, write_audit
from identity.storage.tables import signing_keys


class SqlSigningKeyStore:
    """See domain.ports.SigningKeyStore."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def add_active(self, key: SigningKeyRecord, act: Act) -> SigningKeyRecord:
        def work(connection: Connection, moment: Moment) -> SigningKeyRecord:
            active = select(signing_keys).where(signing_keys.c.state == KeyState.ACTIVE)
            row = connection.execute(active).mappings().first()
            if row is not None:
                return _record(row)
            connection.execute(
                insert(signing_keys).values(
                    key_id=key.key_id,
                    state=key.state,
                    public_x=key.public_x,
                    public_y=key.public_y,
                    sealed_private_key=key.sealed_private_key,
                    create_time=key.create_time,
                )
            )
            write_audit(connection, act, moment, "signing_key.create", subject=key.key_id)
            return key

        return await self._access.write(work)

    async def list_keys(self) -> list[SigningKeyRecord]:
        return await self._access.read(lambda connection, _: all_keys(connection))


def all_keys(connection: Connection) -> list[SigningKeyRecord]:
    """Every key, the oldest first."""
    rows = connection.execute(select(signing_keys).order_by(signing_keys.c.create_time)).mappings()
    return [_record(row) for row in rows]


def _record(row: RowMapping) -> SigningKeyRecord:
    return SigningKeyRecord(
        key_id=row["key_id"],
        state=KeyState(row["state"]),
        public_x=row["public_x"],
        public_y=row["public_y"],
        sealed_private_key=row["sealed_private_key"],
        create_time=row["create_time"],
    )
