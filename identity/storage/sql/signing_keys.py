"""SqlSigningKeyStore: the service's own keys, their private halves sealed while they are to sign, and then gone.

Whatever moves a key first holds all of them, a handful: what two do at once happens one after the other. Unique
indexes keep one active and one prepared key even so.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from sqlalchemy import ColumnElement, Connection, RowMapping, delete, func, insert, select, update

from identity.domain.signing_keys import KEPT_SECONDS, MAXIMUM_PUBLISHED, is_usable, usable_time
from identity.domain.values import Act, KeyState, SigningKeyRecord
from identity.storage.access import Access
from identity.storage.sql.common import (
    LONGEST_ACCESS_LIFETIME_SECONDS,
    Moment,
    hold_signing_keys,
    publish,
    write_audit,
)
from identity.storage.sql.once import find_done, note_done
from identity.storage.sql.rows import confirm_caller
from identity.storage.tables import signing_keys
from identity_client.errors import (
    SigningKeyAlreadyPrepared,
    SigningKeyMisplaced,
    SigningKeyNotFound,
    SigningKeyTooNew,
    TooManySigningKeys,
)
from identity_client.trust.entries import EntryKind

_Keys = dict[str, SigningKeyRecord]


class SqlSigningKeyStore:
    """See domain.ports.SigningKeyStore."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def add_active(self, key: SigningKeyRecord, act: Act) -> SigningKeyRecord:
        def work(connection: Connection, moment: Moment) -> SigningKeyRecord:
            active = _in_state(_held(connection), KeyState.ACTIVE)
            if active is not None:
                return active
            added = _insert(connection, replace(key, state=KeyState.ACTIVE, activate_time=moment.now))
            write_audit(connection, act, moment, "signing_key.create", subject=key.key_id)
            return added

        return await self._access.write(work)

    async def list_keys(self) -> list[SigningKeyRecord]:
        return await self._access.read(lambda connection, _: all_keys(connection))

    async def prepare(self, key: SigningKeyRecord, act: Act) -> SigningKeyRecord:
        def work(connection: Connection, moment: Moment) -> SigningKeyRecord:
            confirm_caller(connection, act, moment)
            keys = _held(connection)
            done = find_done(connection, act, moment)
            if done is not None:
                return _key(keys, done)
            if _in_state(keys, KeyState.PREPARED) is not None:
                raise SigningKeyAlreadyPrepared()
            if sum(each.is_published for each in keys.values()) >= MAXIMUM_PUBLISHED:
                raise TooManySigningKeys()
            prepared = _insert(connection, replace(key, state=KeyState.PREPARED))
            write_audit(connection, act, moment, "signing_key.prepare", subject=key.key_id)
            note_done(connection, act, key.key_id, moment)
            return prepared

        return await self._access.write(work)

    async def activate(self, key_id: str, act: Act, *, force: bool) -> SigningKeyRecord:
        def work(connection: Connection, moment: Moment) -> SigningKeyRecord:
            confirm_caller(connection, act, moment)
            keys = _held(connection)
            key = _key(keys, key_id)
            if key.state is KeyState.ACTIVE:
                return key
            if key.state is not KeyState.PREPARED:
                raise SigningKeyMisplaced(f"The key is {key.state}: only a prepared one can be activated.")
            if not force and not is_usable(key, moment.now):
                wait = usable_time(key) - moment.now
                raise SigningKeyTooNew(f"Not every peer knows the key yet: wait {wait} seconds, or force it.")
            old = _in_state(keys, KeyState.ACTIVE)
            if old is not None:
                _retire(connection, old, moment)
            activated = _save(connection, replace(key, state=KeyState.ACTIVE, activate_time=moment.now))
            note = "forced" if force else ""
            write_audit(connection, act, moment, "signing_key.activate", note=note, subject=key_id)
            return activated

        return await self._access.write(work)

    async def retire(self, key_id: str, act: Act) -> SigningKeyRecord:
        def work(connection: Connection, moment: Moment) -> SigningKeyRecord:
            confirm_caller(connection, act, moment)
            key = _key(_held(connection), key_id)
            match key.state:
                case KeyState.RETIRED:
                    return key
                case KeyState.PREPARED:
                    write_audit(connection, act, moment, "signing_key.retire", subject=key_id)
                    return _retire(connection, key, moment)
                case KeyState.ACTIVE:
                    raise SigningKeyMisplaced("The key is active: activate another, and this one is retired.")
                case KeyState.REVOKED:
                    raise SigningKeyMisplaced("The key is revoked: there is nothing left to retire.")

        return await self._access.write(work)

    async def revoke(
        self, key_id: str, spare: SigningKeyRecord, note: str, act: Act
    ) -> tuple[SigningKeyRecord, str, int | None]:
        def work(connection: Connection, moment: Moment) -> tuple[SigningKeyRecord, str, int | None]:
            confirm_caller(connection, act, moment)
            keys = _held(connection)
            key = _key(keys, key_id)
            if key.state is KeyState.REVOKED:
                return key, _active(keys).key_id, None
            revoked = _revoke(connection, key, moment)
            write_audit(connection, act, moment, "signing_key.revoke", note=note, subject=key_id)
            active = _succeed(connection, keys, spare, act, moment) if key.state is KeyState.ACTIVE else _active(keys)
            return revoked, active.key_id, publish_revoked(connection, key_id, moment)

        return await self._access.write(work)

    async def remove_old(self) -> bool:
        def work(connection: Connection, moment: Moment) -> bool:
            hold_signing_keys(connection)
            return connection.execute(delete(signing_keys).where(_is_old(moment))).rowcount > 0

        has_old = await self._access.read(
            lambda connection, moment: connection.execute(select(signing_keys.c.key_id).where(_is_old(moment))).first()
        )
        return has_old is not None and await self._access.write(work)


def all_keys(connection: Connection) -> list[SigningKeyRecord]:
    """Every key, the oldest first."""
    return [_record(row) for row in connection.execute(_OLDEST_FIRST).mappings()]


def publish_revoked(connection: Connection, key_id: str, moment: Moment) -> int | None:
    """Tell peers that a key is revoked; -> the version. A replica may sign with it for a second more."""
    return publish(connection, EntryKind.KEY, key_id, moment.now + LONGEST_ACCESS_LIFETIME_SECONDS, moment)


_OLDEST_FIRST = select(signing_keys).order_by(signing_keys.c.create_time, signing_keys.c.key_id)


def _held(connection: Connection) -> _Keys:
    """Every key by its id, held until the transaction ends."""
    hold_signing_keys(connection)
    return {key.key_id: key for key in all_keys(connection)}


def _succeed(
    connection: Connection, keys: _Keys, spare: SigningKeyRecord, act: Act, moment: Moment
) -> SigningKeyRecord:
    """Fill the place of the active key, which is revoked by now."""
    prepared = _in_state(keys, KeyState.PREPARED)
    if prepared is not None:
        write_audit(connection, act, moment, "signing_key.activate", subject=prepared.key_id)
        return _save(connection, replace(prepared, state=KeyState.ACTIVE, activate_time=moment.now))
    write_audit(connection, act, moment, "signing_key.create", subject=spare.key_id)
    return _insert(connection, replace(spare, state=KeyState.ACTIVE, activate_time=moment.now))


def _retire(connection: Connection, key: SigningKeyRecord, moment: Moment) -> SigningKeyRecord:
    """Its private half is not needed any more, so nobody shall find it in a copy of the database."""
    return _save(connection, replace(key, state=KeyState.RETIRED, retire_time=moment.now, sealed_private_key=b""))


def _revoke(connection: Connection, key: SigningKeyRecord, moment: Moment) -> SigningKeyRecord:
    return _save(connection, replace(key, state=KeyState.REVOKED, revoke_time=moment.now, sealed_private_key=b""))


def _insert(connection: Connection, key: SigningKeyRecord) -> SigningKeyRecord:
    connection.execute(insert(signing_keys).values(**asdict(key)))
    return key


def _save(connection: Connection, key: SigningKeyRecord) -> SigningKeyRecord:
    connection.execute(update(signing_keys).where(signing_keys.c.key_id == key.key_id).values(**asdict(key)))
    return key


def _is_old(moment: Moment) -> ColumnElement[bool]:
    out_since = func.coalesce(signing_keys.c.revoke_time, signing_keys.c.retire_time)
    is_out = signing_keys.c.state.in_((KeyState.RETIRED, KeyState.REVOKED))
    return is_out & (out_since + KEPT_SECONDS <= moment.now)


def _key(keys: _Keys, key_id: str) -> SigningKeyRecord:
    if key_id not in keys:
        raise SigningKeyNotFound()
    return keys[key_id]


def _active(keys: _Keys) -> SigningKeyRecord:
    return next(key for key in keys.values() if key.state is KeyState.ACTIVE)


def _in_state(keys: _Keys, state: KeyState) -> SigningKeyRecord | None:
    return next((key for key in keys.values() if key.state is state), None)


def _record(row: RowMapping) -> SigningKeyRecord:
    return SigningKeyRecord(**{**row, "state": KeyState(row["state"])})
