"""SqlFenceStore: everything that was issued before ends, in one transaction."""

from __future__ import annotations

import secrets
from dataclasses import asdict, replace

from sqlalchemy import Connection, insert, update

from identity import failpoints
from identity.domain.fence import Fenced
from identity.domain.grants import GrantKind
from identity.domain.values import Act, EndReason, KeyState, SigningKeyRecord
from identity.storage.access import Access
from identity.storage.sql.common import (
    PUBLISHED,
    Moment,
    hold_signing_keys,
    publish_grants,
    take_time,
    write_audit,
)
from identity.storage.sql.rows import is_live_grant
from identity.storage.sql.signing_keys import publish_revoked
from identity.storage.tables import accounts, feed_head, grants, signing_keys


class SqlFenceStore:
    """See domain.fence.FenceStore."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def fence(self, new_key: SigningKeyRecord, act: Act, *, with_credentials: bool) -> Fenced:
        def work(connection: Connection, moment: Moment) -> Fenced:
            take_time(connection)
            revoked = _replace_keys(connection, new_key, moment)
            raised = update(accounts).values(generation=accounts.c.generation + 1)
            account_count = connection.execute(raised).rowcount
            which = is_live_grant(moment) if with_credentials else _is_session & is_live_grant(moment)
            ended = update(grants).where(which).values(end_time=moment.now, end_reason=EndReason.REVOKED)
            grant_count = connection.execute(ended).rowcount
            publish_grants(connection, [grants.c.end_time == moment.now], moment)  # peers may have them in their caches
            for key_id in revoked:
                publish_revoked(connection, key_id, moment)
            renew_epoch(connection)
            note = f"{grant_count} grants ended, {account_count} accounts"
            write_audit(connection, act, moment, "service.fence", note=note, subject=new_key.key_id)
            failpoints.hit("fence.before_commit")
            return Fenced(grant_count, account_count, len(revoked), new_key.key_id)

        return await self._access.write(work, is_long=True)

    async def renew_epoch(self, epoch: str, act: Act) -> bool:
        def work(connection: Connection, moment: Moment) -> bool:
            is_renewed = renew_epoch(connection, epoch)
            if is_renewed:
                write_audit(connection, act, moment, "feed.renew_epoch", subject=epoch)
            return is_renewed

        return await self._access.write(work)


def renew_epoch(connection: Connection, epoch: str | None = None) -> bool:
    """Begin a new epoch, unless it is another than *epoch* already; whether it was begun. Versions go on."""
    renewed = update(feed_head).values(epoch=secrets.token_hex(8))
    if epoch is not None:
        renewed = renewed.where(feed_head.c.epoch == epoch)
    connection.info[PUBLISHED] = True
    return connection.execute(renewed).rowcount == 1


def _replace_keys(connection: Connection, new_key: SigningKeyRecord, moment: Moment) -> list[str]:
    """Revoke every key, whatever its state, and sign with *new_key*; -> the ids of the revoked ones."""
    hold_signing_keys(connection)
    values = {"state": KeyState.REVOKED, "revoke_time": moment.now, "sealed_private_key": b""}
    revoked = update(signing_keys).values(**values).returning(signing_keys.c.key_id)
    key_ids = list(connection.execute(revoked).scalars())
    active = replace(new_key, state=KeyState.ACTIVE, activate_time=moment.now)
    connection.execute(insert(signing_keys).values(**asdict(active)))
    return key_ids


_is_session = grants.c.kind == GrantKind.SESSION
