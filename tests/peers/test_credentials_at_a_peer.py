"""Every kind of credential at the example peer: accepted, alike to its handlers, and refused once it is taken back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from identity.config import Settings
from identity.v1 import account_pb2, credential_pb2, revocation_pb2
from identity_client.errors import TokenOutdated, TokenRevoked, WrongAudience
from identity_client.principal import BearerKind
from tests.assertions import AssertionKey, claims_of
from tests.peers.orders import Peer, feed_version, running
from tests.rpc.api import Api, bearer
from tests.rpc.refusals import refusal
from tests.rpc.test_machines import by_assertion, by_key, by_secret

BOUND_SECONDS = 5.0  # far above what a healthy machine needs; -s shows the measured figures

ISSUER = Settings().issuer


@pytest.fixture
async def orders(api: Api) -> AsyncIterator[Peer]:
    async with running(api) as peer:
        yield peer


Given = Callable[[Api], Awaitable[tuple[str, str, str]]]
"""Makes a credential; -> the bearer text, the account's name, and the grant to end."""


async def password(api: Api) -> tuple[str, str, str]:
    await api.create_user("carol", "clerk")
    tokens = await api.login("carol")
    return tokens.access_token, "carol", tokens.session_id


async def session_token(api: Api) -> tuple[str, str, str]:
    await api.create_user("carol", "clerk")
    opened = await api.open_session("carol", "orders")
    return opened.session_token, "carol", opened.session_id


async def bearer_key(api: Api) -> tuple[str, str, str]:
    await api.create_user("carol", "clerk")
    key = await api.create_api_key("carol", "orders")
    return key.api_key, "carol", key.credential.credential_id


async def exchange_key(api: Api) -> tuple[str, str, str]:
    await api.create_user("carol", "clerk")
    key = await api.create_api_key("carol", "orders", use=credential_pb2.API_KEY_USE_EXCHANGE)
    return (await by_key(api, key.api_key)).access_token, "carol", key.credential.credential_id


async def client_secret(api: Api) -> tuple[str, str, str]:
    await api.create_service("reports", "clerk")
    created = await api.create_client_secret("reports")
    token = (await by_secret(api, created.client_secret, "reports")).access_token
    return token, "reports", created.credential.credential_id


async def assertion(api: Api) -> tuple[str, str, str]:
    key = AssertionKey()
    await api.create_service("reports", "clerk")
    credential = await api.create_public_key("reports", key.pem)
    token = (await by_assertion(api, key.sign(claims_of("reports", ISSUER, time.time())))).access_token
    return token, "reports", credential.credential_id


KINDS: dict[str, Given] = {
    "password": password,
    "session token": session_token,
    "API key for bearer use": bearer_key,
    "API key for exchange": exchange_key,
    "client secret": client_secret,
    "assertion": assertion,
}


async def revoke(api: Api, _: str, grant_id: str) -> None:
    request = revocation_pb2.RevokeGrantRequest(grant_id=grant_id)
    await api.revocations.RevokeGrant(request, metadata=await api.admin())


async def disable(api: Api, username: str, _: str) -> None:
    request = account_pb2.DisableAccountRequest(username=username)
    await api.accounts.DisableAccount(request, metadata=await api.admin())


@pytest.mark.requirement("R2")
@pytest.mark.requirement("R30")
@pytest.mark.requirement("R31")
@pytest.mark.parametrize("take_back", [revoke, disable])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_taken_back_is_refused_at_the_peer(
    api: Api,
    orders: Peer,
    kind: str,
    take_back: Callable[[Api, str, str], Awaitable[None]],
) -> None:
    token, username, grant_id = await KINDS[kind](api)
    assert (await orders.caller(token)).grant_id == grant_id
    assert (await orders.caller(token)).roles == ("clerk",)
    await take_back(api, username, grant_id)
    start = time.monotonic()
    await orders.has_heard(await feed_version(api))
    error = await refusal(orders.call(token))
    assert isinstance(error, TokenRevoked | TokenOutdated)
    delay = time.monotonic() - start
    print(f"{kind}: refused {delay * 1000:.1f} ms after the acknowledgement")
    assert delay < BOUND_SECONDS
    assert len(orders.servicer.callers) == 2


@pytest.mark.requirement("R5")
@pytest.mark.requirement("R15")
@pytest.mark.parametrize("kind", ["session token", "API key for bearer use"])
async def test_a_role_taken_away_closes_an_opaque_text_that_the_peer_remembers(
    api: Api, orders: Peer, kind: str
) -> None:
    token, username, _ = await KINDS[kind](api)
    await orders.call(token)
    for roles, is_allowed in ((["auditor"], False), (["clerk"], True)):
        request = account_pb2.SetRolesRequest(username=username, roles=roles)
        await api.accounts.SetRoles(request, metadata=await api.admin())
        await orders.has_heard(await feed_version(api))
        if is_allowed:
            assert (await orders.caller(token)).roles == ("clerk",)
        else:
            assert (await refusal(orders.call(token))).reason == "PERMISSION_MISSING"


@pytest.mark.requirement("R15")
async def test_handlers_see_equal_principals_whatever_the_caller_carries(api: Api, orders: Peer) -> None:
    await api.create_role("reader", "orders.read", "orders.list")
    carol = await api.create_user("carol", "clerk", "reader")
    texts = {
        BearerKind.ACCESS_TOKEN: (await api.login("carol", audience="orders")).access_token,
        BearerKind.SESSION: (await api.open_session("carol", "orders")).session_token,
        BearerKind.API_KEY: (await api.create_api_key("carol", "orders")).api_key,
    }
    seen = {kind: await orders.caller(text) for kind, text in texts.items()}
    assert {kind: principal.kind for kind, principal in seen.items()} == {kind: kind for kind in texts}
    told = [
        (who.subject, who.client_id, who.audience, who.scopes, who.roles, who.generation, who.policy_version)
        for who in seen.values()
    ]
    assert told[0] == (carol.account_id, "first-party", "orders", *told[0][3:])
    assert told[0][3:6] == (("orders.list", "orders.read"), ("clerk", "reader"), 1)
    assert len(set(told)) == 1
    assert all(text not in repr(who) for who in seen.values() for text in texts.values())


@pytest.mark.requirement("R23")
async def test_what_orders_received_is_of_no_use_elsewhere(api: Api, orders: Peer) -> None:
    await api.create_user("eve", "clerk", "admin")
    async with running(api, "billing") as billing:
        for text in (
            (await api.login("eve", audience="orders")).access_token,
            (await api.open_session("eve", "orders")).session_token,
            (await api.create_api_key("eve", "orders")).api_key,
        ):
            assert await orders.call(text)
            assert isinstance(await refusal(billing.call(text)), TokenRevoked | WrongAudience)
            here = api.accounts.ListAccounts(account_pb2.ListAccountsRequest(), metadata=bearer(text))
            assert isinstance(await refusal(here), TokenRevoked | WrongAudience)
        assert not billing.servicer.callers
