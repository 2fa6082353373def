"""What a service is told of bearer texts of every kind: all it judges by, or that the text is not active."""

from __future__ import annotations

import pytest

from identity.v1 import credential_pb2, token_pb2
from identity_client.errors import CredentialsMissing, InvalidRequest, PermissionMissing
from tests.clients.issuer import FixedClock
from tests.rpc.api import Api, Metadata, bearer
from tests.rpc.refusals import refusal
from tests.rpc.test_machines import by_key, by_secret
from tests.rpc.test_revoke_and_introspect import payload_of

INACTIVE = token_pb2.IntrospectResponse()


async def batch(api: Api, texts: list[str], caller: Metadata) -> list[token_pb2.IntrospectResponse]:
    request = token_pb2.BatchIntrospectRequest(tokens=texts)
    return list((await api.tokens.BatchIntrospect(request, metadata=caller)).results)


async def bearers(api: Api, *audiences: str) -> dict[str, str]:
    """A text of each kind that peers take, of one account, for *audiences*."""
    return {
        "access": (await api.login("carol", audience=audiences[0])).access_token,
        "session": (await api.open_session("carol", *audiences)).session_token,
        "key": (await api.create_api_key("carol", *audiences)).api_key,
    }


@pytest.mark.requirement("R23")
async def test_each_kind_is_active_for_its_audience_alone(api: Api) -> None:
    await api.create_user("carol", "clerk")
    orders, billing = await api.peer("orders"), await api.peer("billing")
    for text in (await bearers(api, "orders")).values():
        assert (await api.introspect(text, orders)).active
        assert await api.introspect(text, billing) == INACTIVE
    for text in (await bearers(api, "internal")).values():
        assert [(await api.introspect(text, peer)).audience for peer in (orders, billing)] == ["internal"] * 2


@pytest.mark.requirement("R23")
async def test_a_text_for_two_services_names_to_each_its_own_audience(api: Api) -> None:
    await api.create_user("carol")
    orders, billing = await api.peer("orders"), await api.peer("billing")
    texts = await bearers(api, "orders", "billing")
    for kind in ("session", "key"):
        assert (await api.introspect(texts[kind], orders)).audience == "orders"
        assert (await api.introspect(texts[kind], billing)).audience == "billing"


async def test_who_may_ask_for_any_service_is_told_of_all(api: Api) -> None:
    await api.create_user("carol")
    await api.create_service("orders")
    await api.create_role("inspector", "identity.introspect.any")
    gateway, peer = await api.peer("gateway", "inspector"), await api.peer("billing")
    for text in (await bearers(api, "orders")).values():
        assert (await api.introspect(text, gateway)).audience == "orders"
        assert await api.introspect(text, peer) == INACTIVE


async def test_each_kind_says_all_that_a_peer_judges_by(timed_api: Api, server_clock: FixedClock) -> None:
    api, now = timed_api, int(server_clock.wall)
    await api.create_role("reader", "orders.read")
    carol = await api.create_user("carol", "clerk", "reader")
    peer = await api.peer("orders")
    kinds = {
        "access": token_pb2.TOKEN_KIND_ACCESS_TOKEN,
        "session": token_pb2.TOKEN_KIND_SESSION,
        "key": token_pb2.TOKEN_KIND_API_KEY,
    }
    for kind, text in (await bearers(api, "orders")).items():
        answer = await api.introspect(text, peer)
        assert answer.kind == kinds[kind]
        assert (answer.account_id, answer.client_id, answer.audience) == (carol.account_id, "first-party", "orders")
        assert (list(answer.roles), list(answer.scopes)) == (["clerk", "reader"], ["orders.read"])
        assert answer.generation == 1
        assert answer.policy_version > 1
        assert answer.issue_time.seconds == now
        assert (answer.token_id != "", answer.key_id != "") == (kind == "access",) * 2
        assert answer.HasField("authentication_time") == (kind != "key")
        assert list(answer.authentication_methods) == ([] if kind == "key" else ["pwd"])
        assert answer.certificate_thumbprint == ""


@pytest.mark.requirement("R24")
async def test_what_is_no_bearer_text_is_never_active(api: Api) -> None:
    await api.create_user("carol")
    service = await api.create_service("billing")
    peer, tokens = await api.peer("orders"), await api.login("carol")
    exchange = await api.create_api_key("carol", "orders", use=credential_pb2.API_KEY_USE_EXCHANGE)
    opened = await api.open_session("carol")
    texts = [
        tokens.refresh_token,
        service.client_secret,
        exchange.api_key,
        tokens.session_id,
        opened.session_token[:-1],
        opened.session_token + "A",
        opened.session_token.swapcase(),
        "idk_" + opened.session_token[4:],
        "nonsense",
        "Bearer " + tokens.access_token,
    ]
    assert await batch(api, texts, peer) == [INACTIVE] * len(texts)
    assert (await api.introspect((await by_key(api, exchange.api_key)).access_token, peer)).active


async def test_a_batch_answers_in_its_order(api: Api) -> None:
    await api.create_user("carol")
    peer = await api.peer("orders")
    texts = [(await api.login("carol")).access_token, "nonsense", (await api.open_session("carol")).session_token]
    alone = [await api.introspect(text, peer) for text in texts]
    together = await batch(api, texts * 33 + ["x"], peer)
    assert [answer.grant_id for answer in together] == [answer.grant_id for answer in alone] * 33 + [""]
    assert [answer.active for answer in together] == [True, False, True] * 33 + [False]


async def test_a_bad_batch_is_named(api: Api) -> None:
    peer = await api.peer("orders")
    for texts, field in (
        ([], "tokens"),
        (["x"] * 101, "tokens"),
        (["x", ""], "tokens[1]"),
        (["x" * 4_097], "tokens[0]"),
    ):
        error = await refusal(batch(api, texts, peer))
        assert isinstance(error, InvalidRequest)
        assert error.field == field


async def test_only_services_that_introspect_may_ask(api: Api) -> None:
    await api.create_user("carol")
    secret = (await api.create_service("orders")).client_secret
    no_peer = bearer((await by_secret(api, secret, audience="identity")).access_token)
    session = bearer((await api.open_session("carol", "identity")).session_token)
    for caller in (no_peer, session):
        assert isinstance(await refusal(api.introspect("x", caller)), PermissionMissing)
        assert isinstance(await refusal(batch(api, ["x"], caller)), PermissionMissing)
    assert isinstance(await refusal(api.introspect("x", ())), CredentialsMissing)


@pytest.mark.requirement("R30")
async def test_a_service_may_ask_with_its_own_api_key(api: Api) -> None:
    await api.create_user("carol")
    await api.create_service("orders", "peer")
    key = await api.create_api_key("orders", "identity", scopes=["identity.introspect"])
    opened = await api.open_session("carol", "orders")
    answer = await api.introspect(opened.session_token, bearer(key.api_key))
    assert (answer.active, answer.audience) == (True, "orders")


@pytest.mark.requirement("R7")
async def test_an_access_token_with_ten_roles_is_under_1_kib(api: Api) -> None:
    names = [f"department-{number}-clerk" for number in range(10)]
    for name in names:
        await api.create_role(name, f"orders.{name}.read")
    await api.create_user("carol", *names)
    token = (await api.login("carol")).access_token
    assert payload_of(token)["roles"] == sorted(names)
    scopes = [f"orders.{name}.read" for name in names[:2]]
    assert len((await api.login("carol", scopes=tuple(scopes))).access_token) < 1_024
