"""Requests that were done, remembered for a day under the names that their callers gave them."""

from __future__ import annotations

import hmac

from sqlalchemy import ColumnElement, Connection, delete, insert, select

from identity.domain.once import REMEMBERED_SECONDS
from identity.domain.values import Act
from identity.storage.sql.common import Moment
from identity.storage.tables import done_requests
from identity_client.errors import RequestIdReused


def find_done(connection: Connection, act: Act, moment: Moment) -> str | None:
    """The id of what an earlier sending of this very request created. Raises RequestIdReused: it was another one."""
    if act.once is None or act.caller is None:
        return None
    found = select(done_requests).where(
        _is_named(act.caller.account_id, act.once.name), done_requests.c.expire_time > moment.now
    )
    row = connection.execute(found).mappings().first()
    if row is None:
        return None
    if row["method"] != act.once.method or not hmac.compare_digest(row["digest"], act.once.digest):
        raise RequestIdReused()
    resource_id: str = row["resource_id"]
    return resource_id


def note_done(connection: Connection, act: Act, resource_id: str, moment: Moment) -> None:
    """Remember that the request has created *resource_id*. For the transaction that does it."""
    if act.once is None or act.caller is None:
        return
    connection.execute(
        delete(done_requests).where(_is_named(act.caller.account_id, act.once.name))
    )  # of an expired one of the same name
    row = {"method": act.once.method, "digest": act.once.digest, "resource_id": resource_id}
    key = {"caller_account_id": act.caller.account_id, "request_id": act.once.name}
    connection.execute(insert(done_requests).values(expire_time=moment.now + REMEMBERED_SECONDS, **key, **row))


def _is_named(caller_account_id: str, name: str) -> ColumnElement[bool]:
    return (done_requests.c.caller_account_id == caller_account_id) & (done_requests.c.request_id == name)
