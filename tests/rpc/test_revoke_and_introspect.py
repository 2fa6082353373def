"""Taking tokens back, and asking about them."""

from __future__ import annotations

import base64
import json
from typing import Any

import grpc
import pytest

from identity.v1 import account_pb2, revocation_pb2, token_pb2, trust_pb2
from identity_client import status
from identity_client.errors import (
    AccountNotFound,
    BadCredentials,
    GrantNotFound,
    InvalidRequest,
    Overloaded,
    SessionEnded,
    TokenMalformed,
    TokenRevoked,
)
from identity_client.tokens.keys import PublicKey
from tests.rpc.api import Api, Metadata, bearer
from tests.rpc.refusals import refusal


@pytest.fixture
async def peer(api: Api) -> Metadata:
    """The credentials of the service `orders`."""
    service = await api.create_service("orders", "peer")
    return bearer((await api.login_service("orders", service.client_secret)).access_token)


async def introspect(api: Api, token: str, peer: Metadata) -> token_pb2.IntrospectResponse:
    return await api.tokens.Introspect(token_pb2.IntrospectRequest(token=token), metadata=peer)


def payload_of(token: str, segment_number: int = 1) -> dict[str, Any]:
    segment = token.split(".")[segment_number]
    return json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))  # type: ignore[no-any-return]


async def test_introspection_says_what_the_token_carries(api: Api, peer: Metadata) -> None:
    carol = await api.create_user("carol", "clerk")
    tokens = await api.login("carol")
    answer = await introspect(api, tokens.access_token, peer)
    assert answer.active
    assert (answer.account_id, answer.grant_id) == (carol.account_id, tokens.session_id)
    assert (answer.client_id, answer.audience, list(answer.roles)) == ("first-party", "internal", ["clerk"])
    assert answer.expire_time.seconds - answer.issue_time.seconds == 600
    assert answer.authentication_time.seconds == answer.issue_time.seconds


@pytest.mark.requirement("R23")
async def test_a_token_for_another_service_is_not_active(api: Api, peer: Metadata) -> None:
    await api.create_service("billing")
    await api.create_user("carol")
    for_orders = await api.login("carol", audience="orders")
    for_billing = await api.login("carol", audience="billing")
    assert (await introspect(api, for_orders.access_token, peer)).active
    assert await introspect(api, for_billing.access_token, peer) == token_pb2.IntrospectResponse()


@pytest.mark.requirement("R24")
async def test_a_refresh_token_or_secret_is_never_an_access_token(api: Api, peer: Metadata) -> None:
    await api.create_user("eve", "admin")
    tokens = await api.login("eve")
    secret = (await api.create_service("billing")).client_secret
    for text in (tokens.refresh_token, secret):
        assert not (await introspect(api, text, peer)).active
        call = api.accounts.ListAccounts(account_pb2.ListAccountsRequest(), metadata=bearer(text))
        assert isinstance(await refusal(call), TokenMalformed)


@pytest.mark.requirement("R21")
@pytest.mark.requirement("R43")
async def test_a_token_carries_ids_roles_and_scopes_and_nothing_else(api: Api, peer: Metadata) -> None:
    await api.create_user("carol.personal.name", "clerk", "admin")
    tokens = await api.login("carol.personal.name", audience="identity")
    payload = payload_of(tokens.access_token)
    assert set(payload) == {
        *("iss", "sub", "aud", "exp", "iat", "jti", "client_id", "sid", "gen", "pol"),
        *("scope", "roles", "auth_time", "amr"),
    }
    assert "personal" not in json.dumps(payload)


@pytest.mark.requirement("R2")
async def test_a_revoked_access_token_is_refused_here_at_once_and_its_session_goes_on(api: Api) -> None:
    await api.create_user("eve", "admin")
    tokens = await api.login("eve")
    await api.tokens.Revoke(token_pb2.RevokeRequest(token=tokens.access_token))
    call = api.accounts.ListAccounts(account_pb2.ListAccountsRequest(), metadata=bearer(tokens.access_token))
    assert isinstance(await refusal(call), TokenRevoked)
    assert await api.tokens.Refresh(token_pb2.RefreshRequest(refresh_token=tokens.refresh_token))


@pytest.mark.requirement("R2")
async def test_a_user_who_revokes_token_after_token_loses_the_session(api: Api) -> None:
    await api.create_user("carol")
    tokens = await api.login("carol")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        for _ in range(100):
            await api.tokens.Revoke(token_pb2.RevokeRequest(token=tokens.access_token))
            tokens = await api.refresh(tokens.refresh_token)
    assert isinstance(status.from_rpc_error(caught.value), SessionEnded)
    listed = revocation_pb2.ListRevocationsRequest()
    feed = (await api.revocations.ListRevocations(listed, metadata=await api.admin())).revocations
    assert [each.kind for each in feed] == [revocation_pb2.REVOCATION_KIND_GRANT] + 15 * [
        revocation_pb2.REVOCATION_KIND_TOKEN
    ]


@pytest.mark.requirement("R2")
async def test_a_service_that_revokes_token_after_token_is_told_to_wait_and_stays_logged_in(api: Api) -> None:
    service = await api.create_service("orders")

    async def revoke() -> None:
        token = (await api.login_service("orders", service.client_secret)).access_token
        await api.tokens.Revoke(token_pb2.RevokeRequest(token=token))

    for _ in range(15):
        await revoke()
    error = await refusal(revoke())
    assert isinstance(error, Overloaded)
    assert error.retry_after_seconds > 600
    token = (await api.login_service("orders", service.client_secret)).access_token
    request = revocation_pb2.RevokeTokenRequest(token=token)
    await api.revocations.RevokeToken(request, metadata=await api.admin())


@pytest.mark.requirement("R2")
async def test_an_admin_revokes_a_token_by_its_text(api: Api, peer: Metadata) -> None:
    await api.create_user("carol")
    token = (await api.login("carol")).access_token
    request = revocation_pb2.RevokeTokenRequest(token=token, reason="pasted into a chat")
    assert (await api.revocations.RevokeToken(request, metadata=await api.admin())).ended_grant_count == 0
    assert not (await introspect(api, token, peer)).active


async def test_a_token_pasted_into_the_reason_is_refused_and_not_kept(api: Api) -> None:
    await api.create_user("carol")
    token = (await api.login("carol")).access_token
    request = revocation_pb2.RevokeAccountRequest(username="carol", reason=f"found {token[:200]}")
    error = await refusal(api.revocations.RevokeAccount(request, metadata=await api.admin()))
    assert isinstance(error, InvalidRequest)
    assert error.field == "reason"


@pytest.mark.parametrize("text", ["nonsense", "a.b.c", "idr_x", "ids_x", "idk_x", "idc_x"])
async def test_unknown_texts_are_answered_alike(api: Api, text: str) -> None:
    assert await api.tokens.Revoke(token_pb2.RevokeRequest(token=text)) == token_pb2.RevokeResponse()
    request = revocation_pb2.RevokeTokenRequest(token=text)
    assert isinstance(await refusal(api.revocations.RevokeToken(request, metadata=await api.admin())), TokenMalformed)


async def test_revoking_a_client_secret_ends_the_service(api: Api, peer: Metadata) -> None:
    service = await api.create_service("billing", "peer")
    grant = await api.login_service("billing", service.client_secret)
    await api.tokens.Revoke(token_pb2.RevokeRequest(token=service.client_secret))
    assert not (await introspect(api, grant.access_token, peer)).active
    assert isinstance(await refusal(api.login_service("billing", service.client_secret)), BadCredentials)


async def test_revoking_an_account_ends_every_grant_of_it(api: Api, peer: Metadata) -> None:
    await api.create_user("carol")
    logins = [await api.login("carol") for _ in range(3)]
    request = revocation_pb2.RevokeAccountRequest(username="carol", reason="breach")
    assert (await api.revocations.RevokeAccount(request, metadata=await api.admin())).ended_grant_count == 3
    for tokens in logins:
        assert not (await introspect(api, tokens.access_token, peer)).active
    assert (await introspect(api, (await api.login("carol")).access_token, peer)).active


async def test_what_is_not_there_cannot_be_revoked(api: Api) -> None:
    admin = await api.admin()
    grant = revocation_pb2.RevokeGrantRequest(grant_id="A" * 22)
    assert isinstance(await refusal(api.revocations.RevokeGrant(grant, metadata=admin)), GrantNotFound)
    account = revocation_pb2.RevokeAccountRequest(username="nobody")
    assert isinstance(await refusal(api.revocations.RevokeAccount(account, metadata=admin)), AccountNotFound)


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [({}, "account"), ({"username": "carol", "reason": "x" * 257}, "reason"), ({"account_id": "short"}, "account_id")],
)
async def test_a_bad_field_is_named(api: Api, request_fields: dict[str, str], field: str) -> None:
    request = revocation_pb2.RevokeAccountRequest(**request_fields)
    error = await refusal(api.revocations.RevokeAccount(request, metadata=await api.admin()))
    assert isinstance(error, InvalidRequest)
    assert error.field == field


async def test_the_published_keys_verify_what_is_minted(api: Api) -> None:
    key_set = (await api.trust.GetKeys(trust_pb2.GetKeysRequest())).key_set
    [key] = key_set.keys
    x, y = (base64.urlsafe_b64decode(text + "=") for text in (key.x, key.y))
    assert PublicKey.from_coordinates(x, y).key_id == key.key_id
    await api.create_user("carol")
    token = (await api.login("carol")).access_token
    header = json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))
    assert header == {"alg": "ES256", "kid": key.key_id, "typ": "at+jwt"}
    assert payload_of(token)["iss"] == key_set.issuer


async def test_the_database_judges_tokens_by_their_ids(api: Api, peer: Metadata) -> None:
    await api.create_user("carol", "clerk")
    live, ended, outdated = [await api.login("carol") for _ in range(3)]
    admin = await api.admin()
    await api.revocations.RevokeGrant(revocation_pb2.RevokeGrantRequest(grant_id=ended.session_id), metadata=admin)
    identities = [identity_of(tokens.access_token) for tokens in (live, ended, outdated)]
    identities[2].generation -= 1
    never_issued = trust_pb2.TokenIdentity()
    never_issued.CopyFrom(identities[0])
    never_issued.grant_id = "A" * 22
    request = trust_pb2.CheckRevocationRequest(tokens=[*identities, never_issued])
    answer = await api.trust.CheckRevocation(request, metadata=peer)
    standings = [trust_pb2.TokenStanding.Name(standing) for standing in answer.standings]
    assert standings == [f"TOKEN_STANDING_{word}" for word in ("LIVE", "REVOKED", "OUTDATED", "REVOKED")]


def identity_of(token: str) -> trust_pb2.TokenIdentity:
    payload = payload_of(token)
    return trust_pb2.TokenIdentity(
        token_id=payload["jti"],
        grant_id=payload["sid"],
        account_id=payload["sub"],
        generation=payload["gen"],
        policy_version=payload["pol"],
        key_id=payload_of(token, 0)["kid"],
        roles=payload.get("roles", []),
    )
