"""Session tokens and API keys as they are introspected: live roles, idle and absolute expiry to the second."""

from __future__ import annotations

import pytest

from identity.domain.grants import ApiKeyUse, BearerRecord, CredentialTerms, GrantKind, NewCredential, SessionTerms
from identity.domain.introspect import Asker, Introspector
from identity.domain.minting import Minter
from identity.domain.randomness import SystemRandomness
from identity.domain.secrets import hash_secret
from identity.domain.values import Account, EndReason, RoleChange
from identity.storage.database import Stores
from identity_client.errors import DependencyDown
from identity_client.tokens import opaque
from identity_client.tokens.claims import Claims
from identity_client.tokens.verifier import Verifier
from identity_client.trust.state import TrustState
from tests.clients.issuer import ISSUER, FixedClock, new_id
from tests.contract.builders import (
    ACT,
    by_id,
    create_credential,
    create_service,
    create_user,
    dump,
    log_in,
)

IDLE, ABSOLUTE = 1_000, 2_500
SECRET = b"s" * opaque.SECRET_BYTES
ORDERS = Asker("orders")


class NoSigner:
    """Introspection signs nothing."""

    key_id = ""

    def sign(self, claims: Claims) -> str:
        raise AssertionError(f"signed {claims}")


class CountingBearers:
    """The real store; counts the writes, and can be told to fail them."""

    def __init__(self, stores: Stores) -> None:
        self._grants = stores.grants
        self.touched = 0
        self.is_down = False

    async def find_bearer(self, grant_id: str) -> BearerRecord | None:
        return await self._grants.find_bearer(grant_id)

    async def touch(self, grant_id: str) -> None:
        if self.is_down:
            raise DependencyDown()
        self.touched += 1
        await self._grants.touch(grant_id)


@pytest.fixture
def bearers(stores: Stores) -> CountingBearers:
    return CountingBearers(stores)


@pytest.fixture
def introspector(bearers: CountingBearers, clock: FixedClock) -> Introspector:
    verifier = Verifier(audiences=frozenset({"internal"}), trust=TrustState(clock), clock=clock)
    minter = Minter(NoSigner(), ISSUER, "identity", 600, SystemRandomness())
    return Introspector(verifier, bearers, minter, ISSUER, frozenset({"internal"}), clock)


async def open_session(stores: Stores, account: Account, *audiences: str) -> tuple[str, str]:
    """-> the session token, the session's id."""
    snapshot = await log_in(
        stores,
        account,
        audiences=audiences or ("orders",),
        refresh_salt=None,
        token_hash=hash_secret(SECRET),
        terms=SessionTerms(IDLE, ABSOLUTE),
    )
    return opaque.encode_secret(opaque.Kind.SESSION, snapshot.grant_id, SECRET), snapshot.grant_id


async def create_key(stores: Stores, account: Account, use: ApiKeyUse, terms: CredentialTerms) -> str:
    new = NewCredential(new_id(), GrantKind.API_KEY, terms, hash_secret(SECRET), use)
    created = await stores.credentials.create(by_id(account.account_id), new, ACT)
    return opaque.encode_secret(opaque.Kind.API_KEY, created.grant_id, SECRET)


@pytest.mark.requirement("R15")
async def test_roles_and_scopes_of_a_session_are_those_of_now(stores: Stores, introspector: Introspector) -> None:
    await stores.roles.create("reader", ("orders.read",), "", ACT)
    carol = await create_user(stores, "carol", "clerk")
    token, _ = await open_session(stores, carol)

    async def seen() -> tuple[tuple[str, ...], tuple[str, ...], int]:
        active = await introspector.introspect(token, ORDERS)
        assert active is not None
        return active.claims.roles, active.claims.scopes, active.claims.generation

    assert await seen() == (("clerk",), (), 1)
    await stores.accounts.set_roles(by_id(carol.account_id), ("manager", "reader"), ACT)
    assert await seen() == (("manager", "reader"), ("orders.read",), 2)
    await stores.roles.update("reader", RoleChange(scopes=("orders.list",)), ACT)
    assert await seen() == (("manager", "reader"), ("orders.list",), 2)


@pytest.mark.requirement("R12")
@pytest.mark.requirement("R42")
async def test_an_unused_session_ends_with_its_idle_second(
    stores: Stores, introspector: Introspector, clock: FixedClock
) -> None:
    token, _ = await open_session(stores, await create_user(stores))
    clock.advance(IDLE - 0.001)
    assert await introspector.introspect(token, ORDERS)
    token, _ = await open_session(stores, await create_user(stores, "dave"))
    clock.advance(IDLE + 0.001)  # to the whole second
    assert await introspector.introspect(token, ORDERS) is None


@pytest.mark.requirement("R12")
@pytest.mark.requirement("R42")
async def test_use_moves_the_idle_end_and_never_the_absolute_one(
    stores: Stores, introspector: Introspector, clock: FixedClock
) -> None:
    clock.wall = 1_900_000_020.0  # on the minute: uses are noted to it
    start, (token, session_id) = clock.now(), await open_session(stores, carol := await create_user(stores))
    for _ in range(2):
        clock.advance(IDLE - 1)
        active = await introspector.introspect(token, ORDERS)
        assert active is not None
        found = await stores.sessions.get(carol.account_id, session_id)
        assert found.idle_expire_time == min(clock.now() + IDLE, start + ABSOLUTE)
        assert found.absolute_expire_time == start + ABSOLUTE
    clock.advance(start + ABSOLUTE - clock.now() - 1)
    assert await introspector.introspect(token, ORDERS)
    clock.advance(1)
    assert await introspector.introspect(token, ORDERS) is None


@pytest.mark.requirement("R12")
async def test_a_session_is_touched_at_most_once_a_minute(
    stores: Stores, introspector: Introspector, bearers: CountingBearers, clock: FixedClock, url: str
) -> None:
    clock.wall = 1_900_000_020.0
    token, _ = await open_session(stores, await create_user(stores))
    before = dump(url)
    for _ in range(59):
        assert await introspector.introspect(token, ORDERS)
        clock.advance(1)
    assert bearers.touched == 0
    assert dump(url) == before
    for _ in range(180):
        clock.advance(1)
        assert await introspector.introspect(token, ORDERS)
    assert bearers.touched == 3


async def test_a_use_that_cannot_be_noted_is_answered_all_the_same(
    stores: Stores, introspector: Introspector, bearers: CountingBearers, clock: FixedClock
) -> None:
    token, _ = await open_session(stores, await create_user(stores))
    clock.advance(120)
    bearers.is_down = True
    assert await introspector.introspect(token, ORDERS)


async def test_a_session_that_ended_is_not_revived_by_a_late_touch(
    stores: Stores, introspector: Introspector, clock: FixedClock, url: str
) -> None:
    token, session_id = await open_session(stores, await create_user(stores))
    _, expired_id = await open_session(stores, await create_user(stores, "dave"))
    clock.advance(IDLE - 1)
    await stores.grants.end(session_id, EndReason.REVOKED, "", ACT)
    clock.advance(1)
    before = dump(url)
    for each in (session_id, expired_id, new_id()):
        await stores.grants.touch(each)
    assert dump(url) == before
    assert await introspector.introspect(token, ORDERS) is None


@pytest.mark.parametrize("loss", ["ended", "disabled"])
async def test_a_session_that_is_over_is_not_active(stores: Stores, introspector: Introspector, loss: str) -> None:
    carol = await create_user(stores)
    token, session_id = await open_session(stores, carol)
    key = await create_key(stores, carol, ApiKeyUse.BEARER, CredentialTerms(audiences=("orders",)))
    assert await introspector.introspect(key, ORDERS)
    if loss == "ended":
        await stores.grants.end(session_id, EndReason.REVOKED, "", ACT)
        await stores.grants.end_credential(opaque.split_secret(key, opaque.Kind.API_KEY)[0], EndReason.REVOKED, "", ACT)
    else:
        await stores.accounts.disable(by_id(carol.account_id), ACT)
    assert await introspector.introspect(token, ORDERS) is None
    assert await introspector.introspect(key, ORDERS) is None


@pytest.mark.requirement("R30")
async def test_an_api_key_is_active_by_its_terms(stores: Stores, introspector: Introspector, clock: FixedClock) -> None:
    await stores.roles.create("worker", ("a", "b"), "", ACT)
    service, _ = await create_service(stores, "reports", "worker")
    terms = CredentialTerms("", ("orders",), ("a",), int(clock.now()) + 100)
    key = await create_key(stores, service, ApiKeyUse.BEARER, terms)
    active = await introspector.introspect(key, ORDERS)
    assert active is not None
    claims = active.claims
    assert (claims.client_id, claims.audience, claims.scopes, claims.expire_time) == (
        "reports",
        "orders",
        ("a",),
        clock.now() + 100,
    )
    assert (claims.authentication_time, claims.authentication_methods, claims.token_id) == (None, (), "")
    assert await introspector.introspect(key, Asker("billing")) is None
    listed = await stores.credentials.list_page(by_id(service.account_id), None, 2)
    [used] = [found.last_used_time for found in listed if found.kind is GrantKind.API_KEY]
    assert used == int(clock.now()) - int(clock.now()) % 60
    clock.advance(100)
    assert await introspector.introspect(key, ORDERS) is None


@pytest.mark.requirement("R30")
async def test_a_key_for_exchange_is_no_bearer(stores: Stores, introspector: Introspector) -> None:
    key = await create_key(
        stores, await create_user(stores), ApiKeyUse.EXCHANGE, CredentialTerms(audiences=("orders",))
    )
    assert await introspector.introspect(key, ORDERS) is None


@pytest.mark.requirement("R10")
async def test_only_the_very_secret_fits(stores: Stores, introspector: Introspector) -> None:
    _, session_id = await open_session(stores, await create_user(stores))
    wrong = bytes([SECRET[0] ^ 1]) + SECRET[1:]
    for text in (
        opaque.encode_secret(opaque.Kind.SESSION, session_id, wrong),
        opaque.encode_secret(opaque.Kind.API_KEY, session_id, SECRET),
        opaque.encode_secret(opaque.Kind.CLIENT_SECRET, session_id, SECRET),
        opaque.encode_secret(opaque.Kind.SESSION, new_id(), SECRET),
        opaque.encode_secret(opaque.Kind.SESSION, session_id, SECRET)[:-1],
    ):
        assert await introspector.introspect(text, ORDERS) is None


@pytest.mark.requirement("R24")
async def test_a_session_with_refresh_has_no_session_token(stores: Stores, introspector: Introspector) -> None:
    snapshot = await log_in(stores, await create_user(stores), audiences=("orders",))
    for secret in (SECRET, bytes(32)):
        text = opaque.encode_secret(opaque.Kind.SESSION, snapshot.grant_id, secret)
        assert await introspector.introspect(text, ORDERS) is None


async def test_a_credential_of_another_kind_is_no_bearer(stores: Stores, introspector: Introspector) -> None:
    service, _ = await create_service(stores)
    secret = await create_credential(stores, service, GrantKind.CLIENT_SECRET, terms=CredentialTerms("", ("orders",)))
    assert await stores.grants.find_bearer(secret.grant_id) is None
    key = await create_credential(stores, service, GrantKind.PUBLIC_KEY, lookup_name="k" * 43)
    assert await stores.grants.find_bearer(key.grant_id) is None


async def test_scopes_of_this_service_are_named_to_it_alone(stores: Stores, introspector: Introspector) -> None:
    token, _ = await open_session(stores, await create_user(stores, "eve", "admin"), "orders", "identity")
    at_orders = await introspector.introspect(token, ORDERS)
    here = await introspector.introspect(token, Asker("identity"))
    assert at_orders is not None
    assert here is not None
    assert (at_orders.claims.scopes, at_orders.claims.audience) == ((), "orders")
    assert (here.claims.scopes, here.claims.audience) == (
        ("identity.admin", "identity.admin.read", "identity.audit"),
        "identity",
    )
