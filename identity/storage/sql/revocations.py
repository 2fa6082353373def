"""SqlRevocationStore: revoked tokens, and the feed that peers follow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, select

from identity.domain.grants import GrantKind, TokenStatus
from identity.domain.values import Act, EndReason, KeyState, Standing, TokenIdentity
from identity.storage.access import Access
from identity.storage.sql.common import Moment, entry_of, publish, write_audit
from identity.storage.sql.ending import end_full, end_grant, find_full, hold_full, hold_to_end, holder_of
from identity.storage.sql.rows import confirm_caller, find_grant, is_live, is_recorded
from identity.storage.tables import feed_head, revocations, roles, signing_keys
from identity_client.errors import Overloaded
from identity_client.trust.entries import PACKED_KINDS, Batch, Entry, EntryKind, id_bytes

BATCH_ENTRIES = 2_500
"""So many rows at a time: what applies them does not hold an event loop for longer than a few milliseconds."""


TOKENS_OF_A_GRANT = 15
"""Revoked tokens of one grant that stand in the feed at a time, if their holders put them there: whoever mints tokens
without end must not fill every peer with them."""


class SqlRevocationStore:
    """See domain.ports.RevocationStore."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def revoke_token(self, token: TokenIdentity, expire_time: int, note: str, act: Act) -> int | None:
        def work(connection: Connection, moment: Moment) -> int | None:
            confirm_caller(connection, act, moment)
            if is_recorded(connection, EntryKind.TOKEN, token.token_id):
                return None
            if act.caller is None and (full_until := _full_until(connection, token.grant_id, moment)):
                return _collapse(connection, token.grant_id, full_until, act, moment)
            full = find_full(connection, token.grant_id, act, moment)
            if full is not None:
                return _fall_with_account(connection, token, full, note, act, moment)
            version = publish(
                connection,
                EntryKind.TOKEN,
                token.token_id,
                expire_time,
                moment,
                grant_id=token.grant_id,
                account_id=holder_of(token.account_id, act),
            )
            if version is not None:
                write_audit(connection, act, moment, "token.revoke", token.account_id, token.grant_id, note)
            return version

        return await self._access.write(work)

    async def standings(self, tokens: list[TokenIdentity]) -> list[Standing]:
        return await self._access.read(
            lambda connection, moment: [_standing(connection, token, moment) for token in tokens]
        )

    async def find_status(self, token: TokenIdentity) -> TokenStatus:
        def work(connection: Connection, _: Moment) -> TokenStatus:
            kept = _kept_roles(connection, token)
            return TokenStatus(
                is_revoked=is_recorded(connection, EntryKind.TOKEN, token.token_id),
                is_key_revoked=not _is_key_good(connection, token.key_id),
                outdated_roles=tuple(role for role in token.roles if role not in kept),
            )

        return await self._access.read(work)

    async def list_page(self, kind: EntryKind | None, below: int | None, limit: int) -> list[tuple[int, Entry]]:
        def work(connection: Connection, moment: Moment) -> list[tuple[int, Entry]]:
            page = select(revocations).where(revocations.c.expire_time > moment.now)
            if kind is not None:
                page = page.where(revocations.c.kind == int(kind))
            if below is not None:
                page = page.where(revocations.c.version < below)
            rows = connection.execute(page.order_by(revocations.c.version.desc()).limit(limit)).mappings()
            return [(row["version"], entry_of(row)) for row in rows]

        return await self._access.read(work)

    async def entries_since(self, version: int, limit: int) -> list[tuple[int, Entry]]:
        def work(connection: Connection, _: Moment) -> list[tuple[int, Entry]]:
            rows = connection.execute(_LATER, {"after": version, "most": limit}).mappings()
            return [(row["version"], entry_of(row)) for row in rows]

        return await self._access.look_up(work)

    async def head(self) -> tuple[str, int]:
        return await self._access.look_up(lambda connection, _: _head(connection))

    async def live_entries(self) -> tuple[str, int, list[Batch]]:
        def work(connection: Connection, moment: Moment) -> tuple[str, int, list[Batch]]:
            epoch, version = _head(connection)
            of = revocations.c
            live = select(of.kind, of.name, of.expire_time, of.minimum).where(of.expire_time > moment.now)
            rows = connection.execution_options(yield_per=BATCH_ENTRIES).execute(live)
            return epoch, version, [_batch_of(part) for part in rows.partitions()]

        return await self._access.read(work, is_long=True)


_LATER = (
    select(revocations)
    .where(revocations.c.version > bindparam("after"))
    .order_by(revocations.c.version)
    .limit(bindparam("most"))
)


def _full_until(connection: Connection, grant_id: str, moment: Moment) -> int | None:
    """When fewer than TOKENS_OF_A_GRANT of the grant's tokens will stand in the feed; None if fewer do now."""
    live = select(revocations.c.expire_time).where(
        revocations.c.grant_id == grant_id, revocations.c.expire_time > moment.now
    )
    newest_first = live.order_by(revocations.c.expire_time.desc())
    return connection.execute(newest_first.offset(TOKENS_OF_A_GRANT - 1).limit(1)).scalar()


def _collapse(connection: Connection, grant_id: str, full_until: int, act: Act, moment: Moment) -> int | None:
    """End a session whose tokens are revoked one by one; -> the feed's version. Raises Overloaded: a credential must
    not end for the tokens that were taken with it."""
    row = find_grant(connection, grant_id)
    if row is None or row["kind"] != GrantKind.SESSION:
        raise _wait_until(full_until, moment)
    note = f"more than {TOKENS_OF_A_GRANT} of its tokens were revoked"
    ending = hold_to_end(connection, grant_id, act, moment)
    return end_grant(connection, ending, EndReason.REVOKED, note, act, moment).version


def _fall_with_account(
    connection: Connection, token: TokenIdentity, full: RowMapping, note: str, act: Act, moment: Moment
) -> int | None:
    """End every session of an account that is full, and with them a token. Raises Overloaded: peers that are shown
    tokens of many credentials could otherwise outdate all that a service works with, again and again."""
    if act.caller is None and full["kind"] != GrantKind.SESSION:
        raise _wait_until(full["full_until"], moment)
    account = hold_full(connection, full, moment)
    if account is None or token.generation < account["generation"]:
        return None  # it fell with the account, and what was issued since does not fall with it again
    write_audit(connection, act, moment, "token.revoke", token.account_id, token.grant_id, note)
    return end_full(connection, account, act, moment).version


def _wait_until(full_until: int, moment: Moment) -> Overloaded:
    message = (
        "Too many tokens of this credential or its account were revoked lately: repeat the call later, or end the "
    )
    return Overloaded(f"{message}credential.", full_until - moment.now)


def _batch_of(rows: Iterable[Any]) -> Batch:
    """Rows packed at once: made entries one by one, a million of them would fill half a gigabyte."""
    packed: dict[int, list[bytes]] = {kind: [] for kind in PACKED_KINDS}
    others = []
    for kind, name, expire_time, minimum in rows:
        if kind in packed:
            packed[kind].append(id_bytes(name) + expire_time.to_bytes(4, "big"))
        else:
            others.append(Entry(EntryKind(kind), name, expire_time, minimum))
    tokens, grants = (b"".join(records) for records in packed.values())
    return Batch(tokens, grants, tuple(others))


def _head(connection: Connection) -> tuple[str, int]:
    row = connection.execute(_HEAD).mappings().one()
    return row["epoch"], row["version"]


_HEAD = select(feed_head)


def _standing(connection: Connection, token: TokenIdentity, moment: Moment) -> Standing:
    row = find_grant(connection, token.grant_id)
    if row is None or row["account_id"] != token.account_id or not is_live(row, moment):
        return Standing.REVOKED
    if row["disable_time"] is not None or is_recorded(connection, EntryKind.TOKEN, token.token_id):
        return Standing.REVOKED
    if not _is_key_good(connection, token.key_id):
        return Standing.REVOKED
    if token.generation != row["generation"] or _is_policy_old(connection, token):
        return Standing.OUTDATED
    return Standing.LIVE


def _is_policy_old(connection: Connection, token: TokenIdentity) -> bool:
    """Whether a role that the token carries was narrowed since, or is gone."""
    return len(_kept_roles(connection, token)) < len(set(token.roles))


def _kept_roles(connection: Connection, token: TokenIdentity) -> set[str]:
    kept = select(roles.c.name).where(
        roles.c.name.in_(token.roles), roles.c.minimum_policy_version <= token.policy_version
    )
    return set(connection.execute(kept).scalars())


def _is_key_good(connection: Connection, key_id: str) -> bool:
    state = connection.execute(select(signing_keys.c.state).where(signing_keys.c.key_id == key_id)).scalar()
    return state is not None and state != KeyState.REVOKED
