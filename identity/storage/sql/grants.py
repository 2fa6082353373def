"""SqlGrantStore: grants of every kind end here, and are introspected here."""

from __future__ import annotations

from sqlalchemy import Connection, RowMapping, bindparam, select, update

from identity.domain.grants import Admit, ApiKeyUse, BearerRecord, Derivation, GrantKind, GrantSnapshot, GrantStatus
from identity.domain.values import AccountRef, Act, Ended, EndReason
from identity.storage.access import Access
from identity.storage.sql.common import Moment, publish_generation, split_words, write_audit
from identity.storage.sql.ending import end_every_session, end_grant, hold_to_end, raise_generation
from identity.storage.sql.issuing import marks_of_use, note_issue, to_the_minute
from identity.storage.sql.rows import (
    confirm_caller,
    find_grant,
    hold_account,
    hold_grant,
    is_live,
    is_recorded,
    snapshot,
)
from identity.storage.tables import grants
from identity_client.errors import GrantNotFound, InvalidRequest, TokenOutdated, TokenRevoked
from identity_client.trust.entries import EntryKind


class SqlGrantStore:
    """See domain.ports.GrantStore, and BearerStore."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def derive(self, derivation: Derivation, admit: Admit, act: Act) -> GrantSnapshot:
        def work(connection: Connection, moment: Moment) -> GrantSnapshot:
            confirm_caller(connection, act, moment)
            row = hold_grant(connection, derivation.grant_id)
            if row is None or not is_live(row, moment) or row["disable_time"] is not None:
                raise TokenRevoked()
            if is_recorded(connection, EntryKind.TOKEN, derivation.token_id):
                raise TokenRevoked()
            if row["generation"] != derivation.generation:
                raise TokenOutdated()
            _check_bound(row, derivation)
            issued = snapshot(connection, row, moment)
            admit(issued)
            marks = marks_of_use(row, moment, derivation.access_lifetime)
            note_issue(connection, row, marks, act, moment, "token.exchange", f"for {derivation.audience}")
            return issued

        return await self._access.write(work)

    # -- ending ------------------------------------------------------------------------------------------------

    async def find_secret_hash(self, grant_id: str) -> bytes | None:
        def work(connection: Connection, _: Moment) -> bytes | None:
            found: bytes | None = connection.execute(_SECRET_HASH, {"id": grant_id}).scalar()
            return found

        return await self._access.look_up(work)

    async def end(self, grant_id: str, reason: EndReason, note: str, act: Act) -> Ended:
        def work(connection: Connection, moment: Moment) -> Ended:
            confirm_caller(connection, act, moment)
            ending = hold_to_end(connection, grant_id, act, moment)
            return end_grant(connection, ending, reason, note, act, moment)

        return await self._access.write(work)

    async def end_session(self, account_id: str, grant_id: str, reason: EndReason, act: Act) -> Ended:
        def work(connection: Connection, moment: Moment) -> Ended:
            confirm_caller(connection, act, moment)
            ending = hold_to_end(connection, grant_id, act, moment)
            is_session = ending.row["account_id"] == account_id and ending.row["kind"] == GrantKind.SESSION
            if not is_session or not is_live(ending.row, moment):
                raise GrantNotFound()
            return end_grant(connection, ending, reason, "", act, moment)

        return await self._access.write(work)

    async def end_sessions(self, account_id: str, reason: EndReason, act: Act) -> Ended:
        def work(connection: Connection, moment: Moment) -> Ended:
            confirm_caller(connection, act, moment)
            account = hold_account(connection, AccountRef(account_id=account_id))
            return end_every_session(connection, account, reason, "", act, moment)

        return await self._access.write(work)

    async def end_credential(self, grant_id: str, reason: EndReason, note: str, act: Act) -> Ended:
        def work(connection: Connection, moment: Moment) -> Ended:
            confirm_caller(connection, act, moment)
            ending = hold_to_end(connection, grant_id, act, moment)
            if ending.row["kind"] == GrantKind.SESSION:
                raise GrantNotFound()
            return end_grant(connection, ending, reason, note, act, moment)

        return await self._access.write(work)

    async def end_all(self, ref: AccountRef, note: str, act: Act) -> Ended:
        def work(connection: Connection, moment: Moment) -> Ended:
            confirm_caller(connection, act, moment)
            account = hold_account(connection, ref)
            account_id, generation = account["account_id"], raise_generation(connection, account, moment)
            live = (grants.c.account_id == account_id) & grants.c.end_time.is_(None)
            ended = update(grants).where(live).values(end_time=moment.now, end_reason=EndReason.ACCOUNT_REVOKED)
            count = connection.execute(ended).rowcount
            write_audit(connection, act, moment, "account.revoke", account_id, note=note)
            return Ended(count, publish_generation(connection, account_id, generation, moment))

        return await self._access.write(work)

    # -- bearers -----------------------------------------------------------------------------------------------

    async def find_bearer(self, grant_id: str) -> BearerRecord | None:
        def work(connection: Connection, moment: Moment) -> BearerRecord | None:
            row = find_grant(connection, grant_id)
            if row is None or row["secret_hash"] is None or not _is_bearer(row):
                return None
            return BearerRecord(
                kind=GrantKind(row["kind"]),
                secret_hash=row["secret_hash"],
                audiences=split_words(row["audiences"]),
                snapshot=snapshot(connection, row, moment),
                expire_time=row["expire_time"],
                is_live=is_live(row, moment) and row["disable_time"] is None,
                last_used_time=row["last_used_time"],
            )

        return await self._access.read(work)

    async def touch(self, grant_id: str) -> None:
        def work(connection: Connection, moment: Moment) -> None:
            row = find_grant(connection, grant_id)
            if row is None or not is_live(row, moment):
                return
            used: dict[str, int] = {"last_used_time": to_the_minute(moment)}
            if row["idle_lifetime"] is not None:
                used["expire_time"] = min(moment.now + row["idle_lifetime"], row["absolute_expire_time"])
            connection.execute(update(grants).where(grants.c.grant_id == grant_id).values(**used))

        await self._access.write(work)

    async def find_status(self, grant_id: str) -> GrantStatus | None:
        def work(connection: Connection, moment: Moment) -> GrantStatus | None:
            row = find_grant(connection, grant_id)
            if row is None:
                return None
            return GrantStatus(
                kind=GrantKind(row["kind"]),
                snapshot=snapshot(connection, row, moment),
                audiences=split_words(row["audiences"]),
                secret_hash=row["secret_hash"],
                use=None if row["api_key_use"] is None else ApiKeyUse(row["api_key_use"]),
                create_time=row["create_time"],
                expire_time=row["expire_time"],
                end_time=row["end_time"],
                end_reason=row["end_reason"] or "",
                is_account_disabled=row["disable_time"] is not None,
            )

        return await self._access.read(work)


_SECRET_HASH = select(grants.c.secret_hash).where(grants.c.grant_id == bindparam("id"))


def _check_bound(row: RowMapping, derivation: Derivation) -> None:
    """Whether a credential may have a token for this audience when its own holder asks. Raises InvalidRequest."""
    audiences = split_words(row["audiences"])
    if derivation.is_own and row["kind"] != GrantKind.SESSION and audiences and derivation.audience not in audiences:
        raise InvalidRequest(f"this credential is for {', '.join(audiences)} only", "audience")


def _is_bearer(row: RowMapping) -> bool:
    return bool(row["kind"] == GrantKind.SESSION or row["api_key_use"] == ApiKeyUse.BEARER)
