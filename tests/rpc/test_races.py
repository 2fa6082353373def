"""What changes while a log-in or a renewal is under way: in both orders, no token says what was never true at once.

Each race is run twice: with the change before the write of the log-in (the call is held at its pause), and after it.
The outcome is judged by the token's own claims, by the guard of this service, and by introspection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from identity.failpoints import paused
from identity.v1 import account_pb2, credential_pb2, revocation_pb2, session_pb2
from identity_client.errors import BadCredentials, SessionEnded
from tests.databases import KINDS
from tests.rpc.api import Api, Metadata, bearer
from tests.rpc.refusals import refusal
from tests.rpc.test_machines import by_key
from tests.rpc.test_passwords import change
from tests.rpc.test_revoke_and_introspect import payload_of

pytestmark = [
    pytest.mark.requirement("R3"),
    pytest.mark.requirement("R15"),
    pytest.mark.parametrize("service_database", KINDS, indirect=True),
]


@dataclass
class Scene:
    """An account with a session and an API key, who is about to get a token, and the admin who changes something."""

    api: Api
    admin: Metadata
    peer: Metadata
    name: str
    refresh_token: str
    session_id: str
    key: str
    key_id: str


Move = Callable[[Scene], Awaitable[Any]]

# -- ways to a token -------------------------------------------------------------------------------------------------


async def log_in(scene: Scene) -> str:
    return (await scene.api.login(scene.name)).access_token


async def open_session(scene: Scene) -> str:
    return (await scene.api.open_session(scene.name)).session_token


async def renew(scene: Scene) -> str:
    return (await scene.api.refresh(scene.refresh_token)).access_token


async def log_in_machine(scene: Scene) -> str:
    return (await by_key(scene.api, scene.key)).access_token


async def change_own(scene: Scene) -> str:
    return (await change(scene.api, scene.name, new="a third long enough secret")).tokens.access_token


LOG_INS: dict[str, tuple[str, Move]] = {
    "login": ("login.before_write", log_in),
    "session": ("login.before_write", open_session),
    "refresh": ("refresh.before_write", renew),
    "machine": ("machine_login.before_write", log_in_machine),
    "change": ("change_password.before_write", change_own),
}

# -- what changes meanwhile ------------------------------------------------------------------------------------------


async def disable(scene: Scene) -> None:
    request = account_pb2.DisableAccountRequest(username=scene.name)
    await scene.api.accounts.DisableAccount(request, metadata=scene.admin)


async def set_roles(scene: Scene) -> None:
    request = account_pb2.SetRolesRequest(username=scene.name, roles=["manager"])
    await scene.api.accounts.SetRoles(request, metadata=scene.admin)


async def narrow(scene: Scene) -> None:
    await scene.api.set_scopes("reader", "orders.list")


async def change_password(scene: Scene) -> None:
    await change(scene.api, scene.name)


async def revoke_account(scene: Scene) -> None:
    request = revocation_pb2.RevokeAccountRequest(username=scene.name)
    await scene.api.revocations.RevokeAccount(request, metadata=scene.admin)


async def end_grant(scene: Scene) -> None:
    for grant_id in (scene.session_id, scene.key_id):
        request = revocation_pb2.RevokeGrantRequest(grant_id=grant_id)
        await scene.api.revocations.RevokeGrant(request, metadata=scene.admin)


async def log_out_everywhere(scene: Scene) -> None:
    caller = bearer((await scene.api.login(scene.name, audience="identity")).access_token)
    await scene.api.sessions.LogoutEverywhere(session_pb2.LogoutEverywhereRequest(), metadata=caller)


CHANGES: dict[str, Move] = {
    "disable": disable,
    "roles": set_roles,
    "narrow": narrow,
    "password": change_password,
    "revoke": revoke_account,
    "end": end_grant,
    "logout": log_out_everywhere,
}

REFUSED_AFTER = {
    "login": {"disable", "password"},
    "session": {"disable", "password"},
    "change": {"disable", "password"},
    "refresh": {"disable", "password", "revoke", "end", "logout"},
    "machine": {"disable", "revoke", "end"},
}
"""Where the change comes first, these end the call; after the others it goes on with what is true now."""

HARMLESS_BEFORE: dict[str, set[str]] = {
    "login": {"end"},  # another session, or another credential
    "session": {"end", "roles", "narrow"},  # a session token lives on, with the roles of now
    "change": {"end"},
    "refresh": set(),
    "machine": set(),
}
"""Where the call comes first, these leave its token alone."""

PAIRS_AFTER = [
    (log_in_name, change_name)
    for log_in_name in LOG_INS
    for change_name in CHANGES
    if log_in_name != "change" or change_name not in ("password", "logout")  # the password is another one then
]


@pytest.fixture
async def scene(api: Api) -> Scene:
    peer, admin = await api.peer(), await api.admin()
    await api.create_role("reader", "orders.read")
    await api.create_user("carol", "clerk", "reader")
    tokens = await api.login("carol")
    key = await api.create_api_key("carol", "internal", use=credential_pb2.API_KEY_USE_EXCHANGE)
    return Scene(
        api, admin, peer, "carol", tokens.refresh_token, tokens.session_id, key.api_key, key.credential.credential_id
    )


@pytest.mark.parametrize("change_name", CHANGES)
@pytest.mark.parametrize("log_in_name", LOG_INS)
async def test_a_change_before_the_write_refuses_it_or_is_in_its_token(
    scene: Scene, log_in_name: str, change_name: str
) -> None:
    point, log_in_move = LOG_INS[log_in_name]
    with paused(point) as pause:
        call = asyncio.ensure_future(log_in_move(scene))
        await pause.is_reached.wait()
        await CHANGES[change_name](scene)
        pause.release()
        if change_name in REFUSED_AFTER[log_in_name]:
            error = await refusal(call)
            assert isinstance(error, SessionEnded if log_in_name == "refresh" else BadCredentials)
            await nothing_was_born(scene)
            return
        token = await call
    await says_what_is_true(scene, token, is_narrowed=change_name == "narrow")


@pytest.mark.parametrize(("log_in_name", "change_name"), PAIRS_AFTER)
async def test_a_change_after_the_write_ends_or_outdates_the_token(
    scene: Scene, log_in_name: str, change_name: str
) -> None:
    token = await LOG_INS[log_in_name][1](scene)
    assert (await scene.api.introspect(token, scene.peer)).active
    await CHANGES[change_name](scene)
    answer = await scene.api.introspect(token, scene.peer)
    assert answer.active == (change_name in HARMLESS_BEFORE[log_in_name])
    if answer.active:
        await says_what_is_true(scene, token, is_narrowed=change_name == "narrow")


async def says_what_is_true(scene: Scene, token: str, *, is_narrowed: bool) -> None:
    """The token is active, and its generation, roles and scopes are the account's own."""
    request = account_pb2.GetAccountRequest(username=scene.name)
    account = (await scene.api.accounts.GetAccount(request, metadata=scene.admin)).account
    scopes = [] if "reader" not in account.roles else ["orders.list" if is_narrowed else "orders.read"]
    answer = await scene.api.introspect(token, scene.peer)
    assert answer.active
    assert (answer.generation, list(answer.scopes)) == (account.generation, scopes)
    assert list(answer.roles) == list(account.roles)
    if token.count(".") == 2:
        payload = payload_of(token)
        assert (payload["gen"], payload["roles"]) == (account.generation, list(account.roles))
        assert payload.get("scope", "").split() == scopes


async def nothing_was_born(scene: Scene) -> None:
    """No session of the account is live but those that its own password change opened."""
    house = scene.api.server.house
    assert house is not None
    account = await house.stores.accounts.find_password(scene.name)
    assert account is not None
    live = await house.stores.sessions.list_page(account.account_id, None, 100)
    assert len(live) <= 1
