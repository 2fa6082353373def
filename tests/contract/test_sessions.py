"""Sessions as the store keeps them: opened, renewed, listed, ended; undone as a whole where a token does not fit."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace

import pytest

from identity.domain.grants import ApiKeyUse, CredentialTerms, GrantKind, GrantSnapshot, SessionTerms
from identity.domain.refusals import Cause, Rejected
from identity.domain.values import Account, EndReason, PasswordChange, RoleChange
from identity.storage.database import Stores
from identity_client.errors import BadCredentials, GrantNotFound, ScopeNotGranted, TokenTooLarge
from identity_client.trust.entries import EntryKind
from tests.clients.issuer import FixedClock, new_id
from tests.contract.builders import (
    ACT,
    LIFETIME,
    TERMS,
    TooLarge,
    act_of,
    admit_all,
    audited,
    by_id,
    create_credential,
    create_service,
    create_user,
    dump,
    entries,
    log_in,
    new_session,
    use_secret,
)

NEW_HASH = "$argon2id$new"


async def change_password(
    stores: Stores, account: Account, version: int = 1, **changes: object
) -> tuple[GrantSnapshot, int | None]:
    change = PasswordChange(account.account_id, version, NEW_HASH)
    session = new_session(account, credential_version=version + 1, **changes)
    return await stores.sessions.change_password(change, session, admit_all, ACT)


# -- opening ---------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R10")
async def test_a_session_keeps_who_logged_in_for_what_from_where_and_until_when(
    stores: Stores, clock: FixedClock
) -> None:
    carol = await create_user(stores, "carol", "clerk")
    act = replace(ACT, origin="192.0.2.7", user_agent="curl/8")
    session = new_session(carol, audiences=("orders", "billing"), refresh_salt=None, token_hash=secrets.token_bytes(32))
    snapshot = await stores.sessions.open(session, admit_all, act)
    now = int(clock.now())
    found = await stores.sessions.get(carol.account_id, session.grant_id)
    assert (found.account_id, found.audiences) == (carol.account_id, ("orders", "billing"))
    assert (found.ip_address, found.user_agent) == ("192.0.2.7", "curl/8")
    assert (found.create_time, found.last_used_time) == (now, now - now % 60)
    assert (found.idle_expire_time, found.absolute_expire_time) == (now + 1_000, now + 5_000)
    assert (found.is_opaque, found.has_refresh) == (True, False)
    assert (snapshot.idle_expire_time, snapshot.absolute_expire_time) == (now + 1_000, now + 5_000)


async def test_the_idle_life_of_a_new_session_never_exceeds_the_absolute_one(stores: Stores, clock: FixedClock) -> None:
    carol = await create_user(stores)
    snapshot = await log_in(stores, carol, terms=SessionTerms(idle_lifetime=9_000, absolute_lifetime=5_000))
    assert snapshot.idle_expire_time == clock.now() + 5_000


@pytest.mark.requirement("R7")
async def test_a_log_in_whose_token_does_not_fit_leaves_nothing_behind(stores: Stores, url: str) -> None:
    carol = await create_user(stores, "carol", "clerk")
    before, admit = dump(url), TooLarge()
    with pytest.raises(TokenTooLarge):
        await stores.sessions.open(new_session(carol), admit, ACT)
    assert [snapshot.roles for snapshot in admit.seen] == [("clerk",)]
    assert dump(url) == before


@pytest.mark.requirement("R7")
@pytest.mark.parametrize("is_repeat", [False, True])
async def test_a_renewal_whose_token_does_not_fit_leaves_the_session_as_it_was(
    stores: Stores, url: str, is_repeat: bool
) -> None:
    snapshot = await log_in(stores, await create_user(stores))
    held = await stores.sessions.find(snapshot.grant_id)
    assert held is not None
    before = dump(url)
    with pytest.raises(TokenTooLarge):
        if is_repeat:
            await stores.sessions.repeat(held, LIFETIME, TooLarge(), ACT)
        else:
            await stores.sessions.rotate(held, 60, LIFETIME, TooLarge(), ACT)
    assert dump(url) == before
    assert await stores.sessions.rotate(held, 60, LIFETIME, admit_all, ACT)


@pytest.mark.requirement("R7")
async def test_a_password_change_whose_token_does_not_fit_changes_no_password(stores: Stores, url: str) -> None:
    carol = await create_user(stores)
    await log_in(stores, carol)
    before = dump(url)
    change = PasswordChange(carol.account_id, 1, NEW_HASH)
    with pytest.raises(TokenTooLarge):
        await stores.sessions.change_password(change, new_session(carol, credential_version=2), TooLarge(), ACT)
    assert dump(url) == before
    assert await entries(stores) == []


async def test_one_that_does_not_fit_fails_alone_among_those_committed_with_it(stores: Stores, url: str) -> None:
    carol = await create_user(stores)
    sessions = [new_session(carol) for _ in range(20)]
    results = await asyncio.gather(
        *(
            stores.sessions.open(session, TooLarge() if number % 5 == 3 else admit_all, ACT)
            for number, session in enumerate(sessions)
        ),
        return_exceptions=True,
    )
    assert [type(result) is GrantSnapshot for result in results] == [number % 5 != 3 for number in range(20)]
    for session, result in zip(sessions, results, strict=True):
        found = await stores.sessions.find(session.grant_id)
        assert (found is not None) == (type(result) is GrantSnapshot)
    assert audited(url).count("session.open ok") == 16


# -- another password ------------------------------------------------------------------------------------------------


async def test_another_password_ends_every_other_session_and_outdates_every_token(
    stores: Stores, url: str, clock: FixedClock
) -> None:
    carol, dave = await create_user(stores, "carol", "clerk"), await create_user(stores, "dave")
    olds, others = [await log_in(stores, carol) for _ in range(3)], await log_in(stores, dave)
    snapshot, version = await change_password(stores, carol)
    for old in olds:
        held = await stores.sessions.find(old.grant_id)
        assert held is not None
        assert held.end_time == clock.now()
        assert await stores.sessions.rotate(held, 60, LIFETIME, admit_all, ACT) is None
    assert (snapshot.generation, snapshot.roles, version) == (2, ("clerk",), 1)
    assert await entries(stores) == [(1, EntryKind.ACCOUNT, carol.account_id, 2, int(clock.now()) + LIFETIME + 630)]
    assert [found.session_id for found in await stores.sessions.list_page(carol.account_id, None, 10)] == [
        snapshot.grant_id
    ]
    for grant_id in (snapshot.grant_id, others.grant_id):
        held = await stores.sessions.find(grant_id)
        assert held is not None
        assert await stores.sessions.rotate(held, 60, LIFETIME, admit_all, ACT)
    record = await stores.accounts.find_password("carol")
    assert record is not None
    assert (record.password_hash, record.credential_version) == (NEW_HASH, 2)
    assert "password.change ok" in audited(url)


async def test_another_password_lifts_the_demand_for_one(stores: Stores) -> None:
    account = await create_user(stores)
    await stores._access.write(
        lambda connection, _: connection.exec_driver_sql("UPDATE accounts SET password_change_required = true")
    )
    assert (await stores.accounts.get(by_id(account.account_id))).password_change_required
    await change_password(stores, account)
    assert not (await stores.accounts.get(by_id(account.account_id))).password_change_required


@pytest.mark.parametrize("meanwhile", ["another password", "disabled"])
async def test_of_two_changes_of_one_password_the_slower_changes_nothing(
    stores: Stores, url: str, meanwhile: str
) -> None:
    carol = await create_user(stores)
    if meanwhile == "disabled":
        await stores.accounts.disable(by_id(carol.account_id), ACT)
    else:
        await change_password(stores, carol)
    before = dump(url)
    with pytest.raises(Rejected) as refused:
        await change_password(stores, carol)
    assert refused.value.cause is Cause.CREDENTIAL_CHANGED
    assert dump(url) == before


async def test_of_many_changes_at_once_one_wins_and_one_session_lives(stores: Stores) -> None:
    carol = await create_user(stores)
    results = await asyncio.gather(*(change_password(stores, carol) for _ in range(20)), return_exceptions=True)
    winners = [result for result in results if not isinstance(result, BaseException)]
    assert len(winners) == 1
    assert all(isinstance(result, BadCredentials) for result in results if isinstance(result, BaseException))
    assert [found.session_id for found in await stores.sessions.list_page(carol.account_id, None, 30)] == [
        winners[0][0].grant_id
    ]


@pytest.mark.parametrize("is_change_first", [True, False])
async def test_no_session_of_the_old_password_outlives_its_change(stores: Stores, is_change_first: bool) -> None:
    carol = await create_user(stores)
    session = new_session(carol)
    calls = [change_password(stores, carol), stores.sessions.open(session, admit_all, ACT)]
    await asyncio.gather(*(calls if is_change_first else calls[::-1]), return_exceptions=True)
    held = await stores.sessions.find(session.grant_id)
    assert held is None or held.end_time is not None
    assert (held is None) == is_change_first


async def test_an_old_hash_that_is_renewed_does_not_undo_another_password(stores: Stores) -> None:
    carol = await create_user(stores)
    await change_password(stores, carol)
    await stores.accounts.replace_hash(carol.account_id, "$argon2id$...", "$argon2id$rehashed")
    record = await stores.accounts.find_password("carol")
    assert record is not None
    assert record.password_hash == NEW_HASH


async def test_a_password_change_that_asks_for_too_much_changes_nothing(stores: Stores, url: str) -> None:
    carol = await create_user(stores, "carol", "peer")
    before = dump(url)
    with pytest.raises(ScopeNotGranted):
        await change_password(stores, carol, requested_scopes=("identity.admin",))
    assert dump(url) == before


# -- roles are read live ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("R15")
async def test_a_renewed_session_has_the_roles_and_scopes_of_now(stores: Stores) -> None:
    await stores.roles.create("reader", ("orders.read",), "", ACT)
    carol = await create_user(stores, "carol", "reader")
    snapshot = await log_in(stores, carol)
    assert snapshot.scopes == ("orders.read",)
    await stores.roles.update("reader", RoleChange(scopes=("orders.list", "orders.write")), ACT)
    held = await stores.sessions.find(snapshot.grant_id)
    assert held is not None
    rotated = await stores.sessions.rotate(held, 60, LIFETIME, admit_all, ACT)
    assert rotated is not None
    assert rotated.scopes == ("orders.list", "orders.write")
    assert rotated.policy_version == snapshot.policy_version + 1
    assert rotated.generation == snapshot.generation


# -- seen and ended by the account itself ----------------------------------------------------------------------------


async def test_sessions_are_listed_newest_first_page_by_page_while_others_come_and_go(
    stores: Stores, clock: FixedClock
) -> None:
    carol, dave = await create_user(stores, "carol"), await create_user(stores, "dave")
    opened = []
    for number in range(12):
        opened.append((await log_in(stores, carol)).grant_id)
        await log_in(stores, dave)
        clock.advance(number % 3 == 0)
    first = await stores.sessions.list_page(carol.account_id, None, 5)
    await log_in(stores, carol)  # newer than the first page: not on a later one
    await stores.grants.end(first[-1].session_id, EndReason.REVOKED, "", ACT)  # the page goes on after it all the same
    last = first[-1]
    rest = await stores.sessions.list_page(carol.account_id, (last.create_time, last.session_id), 100)
    times = [(found.create_time, found.session_id) for found in [*first, *rest]]
    assert times == sorted(times, reverse=True)
    assert sorted(found.session_id for found in [*first, *rest]) == sorted(opened)


async def test_what_is_over_or_anothers_is_not_found(stores: Stores, clock: FixedClock) -> None:
    carol, dave = await create_user(stores, "carol"), await create_user(stores, "dave")
    service, secret_id = await create_service(stores)
    terms = CredentialTerms(expire_time=int(clock.now()) + 100_000)
    key = await create_credential(stores, service, GrantKind.API_KEY, terms=terms)
    ended, others, expired = await log_in(stores, carol), await log_in(stores, dave), await log_in(stores, carol)
    await stores.grants.end(ended.grant_id, EndReason.REVOKED, "", ACT)
    await is_hidden(stores, carol, ended.grant_id, others.grant_id, new_id())
    await is_hidden(stores, service, secret_id, key.grant_id)
    assert await stores.sessions.list_page(service.account_id, None, 10) == []
    clock.advance(TERMS.idle_lifetime)
    await is_hidden(stores, carol, expired.grant_id)
    assert await stores.sessions.list_page(carol.account_id, None, 10) == []


async def is_hidden(stores: Stores, account: Account, *grant_ids: str) -> None:
    for grant_id in grant_ids:
        with pytest.raises(GrantNotFound):
            await stores.sessions.get(account.account_id, grant_id)
        with pytest.raises(GrantNotFound):
            await stores.grants.end_session(account.account_id, grant_id, EndReason.LOGGED_OUT, ACT)


@pytest.mark.requirement("R12")
async def test_a_session_is_seen_until_its_very_last_second(stores: Stores, clock: FixedClock) -> None:
    carol = await create_user(stores)
    snapshot = await log_in(stores, carol)
    clock.advance(TERMS.idle_lifetime - 1)
    assert await stores.sessions.get(carol.account_id, snapshot.grant_id)
    clock.advance(1)
    with pytest.raises(GrantNotFound):
        await stores.sessions.get(carol.account_id, snapshot.grant_id)


@pytest.mark.requirement("R5")
async def test_logging_out_everywhere_ends_sessions_of_every_kind_and_leaves_credentials(
    stores: Stores, clock: FixedClock
) -> None:
    service, secret_id = await create_service(stores)
    terms = CredentialTerms(expire_time=int(clock.now()) + 100_000)
    key = await create_credential(stores, service, GrantKind.API_KEY, terms=terms)
    kinds: tuple[dict[str, object], ...] = (
        {},
        {"refresh_salt": None},
        {"refresh_salt": None, "token_hash": bytes(32)},
    )
    opened = [await log_in(stores, service, **kind) for kind in kinds]
    caller = act_of(opened[0], scope="")
    ended = await stores.grants.end_sessions(service.account_id, EndReason.LOGGED_OUT, caller)
    assert (ended.grant_count, ended.version) == (3, 1)
    assert await stores.sessions.list_page(service.account_id, None, 10) == []
    assert (await stores.accounts.get(by_id(service.account_id))).generation == 2
    for grant_id in (secret_id, key.grant_id):
        assert (await use_secret(stores, grant_id)).generation == 2
    expire_time = int(clock.now()) + LIFETIME + 630
    assert await entries(stores) == [(1, EntryKind.ACCOUNT, service.account_id, 2, expire_time)]


@pytest.mark.requirement("R5")
async def test_peers_are_told_of_an_ended_session_token_for_as_long_as_they_may_remember_it(
    stores: Stores, clock: FixedClock
) -> None:
    carol = await create_user(stores)
    opaque = await log_in(stores, carol, refresh_salt=None, token_hash=bytes(32))
    clock.advance(500)
    ended = await stores.grants.end_session(carol.account_id, opaque.grant_id, EndReason.LOGGED_OUT, ACT)
    assert ended.version == 1
    assert await entries(stores) == [(1, EntryKind.GRANT, opaque.grant_id, 0, int(clock.now()) + 60 + 630)]


@pytest.mark.requirement("R5")
@pytest.mark.parametrize("is_key", [False, True])
async def test_peers_are_told_of_a_new_generation_where_they_may_remember_an_opaque_text(
    stores: Stores, clock: FixedClock, is_key: bool
) -> None:
    carol = await create_user(stores)
    if is_key:
        await create_credential(stores, carol, GrantKind.API_KEY, use=ApiKeyUse.BEARER)
    else:
        await log_in(stores, carol, refresh_salt=None, token_hash=bytes(32))
    clock.advance(500)
    assert (await stores.grants.end_sessions(carol.account_id, EndReason.LOGGED_OUT, ACT)).version == 1
    assert await entries(stores) == [(1, EntryKind.ACCOUNT, carol.account_id, 2, int(clock.now()) + 60 + 630)]


@pytest.mark.parametrize("use", [None, ApiKeyUse.EXCHANGE])
async def test_peers_are_not_told_of_what_they_cannot_hold(stores: Stores, use: ApiKeyUse | None) -> None:
    service, _ = await create_service(stores)
    if use is not None:
        await create_credential(stores, service, GrantKind.API_KEY, use=use)
    assert (await stores.grants.end_sessions(service.account_id, EndReason.LOGGED_OUT, ACT)).version is None
