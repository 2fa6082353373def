"""What every store promises, races included."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from identity.domain.grants import GrantKind, GrantSnapshot, NewCredential, SessionFilter, SessionPart
from identity.domain.values import (
    Account,
    AccountChange,
    AccountKind,
    AccountRef,
    EndReason,
    NewAccount,
)
from identity.storage.database import Stores
from identity.storage.sql.common import Moment
from identity_client.errors import (
    AccountAlreadyExists,
    AccountNotFound,
    BadCredentials,
    DependencyDown,
    GrantNotFound,
    IdentityError,
    Overloaded,
    PermissionMissing,
    ScopeNotGranted,
    TokenOutdated,
    TokenRevoked,
)
from identity_client.trust.entries import EntryKind
from tests.clients.issuer import FixedClock, new_id
from tests.contract.builders import (
    ACT,
    LIFETIME,
    TERMS,
    act_of,
    admit_all,
    by_id,
    count_rows,
    create_service,
    create_user,
    entries,
    find_credential,
    identity_of,
    log_in,
    new_session,
    use_secret,
)

# -- accounts --------------------------------------------------------------------------------------------------------


async def test_an_account_is_found_by_id_and_by_name(stores: Stores) -> None:
    carol = await create_user(stores, "carol", "clerk")
    assert await stores.accounts.get(by_id(carol.account_id)) == carol
    assert await stores.accounts.get(AccountRef(username="carol")) == carol
    with pytest.raises(AccountNotFound):
        await stores.accounts.get(AccountRef(username="nobody"))


async def test_of_many_who_take_a_name_at_once_one_gets_it(stores: Stores) -> None:
    results = await asyncio.gather(*(create_user(stores) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(result, AccountAlreadyExists) for result in results) == 19


async def test_a_refused_creation_leaves_no_secret_behind(stores: Stores, url: str) -> None:
    await create_service(stores)
    with pytest.raises(AccountAlreadyExists):
        await create_service(stores)
    assert count_rows(url, "grants") == 1


async def test_work_that_fails_halfway_undoes_itself_and_nobody_else(stores: Stores) -> None:
    _, grant_id = await create_service(stores, "first")
    # Its account is inserted before the secret is refused.
    again = NewCredential(grant_id, GrantKind.CLIENT_SECRET, secret_hash=bytes(32))
    results = await asyncio.gather(
        create_user(stores, "before"),
        stores.accounts.create(NewAccount(new_id(), AccountKind.SERVICE, "half", "half", (), None), again, ACT),
        create_user(stores, "after"),
        return_exceptions=True,
    )
    assert isinstance(results[1], DependencyDown)
    assert [account.username for account in await stores.accounts.list_page("", 10)] == ["after", "before", "first"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_transaction_that_the_database_gave_up_is_acknowledged_to_nobody(stores: Stores) -> None:
    """A full disk makes SQLite roll back by itself: neither what ran before nor what comes after may count."""

    def give_up(connection: Connection, _: Moment) -> None:
        connection.exec_driver_sql("ROLLBACK")
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    results = await asyncio.gather(
        create_user(stores, "before"),
        stores._access.write(give_up),
        create_user(stores, "after"),
        return_exceptions=True,
    )
    stored = [account.username for account in await stores.accounts.list_page("", 10)]
    told = [result.username for result in results if isinstance(result, Account)]
    assert stored == sorted(told)
    assert isinstance(results[1], DependencyDown)
    assert await create_user(stores, "later")


async def test_a_writer_that_is_far_behind_refuses_at_once(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("identity.storage.writer.WAITING_LIMIT", 0)
    monkeypatch.setattr("identity.storage.postgres.WAITING_LIMIT", 0)
    with pytest.raises(Overloaded):
        await create_user(stores)


async def test_changed_roles_raise_the_generation_and_outdate_what_was_issued(
    stores: Stores, clock: FixedClock
) -> None:
    carol = await create_user(stores, "carol", "clerk")
    await log_in(stores, carol)
    changed, version = await stores.accounts.set_roles(by_id(carol.account_id), ("manager",), ACT)
    assert (changed.roles, changed.generation, version) == (("manager",), 2, 1)
    expire_time = int(clock.now()) + LIFETIME + 630
    assert await entries(stores) == [(1, EntryKind.ACCOUNT, carol.account_id, 2, expire_time)]
    assert await stores.accounts.set_roles(by_id(carol.account_id), ("manager",), ACT) == (changed, None)


async def test_nothing_is_told_of_an_account_without_tokens(stores: Stores, clock: FixedClock) -> None:
    carol = await create_user(stores)
    _, version = await stores.accounts.set_roles(by_id(carol.account_id), ("clerk",), ACT)
    assert version is None
    await log_in(stores, carol)
    clock.advance(LIFETIME + 30)
    _, version = await stores.accounts.disable(by_id(carol.account_id), ACT)
    assert version is None
    assert await entries(stores) == []


async def test_disabling_ends_sessions_and_keeps_secrets(stores: Stores) -> None:
    service, grant_id = await create_service(stores)
    carol = await create_user(stores)
    session = await log_in(stores, carol)
    await stores.accounts.disable(by_id(carol.account_id), ACT)
    held = await stores.sessions.find(session.grant_id)
    assert held is not None
    assert held.end_time is not None
    await stores.accounts.disable(by_id(service.account_id), ACT)
    secret = await find_credential(stores, grant_id)
    assert secret is not None
    assert not secret.is_live
    await stores.accounts.enable(by_id(service.account_id), ACT)
    secret = await find_credential(stores, grant_id)
    assert secret is not None
    assert secret.is_live


async def test_disabling_and_enabling_twice_changes_nothing_more(stores: Stores) -> None:
    ref = by_id((await create_user(stores)).account_id)
    once, _ = await stores.accounts.disable(ref, ACT)
    assert await stores.accounts.disable(ref, ACT) == (once, None)
    enabled = await stores.accounts.enable(ref, ACT)
    assert await stores.accounts.enable(ref, ACT) == enabled


async def test_only_services_are_audiences(stores: Stores) -> None:
    await create_user(stores, "carol")
    await create_service(stores, "orders")
    assert await stores.accounts.is_audience("orders")
    assert not await stores.accounts.is_audience("carol")


# -- grants ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["disabled", "another password", "gone"])
async def test_a_log_in_whose_account_changed_while_it_hashed_is_refused(stores: Stores, change: str) -> None:
    carol = await create_user(stores)
    session = new_session(carol)
    if change == "disabled":
        await stores.accounts.disable(by_id(carol.account_id), ACT)
    elif change == "another password":
        session = new_session(carol, credential_version=0)
    else:
        session = new_session(carol, account_id=new_id())
    with pytest.raises(BadCredentials):
        await stores.sessions.open(session, admit_all, ACT)
    assert await stores.sessions.find(session.grant_id) is None


async def test_a_scope_that_is_not_granted_opens_no_session(stores: Stores) -> None:
    session = new_session(await create_user(stores, "carol", "peer"), requested_scopes=("identity.admin",))
    with pytest.raises(ScopeNotGranted):
        await stores.sessions.open(session, admit_all, ACT)
    assert await stores.sessions.find(session.grant_id) is None


async def test_a_narrow_session_stays_narrow_and_loses_what_the_roles_lose(stores: Stores) -> None:
    eve = await create_user(stores, "eve", "admin", "peer")
    snapshot = await log_in(stores, eve, requested_scopes=("identity.audit", "identity.watch"))
    assert snapshot.scopes == ("identity.audit", "identity.watch")
    await stores.accounts.set_roles(by_id(eve.account_id), ("admin",), ACT)
    held = await stores.sessions.find(snapshot.grant_id)
    assert held is not None
    rotated = await stores.sessions.rotate(held, 60, LIFETIME, admit_all, ACT)
    assert rotated is not None
    assert (rotated.scopes, rotated.roles, rotated.generation) == (("identity.audit",), ("admin",), 2)


@pytest.mark.requirement("R25")
async def test_of_many_rotations_of_one_count_one_wins(stores: Stores, clock: FixedClock) -> None:
    session = await log_in(stores, await create_user(stores))
    held = await stores.sessions.find(session.grant_id)
    assert held is not None
    results = await asyncio.gather(*(stores.sessions.rotate(held, 60, LIFETIME, admit_all, ACT) for _ in range(200)))
    assert sum(result is not None for result in results) == 1
    moved = await stores.sessions.find(session.grant_id)
    assert moved is not None
    assert (moved.count, moved.grace_until, moved.salt) == (1, clock.now() + 60, held.salt)


@pytest.mark.parametrize("is_ended", [True, False])
async def test_a_session_that_is_over_neither_rotates_nor_repeats(
    stores: Stores, clock: FixedClock, is_ended: bool
) -> None:
    session = await log_in(stores, await create_user(stores))
    held = await stores.sessions.find(session.grant_id)
    assert held is not None
    if is_ended:
        await stores.grants.end(session.grant_id, EndReason.REVOKED, "", ACT)
    else:
        clock.advance(TERMS.idle_lifetime)
    assert await stores.sessions.rotate(held, 60, LIFETIME, admit_all, ACT) is None
    assert await stores.sessions.repeat(held, LIFETIME, admit_all, ACT) is None


async def test_a_rotation_extends_the_idle_life_up_to_the_absolute_one(stores: Stores, clock: FixedClock) -> None:
    session = await log_in(stores, await create_user(stores))
    start = int(clock.now())
    for _ in range(6):
        held = await stores.sessions.find(session.grant_id)
        assert held is not None
        assert held.expire_time == min(int(clock.now()) + TERMS.idle_lifetime, start + TERMS.absolute_lifetime)
        clock.advance(900)
        await stores.sessions.rotate(held, 60, LIFETIME, admit_all, ACT)


async def test_ending_a_grant_tells_peers_once_and_for_as_long_as_its_last_token(
    stores: Stores, clock: FixedClock
) -> None:
    session = await log_in(stores, await create_user(stores))
    clock.advance(100)
    held = await stores.sessions.find(session.grant_id)
    assert held is not None
    await stores.sessions.repeat(held, LIFETIME, admit_all, ACT)
    ended = await stores.grants.end(session.grant_id, EndReason.REVOKED, "", ACT)
    again = await stores.grants.end(session.grant_id, EndReason.REVOKED, "", ACT)
    assert (ended.grant_count, ended.version, again.grant_count, again.version) == (1, 1, 0, None)
    assert await entries(stores) == [(1, EntryKind.GRANT, session.grant_id, 0, int(clock.now()) + LIFETIME + 630)]
    with pytest.raises(GrantNotFound):
        await stores.grants.end(new_id(), EndReason.REVOKED, "", ACT)


async def test_ending_all_ends_sessions_and_secrets_of_that_account_alone(stores: Stores) -> None:
    service, grant_id = await create_service(stores)
    _, other_id = await create_service(stores, "billing")
    await use_secret(stores, grant_id)
    ended = await stores.grants.end_all(by_id(service.account_id), "", ACT)
    assert (ended.grant_count, ended.version) == (1, 1)
    with pytest.raises(BadCredentials):
        await use_secret(stores, grant_id)
    assert await use_secret(stores, other_id)


# -- the caller is confirmed in the transaction of the act -----------------------------------------------------------


Loss = Callable[[Stores, GrantSnapshot], Awaitable[object]]

LOSSES: dict[str, tuple[Loss, type[IdentityError]]] = {
    "the grant ended": (
        lambda stores, held: stores.grants.end(held.grant_id, EndReason.REVOKED, "", ACT),
        TokenRevoked,
    ),
    "the account was disabled": (
        lambda stores, held: stores.accounts.disable(by_id(held.account_id), ACT),
        TokenRevoked,
    ),
    "the role was taken": (
        lambda stores, held: stores.accounts.set_roles(by_id(held.account_id), (), ACT),
        TokenOutdated,
    ),
}


@pytest.mark.requirement("R3")
@pytest.mark.parametrize("loss", LOSSES)
async def test_an_admin_who_lost_their_power_changes_nothing(stores: Stores, loss: str) -> None:
    await create_user(stores, "root", "admin")
    eve, carol = await create_user(stores, "eve", "admin"), await create_user(stores, "carol")
    snapshot = await log_in(stores, eve)
    act = act_of(snapshot)
    take, error = LOSSES[loss]
    await take(stores, snapshot)
    for attempt in (
        stores.accounts.set_roles(by_id(carol.account_id), ("admin",), act),
        stores.accounts.disable(by_id(carol.account_id), act),
        stores.accounts.enable(by_id(carol.account_id), act),
        stores.grants.end_all(by_id(carol.account_id), "", act),
        stores.grants.end(snapshot.grant_id, EndReason.REVOKED, "", act),
        stores.accounts.update(by_id(carol.account_id), AccountChange(password_change_required=True), act),
        stores.accounts.set_password(by_id(carol.account_id), "$argon2id$...", True, act),
        stores.accounts.delete(by_id(carol.account_id), "", act),
        stores.session_selection.end(SessionFilter(), SessionPart(None, None), "", act, confirm=True),
    ):
        with pytest.raises(error):
            await attempt
    assert await stores.accounts.get(by_id(carol.account_id)) == carol


async def test_an_admin_whose_very_token_was_revoked_changes_nothing(stores: Stores) -> None:
    eve, carol = await create_user(stores, "eve", "admin"), await create_user(stores, "carol")
    snapshot = await log_in(stores, eve)
    identity = identity_of(snapshot)
    await stores.revocations.revoke_token(identity, snapshot.issue_time + LIFETIME, "", ACT)
    with pytest.raises(TokenRevoked):
        await stores.accounts.disable(by_id(carol.account_id), act_of(snapshot, identity.token_id))
    assert (await stores.accounts.disable(by_id(carol.account_id), act_of(snapshot)))[0].disable_time


async def test_a_caller_without_the_scope_changes_nothing(stores: Stores) -> None:
    carol = await create_user(stores, "carol", "peer")
    with pytest.raises(PermissionMissing):
        await stores.accounts.disable(by_id(carol.account_id), act_of(await log_in(stores, carol)))
