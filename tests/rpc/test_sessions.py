"""Sessions over the wire: session tokens, what an account sees of its log-ins, and logging out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from identity.v1 import account_pb2, authentication_pb2, session_pb2, token_pb2
from identity_client.errors import (
    GrantNotFound,
    InvalidRequest,
    PermissionMissing,
    SessionEnded,
    TokenOutdated,
    TokenRevoked,
    WrongAudience,
)
from identity_client.tokens import opaque
from tests.clients.issuer import FixedClock
from tests.rpc.api import USER_PASSWORD, Api, Metadata, bearer
from tests.rpc.refusals import refusal

SESSION = authentication_pb2.GRANT_TYPE_SESSION


def password(username: str = "carol") -> authentication_pb2.PasswordCredential:
    return authentication_pb2.PasswordCredential(username=username, password=USER_PASSWORD)


async def list_sessions(api: Api, caller: Metadata, **fields: Any) -> session_pb2.ListSessionsResponse:
    return await api.sessions.ListSessions(session_pb2.ListSessionsRequest(**fields), metadata=caller)


async def end_session(api: Api, session_id: str, caller: Metadata) -> None:
    await api.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session_id), metadata=caller)


# -- session tokens --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R10")
async def test_a_session_token_is_random_recognisable_and_means_nothing(api: Api) -> None:
    await api.create_user("carol", "clerk")
    opened = [await api.open_session("carol", "internal") for _ in range(20)]
    secrets = {opaque.split_secret(each.session_token, opaque.Kind.SESSION) for each in opened}
    assert len({secret for _, secret in secrets}) == 20
    assert all(len(secret) == 32 for _, secret in secrets)
    assert {each.session_id for each in opened} == {session_id for session_id, _ in secrets}
    assert all(each.session_token.startswith("ids_") for each in opened)


@pytest.mark.requirement("R10")
async def test_the_database_holds_no_text_of_a_session_token(api: Api, tmp_path: Path) -> None:
    await api.create_user("carol")
    opened = await api.open_session("carol")
    await api.introspect(opened.session_token, await api.peer())
    _, secret = opaque.split_secret(opened.session_token, opaque.Kind.SESSION)
    files = {path.name: path.read_bytes() for path in tmp_path.glob("identity.db*")}
    content = b"".join(files.values())
    assert "identity.db-wal" in files
    assert opened.session_id.encode() in content
    for form in (secret, secret.hex().encode(), opened.session_token.encode(), opened.session_token[4:].encode()):
        assert form not in content


@pytest.mark.requirement("R41")
async def test_the_session_id_is_new_at_every_log_in_whatever_was_offered(api: Api) -> None:
    await api.create_user("carol")
    offered = await api.open_session("carol")
    request = authentication_pb2.AuthenticateRequest(password=password(), grant_type=SESSION)
    metadata = (("session-id", offered.session_id), ("cookie", f"session={offered.session_token}"))
    response = await api.authentication.Authenticate(request, metadata=metadata)
    tokens = await api.login("carol")
    assert len({offered.session_id, response.session.session_id, tokens.session_id}) == 3
    fields = {field.name for field in authentication_pb2.AuthenticateRequest.DESCRIPTOR.fields}
    assert not {name for name in fields if "session" in name or name.endswith("_id")}


@pytest.mark.requirement("R41")
async def test_a_session_id_alone_opens_nothing(api: Api) -> None:
    await api.create_user("carol")
    peer, opened = await api.peer(), await api.open_session("carol")
    planted = opaque.encode_secret(opaque.Kind.SESSION, opened.session_id, bytes(32))
    for text in (opened.session_id, f"ids_{opened.session_id}", planted):
        assert not (await api.introspect(text, peer)).active


@pytest.mark.requirement("R12")
@pytest.mark.requirement("R42")
@pytest.mark.parametrize("form", ["session", "tokens", "access token"])
async def test_every_session_says_when_it_ends(timed_api: Api, server_clock: FixedClock, form: str) -> None:
    await timed_api.create_user("carol")
    settings, now = timed_api.server._settings, int(server_clock.wall)
    if form == "session":
        opened = await timed_api.open_session("carol", "identity")
        caller = bearer(opened.session_token)
        idle, absolute = settings.session_idle_lifetime_seconds, settings.session_absolute_lifetime_seconds
        assert (opened.idle_expire_time.seconds, opened.absolute_expire_time.seconds) == (now + idle, now + absolute)
    elif form == "tokens":
        tokens = await timed_api.login("carol", audience="identity")
        caller = bearer(tokens.access_token)
        idle, absolute = settings.refresh_idle_lifetime_seconds, settings.session_absolute_lifetime_seconds
        assert tokens.refresh_token_expire_time.seconds == now + idle
    else:
        grant_type = authentication_pb2.GRANT_TYPE_ACCESS_TOKEN
        access = (await timed_api.authenticate(password=password(), grant_type=grant_type, audience="identity")).access
        caller, idle, absolute = bearer(access.access_token), 600, 600
    [session] = (await list_sessions(timed_api, caller)).sessions
    assert (session.idle_expire_time.seconds, session.absolute_expire_time.seconds) == (now + idle, now + absolute)


@pytest.mark.requirement("R12")
async def test_an_expired_session_is_refused_at_once(timed_api: Api, server_clock: FixedClock) -> None:
    await timed_api.create_user("carol")
    opened = await timed_api.open_session("carol", "identity")
    server_clock.wall += timed_api.server._settings.session_idle_lifetime_seconds - 1
    assert await timed_api.sessions.GetSession(
        session_pb2.GetSessionRequest(session_id=opened.session_id), metadata=bearer(opened.session_token)
    )
    server_clock.wall += timed_api.server._settings.session_idle_lifetime_seconds + 1
    call = list_sessions(timed_api, bearer(opened.session_token))
    assert isinstance(await refusal(call), TokenRevoked)


@pytest.mark.requirement("R15")
async def test_a_changed_role_is_in_force_at_the_sessions_next_call(api: Api) -> None:
    await api.create_user("carol", "clerk")
    opened = await api.open_session("carol", "identity")
    caller, list_request = bearer(opened.session_token), account_pb2.ListAccountsRequest()
    assert isinstance(await refusal(api.accounts.ListAccounts(list_request, metadata=caller)), PermissionMissing)
    for roles, is_allowed in ((["admin"], True), (["clerk"], False), (["admin"], True)):
        request = account_pb2.SetRolesRequest(username="carol", roles=roles)
        await api.accounts.SetRoles(request, metadata=await api.admin())
        if is_allowed:
            assert await api.accounts.ListAccounts(list_request, metadata=caller)
        else:
            assert isinstance(
                await refusal(api.accounts.ListAccounts(list_request, metadata=caller)), PermissionMissing
            )


@pytest.mark.requirement("R23")
async def test_a_session_token_is_good_here_only_where_it_was_meant_for_this_service(api: Api) -> None:
    await api.create_user("eve", "admin")
    await api.create_service("orders")
    list_request = account_pb2.ListAccountsRequest()
    for audiences, error in ((("orders",), TokenRevoked), (("internal",), PermissionMissing)):
        token = (await api.open_session("eve", *audiences)).session_token
        call = api.accounts.ListAccounts(list_request, metadata=bearer(token))
        assert type(await refusal(call)) in (error, WrongAudience)
    token = (await api.open_session("eve", "orders", "internal", "identity")).session_token
    assert await api.accounts.ListAccounts(list_request, metadata=bearer(token))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"audiences": ["internal"]}, "audiences"),
        ({"audiences": ["internal"], "grant_type": authentication_pb2.GRANT_TYPE_ACCESS_TOKEN}, "audiences"),
        ({"audience": "internal", "audiences": ["internal"], "grant_type": SESSION}, "audiences"),
        ({"audiences": [f"a{n}" for n in range(17)], "grant_type": SESSION}, "audience"),
        ({"audiences": ["a" * 129], "grant_type": SESSION}, "audience"),
        ({"audiences": ["nowhere"], "grant_type": SESSION}, "audience"),
        ({"client_info": {"user_agent": "x" * 257}}, "client_info.user_agent"),
        ({"client_info": {"user_agent": "two\nlines"}}, "client_info.user_agent"),
    ],
)
async def test_a_bad_wish_for_a_session_is_named(api: Api, fields: dict[str, Any], field: str) -> None:
    await api.create_user("carol")
    error = await refusal(api.authenticate(password=password(), **fields))
    assert isinstance(error, InvalidRequest)
    assert error.field == field


# -- seen by the account ---------------------------------------------------------------------------------------------


async def test_an_account_sees_its_log_ins_with_place_time_and_agent(timed_api: Api, server_clock: FixedClock) -> None:
    carol = await timed_api.create_user("carol")
    await timed_api.create_user("dave")
    info = authentication_pb2.ClientInfo(user_agent="Firefox on a phone")
    by_phone = (await timed_api.authenticate(password=password(), grant_type=SESSION, client_info=info)).session
    server_clock.wall += 100
    tokens = await timed_api.login("carol", audience="identity")
    await timed_api.login("dave")
    listed = (await list_sessions(timed_api, bearer(tokens.access_token))).sessions
    assert [session.session_id for session in listed] == [tokens.session_id, by_phone.session_id]
    here, phone = listed
    assert (here.kind, phone.kind) == (session_pb2.SESSION_KIND_TOKENS, session_pb2.SESSION_KIND_OPAQUE)
    assert (here.current, phone.current) == (True, False)
    assert phone.user_agent == "Firefox on a phone"
    assert here.user_agent.startswith("grpc-python-asyncio")
    assert {here.ip_address, phone.ip_address} == {"127.0.0.1"}
    assert {here.account_id, phone.account_id} == {carol.account_id}
    assert here.create_time.seconds == phone.create_time.seconds + 100 == int(server_clock.wall)
    request = session_pb2.GetSessionRequest(session_id=phone.session_id)
    found = await timed_api.sessions.GetSession(request, metadata=bearer(tokens.access_token))
    assert found.session == phone


async def test_sessions_are_listed_page_by_page_while_others_come_and_go(api: Api) -> None:
    await api.create_user("carol")
    tokens = await api.login("carol", audience="identity")
    opened = {(await api.login("carol")).session_id for _ in range(6)} | {tokens.session_id}
    caller, seen, page_token = bearer(tokens.access_token), [], ""
    while True:
        page = await list_sessions(api, caller, page_size=2, page_token=page_token)
        seen += [session.session_id for session in page.sessions]
        page_token = page.next_page_token
        if not page_token:
            break
        await api.login("carol")  # newer than what is listed
        if seen[-1] != tokens.session_id:
            await end_session(api, seen[-1], caller)
    assert len(seen) == len(set(seen))
    assert opened <= set(seen)


@pytest.mark.parametrize(
    ("fields", "field"), [({"page_size": 1_001}, "page_size"), ({"page_token": "x"}, "page_token")]
)
async def test_a_bad_page_is_named(api: Api, fields: dict[str, Any], field: str) -> None:
    await api.create_user("carol")
    caller = bearer((await api.login("carol", audience="identity")).access_token)
    error = await refusal(list_sessions(api, caller, **fields))
    assert isinstance(error, InvalidRequest)
    assert error.field == field


async def test_sessions_of_others_are_not_found_not_even_by_an_admin(api: Api) -> None:
    await api.create_user("carol")
    await api.create_user("dave")
    theirs = (await api.login("dave")).session_id
    mine = await api.login("carol", audience="identity")
    for caller in (bearer(mine.access_token), await api.admin()):
        get = session_pb2.GetSessionRequest(session_id=theirs)
        assert isinstance(await refusal(api.sessions.GetSession(get, metadata=caller)), GrantNotFound)
        assert isinstance(await refusal(end_session(api, theirs, caller)), GrantNotFound)
    assert isinstance(await refusal(end_session(api, "A" * 22, bearer(mine.access_token))), GrantNotFound)
    secret_id = (await api.create_service("orders")).grant_id
    assert isinstance(await refusal(end_session(api, secret_id, bearer(mine.access_token))), GrantNotFound)


# -- logging out -----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R5")
async def test_logging_out_ends_access_refresh_and_the_session_together(api: Api) -> None:
    await api.create_user("carol")
    peer = await api.peer()
    tokens, other = await api.login("carol", audience="identity"), await api.login("carol")
    renewed = await api.refresh(tokens.refresh_token)
    await api.sessions.Logout(session_pb2.LogoutRequest(), metadata=bearer(renewed.access_token))
    for token in (tokens.access_token, renewed.access_token):
        assert isinstance(await refusal(list_sessions(api, bearer(token))), TokenRevoked)
    for token in (tokens.refresh_token, renewed.refresh_token):
        assert isinstance(await refusal(api.refresh(token)), SessionEnded)
    assert (await api.introspect(other.access_token, peer)).active
    assert await api.refresh(other.refresh_token)


@pytest.mark.requirement("R5")
async def test_logging_out_by_session_token_ends_it(api: Api) -> None:
    await api.create_user("carol")
    peer = await api.peer()
    opened, other = await api.open_session("carol", "identity", "internal"), await api.open_session("carol")
    await api.sessions.Logout(session_pb2.LogoutRequest(), metadata=bearer(opened.session_token))
    assert isinstance(await refusal(list_sessions(api, bearer(opened.session_token))), TokenRevoked)
    assert [(await api.introspect(each.session_token, peer)).active for each in (opened, other)] == [False, True]


@pytest.mark.requirement("R5")
@pytest.mark.parametrize("by", ["access token", "session token"])
async def test_logging_out_everywhere_ends_every_kind_and_keeps_keys(api: Api, by: str) -> None:
    await api.create_user("carol")
    peer = await api.peer()
    tokens, here = await api.login("carol", audience="identity"), await api.login("carol")
    grant_type = authentication_pb2.GRANT_TYPE_ACCESS_TOKEN
    access = (await api.authenticate(password=password(), grant_type=grant_type)).access
    opened = await api.open_session("carol", "identity", "internal")
    key = await api.create_api_key("carol", "internal")
    caller = bearer(tokens.access_token if by == "access token" else opened.session_token)
    answer = await api.sessions.LogoutEverywhere(session_pb2.LogoutEverywhereRequest(), metadata=caller)
    assert answer.ended_session_count == 4
    for text in (here.access_token, access.access_token, opened.session_token):
        assert not (await api.introspect(text, peer)).active
    for refresh_token in (tokens.refresh_token, here.refresh_token):
        assert isinstance(await refusal(api.refresh(refresh_token)), SessionEnded)
    refused = await refusal(list_sessions(api, bearer(tokens.access_token)))
    assert isinstance(refused, TokenOutdated | TokenRevoked)
    assert (await api.introspect(key.api_key, peer)).active
    assert (await api.introspect((await api.login("carol")).access_token, peer)).active


@pytest.mark.requirement("R5")
async def test_revoking_the_text_of_a_session_token_ends_the_session(api: Api) -> None:
    await api.create_user("carol")
    peer, opened = await api.peer(), await api.open_session("carol")
    await api.tokens.Revoke(token_pb2.RevokeRequest(token=opened.session_token))
    assert not (await api.introspect(opened.session_token, peer)).active


async def test_ending_one_session_from_another(api: Api) -> None:
    await api.create_user("carol")
    lost, here = await api.login("carol"), await api.login("carol", audience="identity")
    await end_session(api, lost.session_id, bearer(here.access_token))
    assert isinstance(await refusal(api.refresh(lost.refresh_token)), SessionEnded)
    assert isinstance(await refusal(end_session(api, lost.session_id, bearer(here.access_token))), GrantNotFound)
    assert await api.refresh(here.refresh_token)
