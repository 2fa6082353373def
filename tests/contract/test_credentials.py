"""Credentials of machines as the store keeps them: created, listed, used, expired, spent."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from pathlib import Path

import pytest

from identity.domain.grants import ApiKeyUse, CredentialTerms, CredentialUse, GrantKind, NewCredential, UsedAssertion
from identity.domain.refusals import Cause, Rejected
from identity.domain.values import EndReason, RoleChange
from identity.storage.database import Stores, open_stores
from identity_client.errors import (
    AccountNotFound,
    CredentialAlreadyExists,
    GrantNotFound,
    InvalidRequest,
    PermissionMissing,
    ScopeNotGranted,
    TokenTooLarge,
)
from identity_client.trust.entries import EntryKind
from tests.clients.issuer import FixedClock, new_id
from tests.contract.builders import (
    ACT,
    LIFETIME,
    TooLarge,
    act_of,
    audited,
    by_id,
    count_rows,
    create_credential,
    create_service,
    create_user,
    dump,
    entries,
    find_credential,
    log_in,
    proves,
    use_secret,
)

KEY_NAME = "k" * 43
SPIFFE_NAME = "spiffe://prod/orders"
KEY = {"lookup_name": KEY_NAME, "public_key": (bytes(32), bytes(32))}


def assertion(expire_time: float, name: bytes = b"a") -> UsedAssertion:
    return UsedAssertion(name * 32, int(expire_time))


async def refused(stores: Stores, grant_id: str, **changes: object) -> Cause:
    with pytest.raises(Rejected) as caught:
        await use_secret(stores, grant_id, **changes)
    return caught.value.cause


# -- creating --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in GrantKind if kind is not GrantKind.SESSION])
async def test_a_credential_is_kept_with_its_terms(stores: Stores, clock: FixedClock, kind: GrantKind) -> None:
    service, _ = await create_service(stores, "orders", "peer")
    now = int(clock.now())
    terms = CredentialTerms("for the night job", ("orders", "billing"), ("identity.watch",), now + 100)
    created = await create_credential(stores, service, kind, terms=terms)
    assert (created.account_id, created.kind, created.terms) == (service.account_id, kind, terms)
    assert (created.create_time, created.last_used_time) == (now, None)
    assert created in await stores.credentials.list_page(by_id(service.account_id), None, 10)


@pytest.mark.parametrize("kind", [GrantKind.CLIENT_SECRET, GrantKind.PUBLIC_KEY, GrantKind.CERTIFICATE])
async def test_a_user_has_no_credential_of_a_service(stores: Stores, url: str, kind: GrantKind) -> None:
    carol = await create_user(stores)
    before = dump(url)
    with pytest.raises(InvalidRequest) as caught:
        await create_credential(stores, carol, kind)
    assert caught.value.field == "account"
    assert dump(url) == before


@pytest.mark.requirement("R30")
async def test_a_user_has_api_keys_several_at_once(stores: Stores) -> None:
    carol = await create_user(stores)
    keys = [await create_credential(stores, carol, GrantKind.API_KEY, use=ApiKeyUse.BEARER) for _ in range(3)]
    listed = await stores.credentials.list_page(by_id(carol.account_id), None, 10)
    assert {key.grant_id for key in listed} == {key.grant_id for key in keys}


async def test_a_credential_grants_nothing_that_its_account_has_not(stores: Stores, url: str) -> None:
    service, _ = await create_service(stores, "orders", "peer")
    before = dump(url)
    terms = CredentialTerms(scopes=("identity.watch", "identity.admin"))
    with pytest.raises(ScopeNotGranted):
        await create_credential(stores, service, GrantKind.CLIENT_SECRET, terms=terms)
    assert dump(url) == before


async def test_no_credential_without_its_account(stores: Stores) -> None:
    service, _ = await create_service(stores)
    with pytest.raises(AccountNotFound):
        await create_credential(stores, replace(service, account_id=new_id()), GrantKind.API_KEY)
    with pytest.raises(AccountNotFound):
        await stores.credentials.list_page(by_id(new_id()), None, 10)


async def test_only_an_admin_creates_and_ends_credentials(stores: Stores, url: str) -> None:
    service, grant_id = await create_service(stores)
    act = act_of(await log_in(stores, await create_user(stores)))
    before = dump(url)
    with pytest.raises(PermissionMissing):
        await stores.grants.end_credential(grant_id, EndReason.REVOKED, "", act)
    with pytest.raises(PermissionMissing):
        await stores.credentials.create(by_id(service.account_id), NewCredential(new_id(), GrantKind.API_KEY), act)
    assert dump(url) == before


@pytest.mark.requirement("R31")
@pytest.mark.parametrize("name", [KEY_NAME, SPIFFE_NAME, "dns:orders.internal"])
async def test_a_name_stands_for_one_live_credential(stores: Stores, url: str, name: str) -> None:
    kind = GrantKind.PUBLIC_KEY if name == KEY_NAME else GrantKind.CERTIFICATE
    orders, _ = await create_service(stores, "orders")
    billing, _ = await create_service(stores, "billing")
    first = await create_credential(stores, orders, kind, lookup_name=name)
    before = dump(url)
    for service in (orders, billing):
        with pytest.raises(CredentialAlreadyExists):
            await create_credential(stores, service, kind, lookup_name=name)
    assert dump(url) == before
    await stores.grants.end_credential(first.grant_id, EndReason.REVOKED, "", ACT)
    second = await create_credential(stores, billing, kind, lookup_name=name)
    found = await stores.credentials.find_by_name(kind, name)
    assert found is not None
    assert (found.grant_id, found.normalised_username, found.is_live) == (second.grant_id, "billing", True)


@pytest.mark.requirement("R31")
async def test_an_expired_one_makes_way_for_its_successor_and_not_a_second_before(
    stores: Stores, tmp_path: Path, clock: FixedClock
) -> None:
    service, _ = await create_service(stores)
    terms = CredentialTerms(expire_time=int(clock.now()) + 100)
    old = await create_credential(stores, service, GrantKind.PUBLIC_KEY, terms=terms, **KEY)
    clock.advance(99)
    with pytest.raises(CredentialAlreadyExists):
        await create_credential(stores, service, GrantKind.PUBLIC_KEY, **KEY)
    clock.advance(1)
    found = await stores.credentials.find_by_name(GrantKind.PUBLIC_KEY, KEY_NAME)
    assert found is not None
    assert not found.is_live
    new = await create_credential(stores, service, GrantKind.PUBLIC_KEY, **KEY)
    found = await stores.credentials.find_by_name(GrantKind.PUBLIC_KEY, KEY_NAME)
    assert found is not None
    assert (found.grant_id, found.is_live) == (new.grant_id, True)
    assert await refused(stores, old.grant_id) is Cause.CREDENTIAL_ENDED


async def test_of_many_registrations_of_one_name_one_wins(stores: Stores) -> None:
    service, _ = await create_service(stores)
    results = await asyncio.gather(
        *(create_credential(stores, service, GrantKind.PUBLIC_KEY, **KEY) for _ in range(20)), return_exceptions=True
    )
    assert sum(isinstance(result, CredentialAlreadyExists) for result in results) == 19


async def test_a_name_is_looked_up_for_its_own_kind(stores: Stores) -> None:
    service, _ = await create_service(stores)
    await create_credential(stores, service, GrantKind.CERTIFICATE, lookup_name=SPIFFE_NAME)
    assert await stores.credentials.find_by_name(GrantKind.PUBLIC_KEY, SPIFFE_NAME) is None
    assert await stores.credentials.find_by_name(GrantKind.CERTIFICATE, SPIFFE_NAME.upper()) is None
    assert await stores.credentials.find_by_name(GrantKind.CERTIFICATE, SPIFFE_NAME) is not None


# -- listing ---------------------------------------------------------------------------------------------------------


async def test_live_credentials_are_listed_newest_first_and_no_session_among_them(
    stores: Stores, clock: FixedClock
) -> None:
    service, first_id = await create_service(stores)
    other, _ = await create_service(stores, "billing")
    await log_in(stores, service)
    await create_credential(stores, other, GrantKind.API_KEY)
    clock.advance(1)
    terms = CredentialTerms(expire_time=int(clock.now()) + 10)
    expiring = await create_credential(stores, service, GrantKind.API_KEY, terms=terms)
    clock.advance(1)
    ended = await create_credential(stores, service, GrantKind.API_KEY)
    clock.advance(1)
    last = await create_credential(stores, service, GrantKind.API_KEY)
    await stores.grants.end_credential(ended.grant_id, EndReason.REVOKED, "", ACT)
    ref = by_id(service.account_id)
    assert [found.grant_id for found in await stores.credentials.list_page(ref, None, 2)] == [
        last.grant_id,
        expiring.grant_id,
    ]
    place = (expiring.create_time, expiring.grant_id)
    assert [found.grant_id for found in await stores.credentials.list_page(ref, place, 10)] == [first_id]
    clock.advance(8)
    listed = [found.grant_id for found in await stores.credentials.list_page(ref, None, 10)]
    assert listed == [last.grant_id, first_id]


# -- using -----------------------------------------------------------------------------------------------------------


async def test_a_use_is_noted_to_the_minute_and_audited(stores: Stores, url: str, clock: FixedClock) -> None:
    service, grant_id = await create_service(stores)
    clock.wall = 1_900_000_019.5
    snapshot = await use_secret(stores, grant_id)
    assert (snapshot.client_id, snapshot.authentication_time, snapshot.authentication_methods) == ("orders", None, ())
    assert snapshot.issue_time == 1_900_000_019
    [listed] = await stores.credentials.list_page(by_id(service.account_id), None, 10)
    assert listed.last_used_time == 1_900_000_019 - 1_900_000_019 % 60
    assert audited(url)[-1] == "client_secret.use ok"


async def test_account_credential_and_request_each_narrow(stores: Stores) -> None:
    await stores.roles.create("worker", ("a", "b", "c"), "", ACT)
    service, _ = await create_service(stores, "orders", "worker")
    terms = CredentialTerms(scopes=("a", "b"))
    key = await create_credential(stores, service, GrantKind.API_KEY, terms=terms, use=ApiKeyUse.EXCHANGE)
    assert (await use_secret(stores, key.grant_id)).scopes == ("a", "b")
    assert (await use_secret(stores, key.grant_id, requested_scopes=("b",))).scopes == ("b",)
    with pytest.raises(ScopeNotGranted):
        await use_secret(stores, key.grant_id, requested_scopes=("c",))
    await stores.roles.update("worker", RoleChange(scopes=("b", "c")), ACT)
    assert (await use_secret(stores, key.grant_id)).scopes == ("b",)
    await stores.roles.update("worker", RoleChange(scopes=("c",)), ACT)
    assert (await use_secret(stores, key.grant_id)).scopes == ()


@pytest.mark.requirement("R30")
async def test_a_credential_is_good_until_its_last_second(stores: Stores, clock: FixedClock) -> None:
    service, _ = await create_service(stores)
    terms = CredentialTerms(expire_time=int(clock.now()) + 100)
    key = await create_credential(stores, service, GrantKind.API_KEY, terms=terms)
    clock.advance(99.9)
    assert await use_secret(stores, key.grant_id)
    clock.advance(0.1)
    assert await refused(stores, key.grant_id) is Cause.CREDENTIAL_ENDED


@pytest.mark.parametrize("loss", ["ended", "disabled", "unknown"])
async def test_a_credential_that_is_over_gives_nothing_and_writes_nothing(stores: Stores, url: str, loss: str) -> None:
    service, grant_id = await create_service(stores)
    if loss == "ended":
        await stores.grants.end_credential(grant_id, EndReason.REVOKED, "", ACT)
    elif loss == "disabled":
        await stores.accounts.disable(by_id(service.account_id), ACT)
    else:
        grant_id = new_id()
    before = dump(url)
    assert await refused(stores, grant_id) is Cause.CREDENTIAL_ENDED
    assert dump(url) == before


@pytest.mark.requirement("R7")
async def test_a_machine_whose_token_does_not_fit_has_spent_nothing(
    stores: Stores, url: str, clock: FixedClock
) -> None:
    service, _ = await create_service(stores)
    key = await create_credential(stores, service, GrantKind.PUBLIC_KEY, **KEY)
    before, use = dump(url), assertion(clock.now() + 60)
    with pytest.raises(TokenTooLarge):
        fitting = CredentialUse("internal", (), LIFETIME, use)
        await stores.credentials.use(key.grant_id, proves(fitting), TooLarge(), "assertion.use", ACT)
    assert dump(url) == before
    assert await use_secret(stores, key.grant_id, assertion=use)


@pytest.mark.requirement("R30")
async def test_ending_a_credential_tells_peers_for_as_long_as_its_last_token_lives(
    stores: Stores, clock: FixedClock
) -> None:
    service, grant_id = await create_service(stores)
    unused = await create_credential(stores, service, GrantKind.API_KEY, use=ApiKeyUse.EXCHANGE)
    bearer = await create_credential(stores, service, GrantKind.API_KEY, use=ApiKeyUse.BEARER)
    await use_secret(stores, grant_id)
    clock.advance(10)
    results = [
        await stores.grants.end_credential(each, EndReason.REVOKED, "", ACT)
        for each in (grant_id, unused.grant_id, bearer.grant_id, grant_id)
    ]
    assert [(ended.grant_count, ended.version) for ended in results] == [(1, 1), (1, None), (1, 2), (0, None)]
    now = int(clock.now())
    assert await entries(stores) == [
        (1, EntryKind.GRANT, grant_id, 0, now - 10 + LIFETIME + 630),
        (2, EntryKind.GRANT, bearer.grant_id, 0, now + 60 + 630),
    ]


async def test_a_session_is_no_credential_and_what_is_not_there_cannot_end(stores: Stores) -> None:
    session = await log_in(stores, await create_user(stores))
    for grant_id in (session.grant_id, new_id()):
        with pytest.raises(GrantNotFound):
            await stores.grants.end_credential(grant_id, EndReason.REVOKED, "", ACT)
    assert await find_credential(stores, session.grant_id) is None


# -- assertions are good for one use ---------------------------------------------------------------------------------


@pytest.mark.requirement("R31")
async def test_an_assertion_is_spent_by_its_use_also_after_a_new_start(
    stores: Stores, url: str, clock: FixedClock
) -> None:
    service, _ = await create_service(stores)
    key = await create_credential(stores, service, GrantKind.PUBLIC_KEY, **KEY)
    use = assertion(clock.now() + 65)
    assert await use_secret(stores, key.grant_id, assertion=use)
    before = dump(url)
    assert await refused(stores, key.grant_id, assertion=use) is Cause.ASSERTION_REPLAYED
    assert dump(url) == before
    again = await open_stores(url, clock)
    assert await refused(again, key.grant_id, assertion=use) is Cause.ASSERTION_REPLAYED
    assert await use_secret(again, key.grant_id, assertion=assertion(clock.now() + 65, b"b"))
    await again.close()


@pytest.mark.requirement("R31")
async def test_of_many_uses_of_one_assertion_one_gives_a_token(stores: Stores, url: str, clock: FixedClock) -> None:
    service, _ = await create_service(stores)
    key = await create_credential(stores, service, GrantKind.PUBLIC_KEY, **KEY)
    use = assertion(clock.now() + 65)
    results = await asyncio.gather(
        *(use_secret(stores, key.grant_id, assertion=use) for _ in range(50)), return_exceptions=True
    )
    assert sum(not isinstance(result, BaseException) for result in results) == 1
    assert {result.cause for result in results if isinstance(result, Rejected)} == {Cause.ASSERTION_REPLAYED}
    assert count_rows(url, "used_assertions") == 1


@pytest.mark.requirement("R31")
async def test_a_key_that_is_registered_anew_remembers_what_it_signed_before(stores: Stores, clock: FixedClock) -> None:
    service, _ = await create_service(stores)
    key = await create_credential(stores, service, GrantKind.PUBLIC_KEY, **KEY)
    use = assertion(clock.now() + 65)
    await use_secret(stores, key.grant_id, assertion=use)
    await stores.grants.end_credential(key.grant_id, EndReason.REVOKED, "", ACT)
    again = await create_credential(stores, service, GrantKind.PUBLIC_KEY, **KEY)
    assert await refused(stores, again.grant_id, assertion=use) is Cause.ASSERTION_REPLAYED


async def test_two_keys_may_use_one_name_for_their_assertions(stores: Stores, clock: FixedClock) -> None:
    service, _ = await create_service(stores)
    use = assertion(clock.now() + 65)
    for name in ("a" * 43, "b" * 43):
        key = await create_credential(
            stores, service, GrantKind.PUBLIC_KEY, lookup_name=name, public_key=(secrets.token_bytes(32), bytes(32))
        )
        assert await use_secret(stores, key.grant_id, assertion=use)


async def test_a_refused_scope_does_not_spend_the_assertion(stores: Stores, clock: FixedClock) -> None:
    service, _ = await create_service(stores)
    key = await create_credential(stores, service, GrantKind.PUBLIC_KEY, **KEY)
    use = assertion(clock.now() + 65)
    with pytest.raises(ScopeNotGranted):
        await use_secret(stores, key.grant_id, assertion=use, requested_scopes=("a",))
    assert await use_secret(stores, key.grant_id, assertion=use)
