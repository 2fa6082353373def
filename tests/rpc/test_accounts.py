"""Administering accounts, over the wire."""

from __future__ import annotations

import pytest

from identity.v1 import account_pb2
from identity_client.errors import (
    AccountAlreadyExists,
    AccountNotFound,
    CredentialsMissing,
    InvalidRequest,
    PermissionMissing,
    TokenOutdated,
    TokenRevoked,
)
from tests.rpc.api import USER_PASSWORD, Api, bearer
from tests.rpc.refusals import refusal


async def test_a_user_is_created_and_found_by_id_and_by_name(api: Api) -> None:
    created = await api.create_user("Carol", "clerk", "auditor")
    assert created.kind == account_pb2.ACCOUNT_KIND_USER
    assert list(created.roles) == ["auditor", "clerk"]
    admin = await api.admin()
    by_id = await api.accounts.GetAccount(account_pb2.GetAccountRequest(account_id=created.account_id), metadata=admin)
    by_name = await api.accounts.GetAccount(account_pb2.GetAccountRequest(username="cAROL"), metadata=admin)
    assert by_id.account == by_name.account == created


async def test_a_name_is_taken_once_however_it_is_spelt(api: Api) -> None:
    await api.create_user("carol")
    assert isinstance(await refusal(api.create_user("CAROL")), AccountAlreadyExists)


async def test_an_unknown_account_is_not_found(api: Api) -> None:
    call = api.accounts.GetAccount(account_pb2.GetAccountRequest(username="nobody"), metadata=await api.admin())
    assert isinstance(await refusal(call), AccountNotFound)


@pytest.mark.parametrize("name", ["", "Orders", "1orders", "orders!", "internal", "identity", "o" * 65])
async def test_a_service_name_is_checked(api: Api, name: str) -> None:
    error = await refusal(api.create_service(name))
    assert isinstance(error, InvalidRequest)
    assert error.field == "username"


@pytest.mark.parametrize("password", ["", "too short", "x" * 1025, "control\x00character"])
async def test_a_new_password_is_checked(api: Api, password: str) -> None:
    request = account_pb2.CreateUserRequest(username="carol", password=password)
    error = await refusal(api.accounts.CreateUser(request, metadata=await api.admin()))
    assert isinstance(error, InvalidRequest)
    assert error.field == "password"


@pytest.mark.parametrize("roles", [["Clerk"], ["-clerk"], ["a" * 65], [f"r{n}" for n in range(33)], [""]])
async def test_roles_are_checked(api: Api, roles: list[str]) -> None:
    request = account_pb2.CreateUserRequest(username="carol", password=USER_PASSWORD, roles=roles)
    error = await refusal(api.accounts.CreateUser(request, metadata=await api.admin()))
    assert isinstance(error, InvalidRequest)
    assert error.field == "roles"


async def test_accounts_are_listed_page_by_page_while_others_come(api: Api) -> None:
    for name in ("alice", "bob", "carol", "dave"):
        await api.create_user(name)
    admin = await api.admin()
    seen: list[str] = []
    token = ""
    while True:
        request = account_pb2.ListAccountsRequest(page_size=2, page_token=token)
        page = await api.accounts.ListAccounts(request, metadata=admin)
        seen += [account.username for account in page.accounts]
        if not page.next_page_token:
            break
        token = page.next_page_token
        if len(seen) == 2:
            await api.create_user("aaron")  # before the page's end: shifts nothing
    assert seen == ["alice", "bob", "carol", "dave", "root"]


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({"page_size": -1}, "page_size"),
        ({"page_size": 1001}, "page_size"),
        ({"page_token": "!"}, "page_token"),
        ({"page_token": "_w=="}, "page_token"),
        ({"page_token": "ü"}, "page_token"),
    ],
)
async def test_a_hostile_page_is_refused(api: Api, request_fields: dict[str, object], field: str) -> None:
    request = account_pb2.ListAccountsRequest(**request_fields)  # type: ignore[arg-type]
    error = await refusal(api.accounts.ListAccounts(request, metadata=await api.admin()))
    assert isinstance(error, InvalidRequest)
    assert error.field == field


async def test_administration_is_closed_to_everyone_else(api: Api) -> None:
    request = account_pb2.CreateUserRequest(username="mallory", password=USER_PASSWORD, roles=["admin"])
    assert isinstance(await refusal(api.accounts.CreateUser(request)), CredentialsMissing)
    await api.create_user("carol", "clerk")
    token = (await api.login("carol")).access_token
    assert isinstance(await refusal(api.accounts.CreateUser(request, metadata=bearer(token))), PermissionMissing)


@pytest.mark.requirement("R3")
async def test_a_role_taken_from_an_admin_ends_their_power_at_once(api: Api) -> None:
    await api.create_user("eve", "admin")
    eve = bearer((await api.login("eve")).access_token)
    await api.accounts.SetRoles(
        account_pb2.SetRolesRequest(username="eve", roles=["clerk"]), metadata=await api.admin()
    )
    call = api.accounts.ListAccounts(account_pb2.ListAccountsRequest(), metadata=eve)
    assert isinstance(await refusal(call), TokenOutdated)


async def test_the_same_roles_again_change_nothing(api: Api) -> None:
    created = await api.create_user("carol", "clerk")
    admin = await api.admin()
    request = account_pb2.SetRolesRequest(username="carol", roles=["clerk", "clerk"])
    assert (await api.accounts.SetRoles(request, metadata=admin)).account.generation == created.generation


async def test_a_disabled_admin_is_refused_at_once_and_after_enabling_must_log_in_anew(api: Api) -> None:
    await api.create_user("eve", "admin")
    tokens = await api.login("eve")
    admin = await api.admin()
    disabled = await api.accounts.DisableAccount(account_pb2.DisableAccountRequest(username="eve"), metadata=admin)
    assert disabled.account.HasField("disable_time")
    list_call = api.accounts.ListAccounts(account_pb2.ListAccountsRequest(), metadata=bearer(tokens.access_token))
    assert isinstance(await refusal(list_call), TokenOutdated | TokenRevoked)
    enabled = await api.accounts.EnableAccount(account_pb2.EnableAccountRequest(username="eve"), metadata=admin)
    assert not enabled.account.HasField("disable_time")
    again = api.accounts.ListAccounts(account_pb2.ListAccountsRequest(), metadata=bearer(tokens.access_token))
    assert isinstance(await refusal(again), TokenOutdated | TokenRevoked)
    assert (await api.login("eve")).access_token
