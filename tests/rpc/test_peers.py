"""A peer of the real service: whatever a caller presents, its handlers decide by the same principal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from identity.v1 import account_pb2, authentication_pb2, credential_pb2, revocation_pb2
from identity_client import aio, status
from identity_client.access.rules import Rule
from identity_client.principal import BearerKind, Principal
from identity_client.sync.identity import Identity as ThreadedIdentity
from tests.clients.shapes import TABLE, ShapePeer, end_of, path
from tests.rpc.api import USER_PASSWORD, Api, bearer

CLERK = Rule(any_roles=frozenset({"clerk"}))


@pytest.fixture(params=["aio", "threaded"])
async def peer(request: pytest.FixtureRequest, api: Api) -> AsyncIterator[ShapePeer]:
    service = await api.create_service("orders", "peer")
    connection = aio.Connection(api.address, "orders", service.client_secret)
    rules = TABLE | {path(name): CLERK for name in ("UnaryUnary", "LongStreamStream")}
    if request.param == "aio":
        async with aio.Identity(connection) as identity, ShapePeer(identity.guard("orders", rules=rules)) as running:
            yield running
        return
    threaded = ThreadedIdentity(connection)
    await asyncio.to_thread(threaded.__enter__)
    async with ShapePeer(threaded.guard("orders", rules=rules)) as running:
        yield running
    await asyncio.to_thread(threaded.__exit__, None, None, None)


async def open_session(api: Api, username: str) -> authentication_pb2.SessionGrant:
    request = authentication_pb2.AuthenticateRequest(
        password=authentication_pb2.PasswordCredential(username=username, password=USER_PASSWORD),
        grant_type=authentication_pb2.GRANT_TYPE_SESSION,
    )
    return (await api.authentication.Authenticate(request)).session


async def create_key(api: Api, username: str) -> str:
    request = credential_pb2.CreateApiKeyRequest(
        username=username,
        use=credential_pb2.API_KEY_USE_BEARER,
        terms=credential_pb2.CredentialTerms(audiences=["internal"]),
    )
    return (await api.credentials.CreateApiKey(request, metadata=await api.admin())).api_key


async def test_token_session_and_key_of_one_account_are_one_caller_to_a_handler(peer: ShapePeer, api: Api) -> None:
    await api.create_user("alice", "clerk")
    texts = {
        BearerKind.ACCESS_TOKEN: (await api.login("alice")).access_token,
        BearerKind.SESSION: (await open_session(api, "alice")).session_token,
        BearerKind.API_KEY: await create_key(api, "alice"),
    }
    callers: dict[BearerKind, Principal] = {}
    for kind, raw_token in texts.items():
        await peer.call("UnaryUnary", bearer(raw_token))
        assert peer.handlers.principal is not None
        callers[kind] = peer.handlers.principal
    assert [caller.kind for caller in callers.values()] == list(callers)
    for name in ("account_id", "subject", "audience", "scopes", "roles", "generation", "policy_version", "actor"):
        assert len({getattr(caller, name) for caller in callers.values()}) == 1, name
    assert callers[BearerKind.SESSION].client_id == callers[BearerKind.ACCESS_TOKEN].client_id


async def test_a_stream_on_a_session_ends_when_the_session_is_revoked_and_its_text_is_then_dead(
    peer: ShapePeer, api: Api
) -> None:
    await api.create_user("alice", "clerk")
    session = await open_session(api, "alice")
    call = await peer.begin("LongStreamStream", bearer(session.session_token))
    request = revocation_pb2.RevokeGrantRequest(grant_id=session.session_id)
    await api.revocations.RevokeGrant(request, metadata=await api.admin())
    assert await end_of(call) == "TOKEN_REVOKED"
    assert (await peer.refusal("UnaryUnary", bearer(session.session_token))).reason == "TOKEN_REVOKED"


@pytest.mark.requirement("R28")
async def test_a_confirmed_method_takes_what_is_live_and_nothing_else(peer: ShapePeer, api: Api) -> None:
    await api.create_user("alice", "clerk")
    tokens, session = await api.login("alice"), await open_session(api, "alice")
    for raw_token in (tokens.access_token, session.session_token):
        await peer.call("Confirmed", bearer(raw_token))
    for grant_id in (tokens.session_id, session.session_id):
        request = revocation_pb2.RevokeGrantRequest(grant_id=grant_id)
        await api.revocations.RevokeGrant(request, metadata=await api.admin())
    for raw_token in (tokens.access_token, session.session_token):  # at once, whether or not the news is here
        assert (await peer.refusal("Confirmed", bearer(raw_token))).reason == "TOKEN_REVOKED"


@pytest.mark.requirement("R15")
async def test_roles_of_a_session_are_read_live_by_the_next_call(peer: ShapePeer, api: Api) -> None:
    await api.create_user("alice", "clerk")
    session = await open_session(api, "alice")
    await peer.call("UnaryUnary", bearer(session.session_token))
    for roles, is_admitted in [([], False), (["clerk"], True)]:
        request = account_pb2.SetRolesRequest(username="alice", roles=roles)
        await api.accounts.SetRoles(request, metadata=await api.admin())
        async with asyncio.timeout(5):  # half of the time for which an answer is remembered
            while await is_clerk(peer, session.session_token) is not is_admitted:
                await asyncio.sleep(0.005)


async def is_clerk(peer: ShapePeer, raw_token: str) -> bool:
    try:
        await peer.call("UnaryUnary", bearer(raw_token))
    except grpc.aio.AioRpcError as error:
        assert status.from_rpc_error(error).reason == "PERMISSION_MISSING"
        return False
    return True
