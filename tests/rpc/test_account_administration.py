"""What administrators do to the life of an account: rename, reset, list, delete; and that the last of them stays."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from identity.v1 import account_pb2, authentication_pb2, credential_pb2, revocation_pb2, session_pb2, token_pb2
from identity_client import status
from identity_client.errors import (
    AccountAlreadyExists,
    AccountNotFound,
    BadCredentials,
    GrantNotFound,
    IdentityError,
    InvalidRequest,
    LastAdmin,
    RefreshInvalid,
    SessionEnded,
    TokenOutdated,
    TokenRevoked,
    UnknownAudience,
)
from tests.rpc.api import ADMIN_PASSWORD, USER_PASSWORD, Api, Metadata, bearer
from tests.rpc.refusals import refusal

NEW_PASSWORD = "another long enough secret"


async def update(api: Api, whom: str, **change: Any) -> account_pb2.Account:
    request = account_pb2.UpdateAccountRequest(
        username=whom, change=account_pb2.AccountChange(**change), update_mask=FieldMask(paths=change)
    )
    return (await api.accounts.UpdateAccount(request, metadata=await api.admin())).account


async def listed(api: Api, page_size: int = 0, **fields: Any) -> list[str]:
    """The usernames on all pages."""
    names, token, admin = [], "", await api.admin()
    while True:
        request = account_pb2.ListAccountsRequest(page_size=page_size, page_token=token, **fields)
        page = await api.accounts.ListAccounts(request, metadata=admin)
        names += [account.username for account in page.accounts]
        token = page.next_page_token
        if not token:
            return names


async def open_session(api: Api, username: str) -> str:
    """-> a session token for this service."""
    request = authentication_pb2.AuthenticateRequest(
        password=authentication_pb2.PasswordCredential(username=username, password=USER_PASSWORD),
        grant_type=authentication_pb2.GRANT_TYPE_SESSION,
        audience="identity",
    )
    return (await api.authentication.Authenticate(request)).session.session_token


def own_sessions(api: Api, metadata: Metadata) -> Awaitable[Any]:
    """A call that any live token of one's own opens."""
    return api.sessions.ListSessions(session_pb2.ListSessionsRequest(), metadata=metadata)


# -- change ----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R60")
async def test_a_renamed_user_logs_in_by_the_new_name_alone_and_their_sessions_go_on(api: Api) -> None:
    await api.create_user("carol")
    tokens = await api.login("carol", audience="identity")
    changed = await update(api, "carol", username="Caroline")
    assert (changed.username, changed.generation) == ("Caroline", 1)
    assert await own_sessions(api, bearer(tokens.access_token))
    assert (await api.login("CAROLINE")).access_token
    assert isinstance(await refusal(api.login("carol")), BadCredentials)


async def test_a_name_may_change_its_spelling_and_must_not_be_anothers(api: Api) -> None:
    await api.create_user("carol")
    await api.create_user("dave")
    assert (await update(api, "carol", username="CAROL")).username == "CAROL"
    assert isinstance(await refusal(update(api, "carol", username="Dave")), AccountAlreadyExists)


async def test_a_user_told_to_change_the_password_gets_a_challenge_at_the_next_log_in(api: Api) -> None:
    await api.create_user("carol")
    tokens = await api.login("carol", audience="identity")
    assert (await update(api, "carol", password_change_required=True)).password_change_required
    assert await own_sessions(api, bearer(tokens.access_token))
    request = authentication_pb2.AuthenticateRequest(
        password=authentication_pb2.PasswordCredential(username="carol", password=USER_PASSWORD)
    )
    assert (await api.authentication.Authenticate(request)).HasField("challenge")


@pytest.mark.parametrize(
    ("paths", "change", "field"),
    [
        ((), {}, "update_mask"),
        (("roles",), {"username": "x"}, "update_mask"),
        (("username", "account_id"), {"username": "x"}, "update_mask"),
        (("change.username",), {"username": "x"}, "update_mask"),
        (("*",), {"username": "x"}, "update_mask"),
        (("username",), {}, "change.username"),
        (("username",), {"username": " carol"}, "change.username"),
        (("username",), {"username": "x" * 129}, "change.username"),
        (("username",), {"username": "idk_something"}, "change.username"),
    ],
)
async def test_a_hostile_mask_or_name_changes_nothing(
    api: Api, paths: tuple[str, ...], change: dict[str, Any], field: str
) -> None:
    created = await api.create_user("carol")
    admin = await api.admin()
    request = account_pb2.UpdateAccountRequest(
        username="carol", change=account_pb2.AccountChange(**change), update_mask=FieldMask(paths=paths)
    )
    error = await refusal(api.accounts.UpdateAccount(request, metadata=admin))
    assert isinstance(error, InvalidRequest)
    assert error.field == field
    found = await api.accounts.GetAccount(account_pb2.GetAccountRequest(username="carol"), metadata=admin)
    assert found.account == created


async def test_a_service_keeps_its_name_and_has_no_password(api: Api) -> None:
    await api.create_service("orders")
    for call in (
        update(api, "orders", username="sales"),
        update(api, "orders", password_change_required=True),
        set_password(api, "orders"),
    ):
        error = await refusal(call)
        assert isinstance(error, InvalidRequest)
        assert error.field == "account"


# -- password reset --------------------------------------------------------------------------------------------------


async def set_password(
    api: Api, username: str, password: str = NEW_PASSWORD, **fields: Any
) -> account_pb2.SetPasswordResponse:
    request = account_pb2.SetPasswordRequest(username=username, password=password, **fields)
    return await api.accounts.SetPassword(request, metadata=await api.admin())


@pytest.mark.requirement("R60")
@pytest.mark.requirement("R11")
async def test_a_reset_ends_every_session_and_the_new_password_must_be_replaced(api: Api) -> None:
    await api.create_user("carol")
    tokens, session = await api.login("carol", audience="identity"), await open_session(api, "carol")
    answer = await set_password(api, "carol")
    assert (answer.ended_session_count, answer.account.password_change_required) == (2, True)
    for text in (tokens.access_token, session):
        assert isinstance(await refusal(own_sessions(api, bearer(text))), TokenOutdated | TokenRevoked)
    refresh = api.tokens.Refresh(token_pb2.RefreshRequest(refresh_token=tokens.refresh_token))
    assert isinstance(await refusal(refresh), SessionEnded)
    assert isinstance(await refusal(api.login("carol")), BadCredentials)
    change = authentication_pb2.ChangePasswordRequest(
        username="carol", current_password=NEW_PASSWORD, new_password="one that only carol knows"
    )
    changed = await api.authentication.ChangePassword(change)
    assert changed.tokens.session_id != tokens.session_id
    assert (await api.login("carol", "one that only carol knows")).access_token


async def test_a_reset_can_be_for_good(api: Api) -> None:
    await api.create_user("carol")
    await set_password(api, "carol", password_change_required=False)
    assert (await api.login("carol", NEW_PASSWORD)).access_token


@pytest.mark.parametrize("password", ["", "too short", "carol.the.first", "x" * 1025, "idk_" + "a" * 20])
async def test_a_reset_keeps_to_the_rules_of_new_passwords(api: Api, password: str) -> None:
    await api.create_user("Carol.the.first")
    error = await refusal(set_password(api, "carol.the.first", password))
    assert isinstance(error, InvalidRequest)
    assert error.field == "password"
    assert (await api.login("carol.the.first")).access_token


# -- sessions --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R14")
async def test_an_admin_sees_the_sessions_of_anyone_and_ends_one_or_all(api: Api) -> None:
    await api.create_user("carol")
    opened = [(await api.login("carol", audience="identity")) for _ in range(3)]
    admin = await api.admin()

    async def sessions() -> set[str]:
        request = account_pb2.ListAccountSessionsRequest(username="carol")
        page = await api.accounts.ListAccountSessions(request, metadata=admin)
        assert {(each.ip_address, each.current) for each in page.sessions} <= {("127.0.0.1", False)}
        return {each.session_id for each in page.sessions}

    assert await sessions() == {each.session_id for each in opened}
    first = revocation_pb2.RevokeGrantRequest(grant_id=opened[0].session_id)
    assert (await api.revocations.RevokeGrant(first, metadata=admin)).ended_grant_count == 1
    assert isinstance(await refusal(own_sessions(api, bearer(opened[0].access_token))), TokenRevoked)
    assert await sessions() == {each.session_id for each in opened[1:]}
    rest = revocation_pb2.RevokeSessionsRequest(filter=revocation_pb2.SessionFilter(username="carol"))
    assert (await api.revocations.RevokeSessions(rest, metadata=admin)).ended_grant_count == 2
    assert await sessions() == set()


async def test_sessions_are_listed_page_by_page_while_some_come_and_some_end(api: Api) -> None:
    await api.create_user("carol")
    opened = [(await api.login("carol")).session_id for _ in range(5)]
    admin, seen, token = await api.admin(), [], ""
    while True:
        request = account_pb2.ListAccountSessionsRequest(username="carol", page_size=2, page_token=token)
        page = await api.accounts.ListAccountSessions(request, metadata=admin)
        seen += [each.session_id for each in page.sessions]
        token = page.next_page_token
        if not token:
            break
        if len(seen) == 2:
            ended = seen[1]  # the very row that the next page goes on after
            await api.revocations.RevokeGrant(revocation_pb2.RevokeGrantRequest(grant_id=ended), metadata=admin)
    assert len(seen) == len(set(seen)) == 5
    assert set(seen) == set(opened)


# -- lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R60")
async def test_accounts_are_listed_by_kind_role_state_and_beginning_of_the_name(api: Api) -> None:
    for name, *roles in (("alice", "clerk"), ("Albert", "clerk", "manager"), ("al%", "auditor"), ("bob",)):
        await api.create_user(name, *roles)
    await api.create_service("al-orders", "clerk")
    await api.accounts.DisableAccount(account_pb2.DisableAccountRequest(username="bob"), metadata=await api.admin())
    user, service = account_pb2.ACCOUNT_KIND_USER, account_pb2.ACCOUNT_KIND_SERVICE
    assert await listed(api, kind=service) == ["al-orders"]
    assert await listed(api, role="clerk") == ["al-orders", "Albert", "alice"]
    assert await listed(api, role="clerk", kind=user, page_size=1) == ["Albert", "alice"]
    assert await listed(api, role="cler") == []
    assert await listed(api, disabled=True) == ["bob"]
    assert await listed(api, disabled=False, kind=user) == ["al%", "Albert", "alice", "root"]
    assert await listed(api, username_prefix="AL") == ["al%", "al-orders", "Albert", "alice"]
    assert await listed(api, username_prefix="al%") == ["al%"]
    assert await listed(api, username_prefix="ali", page_size=1) == ["alice"]


async def test_a_filtered_list_stays_right_while_accounts_come_go_and_change(api: Api) -> None:
    names = [f"clerk{number}" for number in range(6)]
    for name in names:
        await api.create_user(name, "clerk")
    admin, seen, token = await api.admin(), [], ""
    while True:
        request = account_pb2.ListAccountsRequest(page_size=2, page_token=token, role="clerk")
        page = await api.accounts.ListAccounts(request, metadata=admin)
        seen += [account.username for account in page.accounts]
        token = page.next_page_token
        if not token:
            break
        if len(seen) == 2:
            await api.accounts.DeleteAccount(account_pb2.DeleteAccountRequest(username="clerk1"), metadata=admin)
            await api.accounts.SetRoles(account_pb2.SetRolesRequest(username="clerk3"), metadata=admin)
            await api.create_user("clerk0a", "clerk")  # before the place: not seen, and shifts nothing
            await api.create_user("clerk4a", "clerk")  # behind it: seen
    assert seen == ["clerk0", "clerk1", "clerk2", "clerk4", "clerk4a", "clerk5"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"kind": 7}, "kind"),
        ({"role": "Clerk"}, "role"),
        ({"role": "%"}, "role"),
        ({"username_prefix": "x" * 129}, "username_prefix"),
        ({"username_prefix": "idr_x"}, "username_prefix"),
    ],
)
async def test_a_hostile_filter_is_refused(api: Api, fields: dict[str, Any], field: str) -> None:
    error = await refusal(listed(api, **fields))
    assert isinstance(error, InvalidRequest)
    assert error.field == field


# -- deletion --------------------------------------------------------------------------------------------------------


async def delete(api: Api, username: str) -> int:
    request = account_pb2.DeleteAccountRequest(username=username, reason="left the company")
    return (await api.accounts.DeleteAccount(request, metadata=await api.admin())).ended_grant_count


@pytest.mark.requirement("R60")
async def test_a_deleted_user_is_gone_with_everything_that_was_issued(api: Api) -> None:
    carol = await api.create_user("carol")
    tokens, session = await api.login("carol", audience="identity"), await open_session(api, "carol")
    assert await delete(api, "carol") == 2
    for text in (tokens.access_token, session):
        assert isinstance(await refusal(own_sessions(api, bearer(text))), TokenOutdated | TokenRevoked)
    refresh = api.tokens.Refresh(token_pb2.RefreshRequest(refresh_token=tokens.refresh_token))
    assert isinstance(await refusal(refresh), RefreshInvalid)
    assert isinstance(await refusal(api.login("carol")), BadCredentials)
    assert isinstance(await refusal(delete(api, "carol")), AccountNotFound)
    assert (await api.create_user("carol")).account_id != carol.account_id
    assert isinstance(await refusal(own_sessions(api, bearer(tokens.access_token))), TokenOutdated | TokenRevoked)


@pytest.mark.requirement("R60")
async def test_nothing_personal_of_a_deleted_user_is_left_in_the_database(api: Api, tmp_path: Path) -> None:
    await api.create_user("carol.personal")
    request = authentication_pb2.AuthenticateRequest(
        password=authentication_pb2.PasswordCredential(username="carol.personal", password=USER_PASSWORD),
        client_info=authentication_pb2.ClientInfo(user_agent="carols-own-browser/1"),
    )
    await api.authentication.Authenticate(request)
    await update(api, "carol.personal", username="carol.renamed")
    await delete(api, "carol.renamed")
    with closing(sqlite3.connect(tmp_path / "identity.db")) as connection:
        dump = "\n".join(connection.iterdump())
    assert "account.delete" in dump
    for personal in ("carol.personal", "carol.renamed", "carols-own-browser"):
        assert personal not in dump


async def test_who_deletes_themselves_leaves_no_place_in_the_log(api: Api, tmp_path: Path) -> None:
    eve = await api.create_user("eve", "admin")
    metadata = bearer((await api.login("eve", audience="identity")).access_token)
    request = account_pb2.DeleteAccountRequest(username="eve", reason="eve has had enough")
    await api.accounts.DeleteAccount(request, metadata=metadata)
    with closing(sqlite3.connect(tmp_path / "identity.db")) as connection:
        left = connection.execute(
            "SELECT origin, user_agent, note FROM audit_personal NATURAL JOIN audit_events"
            " WHERE account_id = :eve OR caller_account_id = :eve",
            {"eve": eve.account_id},
        ).fetchall()
    assert left == [("", "", "")]


async def test_a_deleted_service_is_no_audience_and_its_credentials_are_dead(api: Api) -> None:
    service = await api.create_service("orders", "peer")
    token = (await api.login_service("orders", service.client_secret)).access_token
    assert (await api.login("root", ADMIN_PASSWORD, audience="orders")).access_token
    assert await delete(api, "orders") == 1
    assert isinstance(await refusal(api.login("root", ADMIN_PASSWORD, audience="orders")), UnknownAudience)
    assert isinstance(await refusal(api.login_service("orders", service.client_secret)), BadCredentials)
    call = api.tokens.Introspect(token_pb2.IntrospectRequest(token=token), metadata=bearer(token))
    assert isinstance(await refusal(call), TokenOutdated | TokenRevoked)
    revoke = credential_pb2.RevokeCredentialRequest(credential_id=service.grant_id)
    gone = api.credentials.RevokeCredential(revoke, metadata=await api.admin())
    assert isinstance(await refusal(gone), GrantNotFound)


# -- the last admin --------------------------------------------------------------------------------------------------

Removal = Callable[[Api, str, Metadata], Awaitable[Any]]

REMOVALS: dict[str, Removal] = {
    "demoted": lambda api, name, admin: api.accounts.SetRoles(
        account_pb2.SetRolesRequest(username=name, roles=["clerk"]), metadata=admin
    ),
    "disabled": lambda api, name, admin: api.accounts.DisableAccount(
        account_pb2.DisableAccountRequest(username=name), metadata=admin
    ),
    "deleted": lambda api, name, admin: api.accounts.DeleteAccount(
        account_pb2.DeleteAccountRequest(username=name), metadata=admin
    ),
}


@pytest.mark.requirement("R61")
@pytest.mark.parametrize("removal", REMOVALS)
async def test_the_last_admin_stays(api: Api, removal: str) -> None:
    service = await api.create_service("robot", "admin")  # a credential can be revoked: it does not count
    await api.create_user("former", "admin")
    await REMOVALS["disabled"](api, "former", await api.admin())
    error = await refusal(REMOVALS[removal](api, "root", await api.admin()))
    assert isinstance(error, LastAdmin)
    robot = bearer((await api.login_service("robot", service.client_secret)).access_token)
    assert isinstance(await refusal(REMOVALS[removal](api, "root", robot)), LastAdmin)
    assert await listed(api, role="admin", disabled=False, kind=account_pb2.ACCOUNT_KIND_USER) == ["root"]


@pytest.mark.requirement("R61")
async def test_the_last_admin_may_be_logged_out_renamed_and_given_another_password(api: Api) -> None:
    admin = await api.admin()
    await api.revocations.RevokeAccount(revocation_pb2.RevokeAccountRequest(username="root"), metadata=admin)
    await update(api, "root", username="root2", password_change_required=True)
    request = authentication_pb2.ChangePasswordRequest(
        username="root2", current_password=ADMIN_PASSWORD, new_password=NEW_PASSWORD
    )
    assert (await api.authentication.ChangePassword(request)).tokens.access_token


@pytest.mark.requirement("R61")
@pytest.mark.parametrize("first", ["root", "eve"])
@pytest.mark.parametrize("removal", REMOVALS)
async def test_of_two_admins_who_remove_each_other_at_once_one_stays(api: Api, removal: str, first: str) -> None:
    await api.create_user("eve", "admin")
    eve = bearer((await api.login("eve", audience="identity")).access_token)
    attempts = [("eve", await api.admin()), ("root", eve)]
    if first == "eve":
        attempts.reverse()
    outcomes = await asyncio.gather(*(outcome(REMOVALS[removal](api, name, metadata)) for name, metadata in attempts))
    assert sorted(error is None for error in outcomes) == [False, True]
    assert all(error is None or isinstance(error, LastAdmin | TokenOutdated | TokenRevoked) for error in outcomes)


async def outcome(call: Awaitable[Any]) -> IdentityError | None:
    """The refusal, None for a success."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return status.from_rpc_error(error)
    return None
