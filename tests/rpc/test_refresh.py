"""Rotation, repeat and reuse of refresh tokens, over the wire and with a clock that moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from identity.house import LOCAL_ACT
from identity.server import Server
from identity.v1 import account_pb2, authentication_pb2, revocation_pb2, token_pb2
from identity_client.errors import (
    BadCredentials,
    RefreshInvalid,
    RefreshReused,
    SessionEnded,
    SessionExpired,
    TokenOutdated,
)
from identity_client.tokens import opaque
from tests.rpc.api import USER_PASSWORD, Api, MakeSettings, MovableClock, bearer, prepare
from tests.rpc.refusals import refusal

GRACE_SECONDS = 60
IDLE_SECONDS = 3_600
ABSOLUTE_SECONDS = 10_000


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
async def timed(make_settings: MakeSettings, clock: MovableClock) -> AsyncIterator[Api]:
    """A server whose time stands still until the test moves it."""
    settings = make_settings(
        refresh_grace_seconds=GRACE_SECONDS,
        refresh_idle_lifetime_seconds=IDLE_SECONDS,
        session_absolute_lifetime_seconds=ABSOLUTE_SECONDS,
    )
    server = Server(settings, clock)
    api = Api(server, await server.start())
    assert server.house is not None
    await prepare(server.house)
    await server.house.accounts.create_user("carol", USER_PASSWORD, ("clerk",), LOCAL_ACT)
    yield api
    await api.channel.close()
    await server.stop()


async def refresh(api: Api, token: str) -> authentication_pb2.TokenSet:
    return (await api.tokens.Refresh(token_pb2.RefreshRequest(refresh_token=token))).tokens


@pytest.mark.requirement("R25")
async def test_each_refresh_replaces_the_token_within_one_session(timed: Api) -> None:
    first = await timed.login("carol")
    second = await refresh(timed, first.refresh_token)
    third = await refresh(timed, second.refresh_token)
    assert len({first.refresh_token, second.refresh_token, third.refresh_token}) == 3
    assert first.session_id == second.session_id == third.session_id
    assert len({first.access_token, second.access_token, third.access_token}) == 3


@pytest.mark.requirement("R25")
async def test_a_client_that_lost_the_answer_gets_the_same_successor(timed: Api, clock: MovableClock) -> None:
    first = await timed.login("carol")
    second = await refresh(timed, first.refresh_token)
    clock.time += GRACE_SECONDS - 1
    again = await refresh(timed, first.refresh_token)
    assert again.refresh_token == second.refresh_token
    assert (await refresh(timed, again.refresh_token)).refresh_token != again.refresh_token


@pytest.mark.requirement("R25")
async def test_a_spent_token_after_the_grace_ends_the_session(timed: Api, clock: MovableClock) -> None:
    first = await timed.login("carol")
    second = await refresh(timed, first.refresh_token)
    clock.time += GRACE_SECONDS
    assert isinstance(await refusal(refresh(timed, first.refresh_token)), RefreshReused)
    assert isinstance(await refusal(refresh(timed, second.refresh_token)), SessionEnded)


@pytest.mark.requirement("R25")
async def test_a_token_two_rotations_old_ends_the_session_even_within_the_grace(timed: Api) -> None:
    first = await timed.login("carol")
    second = await refresh(timed, first.refresh_token)
    third = await refresh(timed, second.refresh_token)
    assert isinstance(await refusal(refresh(timed, first.refresh_token)), RefreshReused)
    assert isinstance(await refusal(refresh(timed, third.refresh_token)), SessionEnded)


async def test_a_guess_ends_nobodys_session(timed: Api) -> None:
    tokens = await timed.login("carol")
    grant_id, count, _ = opaque.split_refresh(tokens.refresh_token)
    for guess in (opaque.encode_refresh(grant_id, count, bytes(32)), opaque.encode_refresh(grant_id, 7, bytes(32))):
        assert isinstance(await refusal(refresh(timed, guess)), RefreshInvalid)
    assert (await refresh(timed, tokens.refresh_token)).access_token


async def test_a_session_expires_when_idle(timed: Api, clock: MovableClock) -> None:
    tokens = await timed.login("carol")
    clock.time += IDLE_SECONDS - 1
    tokens = await refresh(timed, tokens.refresh_token)
    clock.time += IDLE_SECONDS
    assert isinstance(await refusal(refresh(timed, tokens.refresh_token)), SessionExpired)


async def test_a_session_expires_absolutely_however_busy(timed: Api, clock: MovableClock) -> None:
    tokens = await timed.login("carol")
    start = clock.time
    while clock.time + IDLE_SECONDS - 1 < start + ABSOLUTE_SECONDS:
        clock.time += IDLE_SECONDS - 1
        tokens = await refresh(timed, tokens.refresh_token)
        assert tokens.refresh_token_expire_time.seconds <= start + ABSOLUTE_SECONDS
    clock.time = start + ABSOLUTE_SECONDS
    assert isinstance(await refusal(refresh(timed, tokens.refresh_token)), SessionExpired)


@pytest.mark.requirement("R25")
async def test_a_thousand_parallel_uses_leave_one_chain(timed: Api) -> None:
    first = await timed.login("carol")
    answers = await asyncio.gather(*(refresh(timed, first.refresh_token) for _ in range(1_000)))
    [successor] = {answer.refresh_token for answer in answers}
    assert len({answer.access_token for answer in answers}) == 1_000
    assert (await refresh(timed, successor)).refresh_token not in (first.refresh_token, successor)


async def test_a_disabled_account_cannot_renew(api: Api) -> None:
    await api.create_user("carol", "clerk")
    tokens = await api.login("carol")
    await api.accounts.DisableAccount(account_pb2.DisableAccountRequest(username="carol"), metadata=await api.admin())
    assert isinstance(await refusal(refresh(api, tokens.refresh_token)), SessionEnded | BadCredentials)


@pytest.mark.requirement("R3")
async def test_renewed_tokens_carry_the_roles_of_now(api: Api) -> None:
    await api.create_user("carol", "clerk")
    tokens = await api.login("carol", audience="identity")
    admin = await api.admin()
    await api.accounts.SetRoles(account_pb2.SetRolesRequest(username="carol", roles=["admin"]), metadata=admin)
    list_request = account_pb2.ListAccountsRequest()
    outdated = api.accounts.ListAccounts(list_request, metadata=bearer(tokens.access_token))
    assert isinstance(await refusal(outdated), TokenOutdated)
    renewed = await refresh(api, tokens.refresh_token)
    assert await api.accounts.ListAccounts(list_request, metadata=bearer(renewed.access_token))


async def test_logging_out_by_revoking_the_refresh_token_ends_the_session(api: Api) -> None:
    await api.create_user("eve", "admin")
    tokens = await api.login("eve")
    await api.tokens.Revoke(token_pb2.RevokeRequest(token=tokens.refresh_token))
    assert isinstance(await refusal(refresh(api, tokens.refresh_token)), SessionEnded)


async def test_a_revoked_grant_cannot_renew(api: Api) -> None:
    await api.create_user("carol", "clerk")
    tokens = await api.login("carol")
    request = revocation_pb2.RevokeGrantRequest(grant_id=tokens.session_id, reason="laptop lost")
    response = await api.revocations.RevokeGrant(request, metadata=await api.admin())
    assert response.ended_grant_count == 1
    assert isinstance(await refusal(refresh(api, tokens.refresh_token)), SessionEnded)
