"""Another password over the wire, the demand for one, and whom the service believes where a user is."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from identity.v1 import account_pb2, authentication_pb2, session_pb2
from identity_client import status
from identity_client.errors import (
    BadCredentials,
    InvalidRequest,
    PermissionMissing,
    ScopeNotGranted,
    SessionEnded,
    UnknownAudience,
)
from tests.rpc.api import USER_PASSWORD, Api, Metadata, bearer
from tests.rpc.refusals import answer_of, audited, refusal, refused
from tests.rpc.test_revoke_and_introspect import payload_of

NEW_PASSWORD = "another long enough secret"
SESSION = authentication_pb2.GRANT_TYPE_SESSION


async def change(
    api: Api, username: str = "carol", current: str = USER_PASSWORD, new: str = NEW_PASSWORD, **fields: Any
) -> authentication_pb2.ChangePasswordResponse:
    request = authentication_pb2.ChangePasswordRequest(
        username=username, current_password=current, new_password=new, **fields
    )
    return await api.authentication.ChangePassword(request)


async def create_pending(api: Api, username: str = "carol") -> None:
    """A user whose password must be changed."""
    request = account_pb2.CreateUserRequest(username=username, password=USER_PASSWORD, password_change_required=True)
    await api.accounts.CreateUser(request, metadata=await api.admin())


@pytest.mark.requirement("R5")
async def test_another_password_ends_all_sessions_and_tokens_and_gives_a_new_log_in(api: Api) -> None:
    await api.create_user("carol", "clerk")
    peer = await api.peer()
    old, opened = await api.login("carol"), await api.open_session("carol")
    key = await api.create_api_key("carol", "internal")
    answer = await change(api)
    for text in (old.access_token, opened.session_token):
        assert not (await api.introspect(text, peer)).active
    assert isinstance(await refusal(api.refresh(old.refresh_token)), SessionEnded)
    assert (await api.introspect(answer.tokens.access_token, peer)).active
    payload = payload_of(answer.tokens.access_token)
    assert (payload["gen"], payload["roles"]) == (payload_of(old.access_token)["gen"] + 1, ["clerk"])
    assert await api.refresh(answer.tokens.refresh_token)
    assert (await api.introspect(key.api_key, peer)).active
    assert isinstance(await refusal(api.login("carol")), BadCredentials)
    assert await api.login("carol", NEW_PASSWORD)


@pytest.mark.requirement("R41")
async def test_the_session_id_is_new_with_the_password(api: Api) -> None:
    await api.create_user("carol")
    old = await api.open_session("carol")
    new = (await change(api, grant_type=SESSION, audiences=["internal"])).session
    assert new.session_id != old.session_id
    assert new.session_token != old.session_token


@pytest.mark.parametrize(
    ("grant_type", "kind"),
    [
        (authentication_pb2.GRANT_TYPE_UNSPECIFIED, "tokens"),
        (authentication_pb2.GRANT_TYPE_TOKENS, "tokens"),
        (authentication_pb2.GRANT_TYPE_ACCESS_TOKEN, "access"),
        (authentication_pb2.GRANT_TYPE_SESSION, "session"),
    ],
)
async def test_a_change_answers_in_the_form_that_was_asked_for(api: Api, grant_type: int, kind: str) -> None:
    await api.create_user("carol")
    assert (await change(api, grant_type=grant_type)).WhichOneof("result") == kind


async def test_a_change_by_the_wrong_person_is_refused_like_a_log_in(api: Api, tmp_path: Path) -> None:
    await api.create_user("carol")
    await api.create_user("dave")
    await api.create_service("orders")
    await api.accounts.DisableAccount(account_pb2.DisableAccountRequest(username="dave"), metadata=await api.admin())
    errors = [
        await refused(change(api, "nobody")),
        await refused(change(api, "carol", "the wrong password")),
        await refused(change(api, "dave")),
        await refused(change(api, "orders")),
        await refused(api.login("nobody")),
    ]
    assert len({answer_of(error) for error in errors}) == 1
    assert isinstance(status.from_rpc_error(errors[0]), BadCredentials)
    assert audited(tmp_path, "password.change") == [
        "NAME_UNKNOWN",
        "PASSWORD_WRONG",
        "ACCOUNT_DISABLED",
        "NAME_UNKNOWN",
    ]
    assert await api.login("carol")


@pytest.mark.parametrize(
    ("new", "field"),
    [
        ("too short", "new_password"),
        ("password1234", "new_password"),
        ("carol.the.clerk", "new_password"),
        (USER_PASSWORD, "new_password"),
        ("x" * 1_025, "new_password"),
        ("", "new_password"),
        ("a new\nlong password", "new_password"),
    ],
)
async def test_a_new_password_that_breaks_a_rule_is_named_and_changes_nothing(api: Api, new: str, field: str) -> None:
    await api.create_user("carol.the.clerk")
    tokens = await api.login("carol.the.clerk")
    error = await refusal(change(api, "Carol.The.Clerk", new=new))
    assert isinstance(error, InvalidRequest)
    assert error.field == field
    assert await api.refresh(tokens.refresh_token)
    assert await api.login("carol.the.clerk")


@pytest.mark.parametrize(
    ("fields", "error"), [({"audience": "nowhere"}, UnknownAudience), ({"scopes": ["identity.admin"]}, ScopeNotGranted)]
)
async def test_a_wrong_wish_changes_no_password(api: Api, fields: dict[str, Any], error: type[Exception]) -> None:
    await api.create_user("carol")
    assert type(await refusal(change(api, **fields))) is error
    assert await api.login("carol")


async def test_a_password_is_the_same_however_it_is_typed(api: Api) -> None:
    await api.create_user("carol")
    typed = "ein l\u00e4ngeres Geheimnis"
    await change(api, "\uff23\uff21\uff32\uff2f\uff2c", new=unicodedata.normalize("NFD", typed))
    assert await api.login("carol", unicodedata.normalize("NFC", typed))
    assert isinstance(await refusal(api.login("carol", typed.upper())), BadCredentials)


async def test_whoever_must_change_the_password_gets_a_challenge_and_nothing_else(api: Api, tmp_path: Path) -> None:
    await create_pending(api)
    credential = authentication_pb2.PasswordCredential(username="carol", password=USER_PASSWORD)
    for grant_type in (authentication_pb2.GRANT_TYPE_TOKENS, SESSION, authentication_pb2.GRANT_TYPE_ACCESS_TOKEN):
        answer = await api.authenticate(password=credential, grant_type=grant_type)
        assert answer.challenge.kind == authentication_pb2.CHALLENGE_KIND_PASSWORD_CHANGE
        assert answer.WhichOneof("result") == "challenge"
    assert audited(tmp_path, "password.challenge") == ["ok"] * 3
    assert audited(tmp_path, "session.open") == ["ok"]  # the admin's own
    assert isinstance(await refusal(api.login("carol", "the wrong password")), BadCredentials)
    assert (await change(api)).tokens.access_token
    assert (await api.login("carol", NEW_PASSWORD)).access_token


# -- where a user is -------------------------------------------------------------------------------------------------


@pytest.fixture
async def gateway(api: Api) -> Metadata:
    """The credentials of a service that may say where users are."""
    await api.create_role("gateway", "identity.forward")
    service = await api.create_service("web", "gateway")
    return bearer((await api.login_service("web", service.client_secret)).access_token)


async def place_of(api: Api, info: authentication_pb2.ClientInfo, caller: Metadata) -> tuple[str, str]:
    credential = authentication_pb2.PasswordCredential(username="carol", password=USER_PASSWORD)
    request = authentication_pb2.AuthenticateRequest(password=credential, audience="identity", client_info=info)
    tokens = (await api.authentication.Authenticate(request, metadata=caller)).tokens
    get = session_pb2.GetSessionRequest(session_id=tokens.session_id)
    session = (await api.sessions.GetSession(get, metadata=bearer(tokens.access_token))).session
    return session.ip_address, session.user_agent


async def test_a_forwarded_place_is_believed_from_those_who_may_forward(api: Api, gateway: Metadata) -> None:
    await api.create_user("carol")
    info = authentication_pb2.ClientInfo(ip_address="2001:DB8::0007", user_agent="Firefox")
    assert await place_of(api, info, gateway) == ("2001:db8::7", "Firefox")


async def test_a_forwarded_place_is_refused_from_anyone_else_before_a_password_is_looked_at(api: Api) -> None:
    await api.create_user("carol")
    info = authentication_pb2.ClientInfo(ip_address="192.0.2.7")
    for caller in ((), await api.admin()):
        assert isinstance(await refusal(place_of(api, info, caller)), PermissionMissing)
    wrong = authentication_pb2.PasswordCredential(username="carol", password="the wrong password")
    assert isinstance(await refusal(api.authenticate(password=wrong, client_info=info)), PermissionMissing)
    assert isinstance(await refusal(change(api, client_info=info)), PermissionMissing)


@pytest.mark.parametrize("address", ["nowhere", "192.0.2.256", "192.0.2.7:80", "fe80::1%eth0", "fe80::1%\n"])
async def test_a_forwarded_place_is_an_address(api: Api, gateway: Metadata, address: str) -> None:
    await api.create_user("carol")
    error = await refusal(place_of(api, authentication_pb2.ClientInfo(ip_address=address), gateway))
    assert isinstance(error, InvalidRequest)
    assert error.field == "client_info.ip_address"


async def test_an_entry_that_does_not_verify_is_refused_on_a_public_method_too(api: Api) -> None:
    await api.create_user("carol")
    tokens = await api.login("carol", audience="identity")
    await api.sessions.Logout(session_pb2.LogoutRequest(), metadata=bearer(tokens.access_token))
    error = await refusal(place_of(api, authentication_pb2.ClientInfo(), bearer(tokens.access_token)))
    assert error.reason == "TOKEN_REVOKED"
