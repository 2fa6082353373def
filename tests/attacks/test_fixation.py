"""Session fixation: a session id or token that an attacker has chosen or knows never becomes a victim's.

The contract has no field for an id to come in by. What is tried is every other way in: entries of the metadata, unknown
fields of the request, a log-in on top of the attacker's own session.
"""

from __future__ import annotations

from typing import Any

import pytest

from identity.v1 import account_pb2, authentication_pb2, role_pb2, session_pb2, token_pb2
from identity_client.errors import SessionEnded, TokenOutdated, TokenRevoked
from tests.clients.issuer import new_id
from tests.rpc.api import USER_PASSWORD, Api, bearer
from tests.rpc.refusals import refusal

OPAQUE, TOKENS = authentication_pb2.GRANT_TYPE_SESSION, authentication_pb2.GRANT_TYPE_TOKENS
NEW_PASSWORD = "another long enough secret"


def login_request(username: str, grant_type: Any) -> authentication_pb2.AuthenticateRequest:
    return authentication_pb2.AuthenticateRequest(
        password=authentication_pb2.PasswordCredential(username=username, password=USER_PASSWORD),
        grant_type=grant_type,
        audience="identity",
    )


def session_id_of(answer: Any) -> str:
    return str(answer.session.session_id or answer.tokens.session_id)


def with_ids_in_unknown_fields(message: authentication_pb2.AuthenticateRequest, session_id: str) -> bytes:
    """The request, followed by the id in every field number that a session id has in some answer, and in others."""
    text = session_id.encode()
    spliced = b"".join(
        (number << 3 | 2).to_bytes(1, "big") + bytes([len(text)]) + text for number in (11, 12, 13, 14, 15)
    )
    return message.SerializeToString() + spliced


@pytest.mark.requirement("R11")
@pytest.mark.requirement("R41")
@pytest.mark.parametrize("grant_type", [OPAQUE, TOKENS])
async def test_an_offered_id_is_never_adopted_by_whatever_way_it_comes(api: Api, grant_type: Any) -> None:
    for name in ("mallory", "carol"):
        await api.create_user(name)
    planted = (await api.authentication.Authenticate(login_request("mallory", OPAQUE))).session
    channel: Any = api.channel
    log_in = channel.unary_unary(
        "/identity.v1.AuthenticationService/Authenticate",
        response_deserializer=authentication_pb2.AuthenticateResponse.FromString,
    )
    request, seen = login_request("carol", grant_type), {planted.session_id}
    chosen = new_id()
    for offered in (planted.session_id, chosen):
        for metadata in (
            (),
            (("session-id", offered), ("x-session-id", offered), ("sid", offered)),
            (("cookie", f"__Host-session={planted.session_token}; session_id={offered}"),),
            (("set-cookie", f"session={offered}"),),
            bearer(planted.session_token),
        ):
            answer = await log_in(with_ids_in_unknown_fields(request, offered), metadata=metadata)
            session_id = session_id_of(answer)
            assert session_id not in seen | {chosen}
            seen.add(session_id)
    own = await api.sessions.ListSessions(session_pb2.ListSessionsRequest(), metadata=bearer(planted.session_token))
    [still] = own.sessions
    assert still.session_id == planted.session_id  # the attacker's own session is as it was: mallory's, and alone
    carol = await api.accounts.GetAccount(account_pb2.GetAccountRequest(username="carol"), metadata=await api.admin())
    assert still.account_id != carol.account.account_id


@pytest.mark.requirement("R11")
@pytest.mark.requirement("R41")
async def test_a_session_from_before_a_change_of_the_password_is_worth_nothing_after_it(api: Api) -> None:
    await api.create_user("carol")
    stolen = (await api.authentication.Authenticate(login_request("carol", OPAQUE))).session
    stolen_tokens = (await api.authentication.Authenticate(login_request("carol", TOKENS))).tokens
    change = authentication_pb2.ChangePasswordRequest(
        username="carol", current_password=USER_PASSWORD, new_password=NEW_PASSWORD, audience="identity"
    )
    changed = await api.authentication.ChangePassword(change, metadata=bearer(stolen.session_token))
    assert changed.tokens.session_id not in (stolen.session_id, stolen_tokens.session_id)
    for text in (stolen.session_token, stolen_tokens.access_token):
        call = api.sessions.ListSessions(session_pb2.ListSessionsRequest(), metadata=bearer(text))
        assert isinstance(await refusal(call), TokenOutdated | TokenRevoked)
    refresh = api.tokens.Refresh(token_pb2.RefreshRequest(refresh_token=stolen_tokens.refresh_token))
    assert isinstance(await refusal(refresh), SessionEnded)


@pytest.mark.requirement("R11")
@pytest.mark.requirement("R15")
async def test_a_session_gets_its_roles_live_and_a_log_in_after_the_change_has_an_id_of_its_own(api: Api) -> None:
    """Whoever planted a session before its account was promoted knows its id; it is told the account's roles all the
    same, for they are read live. What protects is that nobody but the account can have logged in to it."""
    admin = await api.admin()
    await api.roles.CreateRole(
        role_pb2.CreateRoleRequest(name="reader", scopes=["identity.admin.read"]), metadata=admin
    )
    await api.create_user("carol")
    before = (await api.authentication.Authenticate(login_request("carol", OPAQUE))).session
    await api.accounts.SetRoles(account_pb2.SetRolesRequest(username="carol", roles=["reader"]), metadata=admin)
    listed = account_pb2.ListAccountsRequest()
    assert (await api.accounts.ListAccounts(listed, metadata=bearer(before.session_token))).accounts
    after = (await api.authentication.Authenticate(login_request("carol", OPAQUE))).session
    assert after.session_id != before.session_id
