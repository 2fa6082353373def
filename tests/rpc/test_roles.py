"""Roles over the wire: administered by admins alone, narrowed everywhere at once, never removed from under anybody."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from identity.v1 import account_pb2, role_pb2
from identity_client.errors import (
    CredentialsMissing,
    InvalidRequest,
    PermissionMissing,
    RoleAlreadyExists,
    RoleBuiltIn,
    RoleInUse,
    RoleNotFound,
    UnknownRole,
)
from tests.rpc.api import Api, bearer
from tests.rpc.refusals import refusal
from tests.rpc.test_revoke_and_introspect import payload_of


def update(name: str, *paths: str, **values: Any) -> role_pb2.UpdateRoleRequest:
    role = role_pb2.Role(name=name, **values)
    return role_pb2.UpdateRoleRequest(role=role, update_mask=FieldMask(paths=paths))


async def test_a_role_is_created_shown_changed_and_deleted(api: Api) -> None:
    admin = await api.admin()
    request = role_pb2.CreateRoleRequest(name="reader", scopes=["b", "a", "b"], description="reads")
    created = (await api.roles.CreateRole(request, metadata=admin)).role
    assert (created.name, list(created.scopes), created.description) == ("reader", ["a", "b"], "reads")
    assert not created.built_in
    changed = await api.roles.UpdateRole(update("reader", "scopes", scopes=["c"], description="x"), metadata=admin)
    assert (list(changed.role.scopes), changed.role.description) == (["c"], "reads")
    described = await api.roles.UpdateRole(
        update("reader", "description", scopes=["x"], description="y"), metadata=admin
    )
    assert (list(described.role.scopes), described.role.description) == (["c"], "y")
    emptied = await api.roles.UpdateRole(update("reader", "scopes", "description"), metadata=admin)
    assert (list(emptied.role.scopes), emptied.role.description) == ([], "")
    get = role_pb2.GetRoleRequest(name="reader")
    assert (await api.roles.GetRole(get, metadata=admin)).role == emptied.role
    await api.roles.DeleteRole(role_pb2.DeleteRoleRequest(name="reader"), metadata=admin)
    assert isinstance(await refusal(api.roles.GetRole(get, metadata=admin)), RoleNotFound)


async def test_roles_are_listed_by_name_page_by_page(api: Api) -> None:
    admin, names, page_token = await api.admin(), [], ""
    while True:
        request = role_pb2.ListRolesRequest(page_size=2, page_token=page_token)
        page = await api.roles.ListRoles(request, metadata=admin)
        names += [role.name for role in page.roles]
        page_token = page.next_page_token
        if not page_token:
            break
        if len(names) == 2:  # gone while the list is read: nothing is shifted
            await api.roles.DeleteRole(role_pb2.DeleteRoleRequest(name=names[-1]), metadata=admin)
    assert names == ["admin", "auditor", "clerk", "manager", "peer"]


async def test_what_cannot_be_done_to_a_role_is_said(api: Api) -> None:
    admin = await api.admin()
    await api.create_user("carol", "clerk")
    roles = api.roles
    cases: list[tuple[Any, Any, type[Exception]]] = [
        (roles.CreateRole, role_pb2.CreateRoleRequest(name="clerk"), RoleAlreadyExists),
        (roles.UpdateRole, update("admin", "scopes"), RoleBuiltIn),
        (roles.UpdateRole, update("nothing", "scopes"), RoleNotFound),
        (roles.DeleteRole, role_pb2.DeleteRoleRequest(name="peer"), RoleBuiltIn),
        (roles.DeleteRole, role_pb2.DeleteRoleRequest(name="clerk"), RoleInUse),
        (roles.DeleteRole, role_pb2.DeleteRoleRequest(name="nothing"), RoleNotFound),
        (api.accounts.SetRoles, account_pb2.SetRolesRequest(username="carol", roles=["nothing"]), UnknownRole),
    ]
    for method, request, error in cases:
        assert type(await refusal(method(request, metadata=admin))) is error, request


async def test_a_bad_field_of_a_role_is_named(api: Api) -> None:
    admin, roles = await api.admin(), api.roles
    cases: list[tuple[Any, Any, str]] = [
        (roles.CreateRole, role_pb2.CreateRoleRequest(name="No"), "name"),
        (roles.CreateRole, role_pb2.CreateRoleRequest(name="x", scopes=["a b"]), "scopes"),
        (roles.CreateRole, role_pb2.CreateRoleRequest(name="x", scopes=["identity.root"]), "scopes"),
        (roles.CreateRole, role_pb2.CreateRoleRequest(name="x", description="x" * 257), "description"),
        (roles.UpdateRole, update("clerk"), "update_mask"),
        (roles.UpdateRole, update("clerk", "name"), "update_mask"),
        (roles.UpdateRole, update("clerk", "scopes", "built_in"), "update_mask"),
        (roles.UpdateRole, role_pb2.UpdateRoleRequest(update_mask=FieldMask(paths=["scopes"])), "role"),
        (roles.UpdateRole, update("clerk", "scopes", scopes=["a b"]), "role.scopes"),
        (roles.UpdateRole, update("No", "scopes"), "role.name"),
        (roles.ListRoles, role_pb2.ListRolesRequest(page_size=1_001), "page_size"),
        (roles.ListRoles, role_pb2.ListRolesRequest(page_token="x"), "page_token"),
    ]
    for method, request, field in cases:
        error = await refusal(method(request, metadata=admin))
        assert isinstance(error, InvalidRequest), request
        assert error.field == field, request


async def test_roles_are_for_admins(api: Api) -> None:
    await api.create_user("carol", "clerk", "peer")
    carol = bearer((await api.login("carol", audience="identity")).access_token)
    calls: list[tuple[Any, Any]] = [
        (api.roles.CreateRole, role_pb2.CreateRoleRequest(name="x")),
        (api.roles.UpdateRole, update("clerk", "scopes", scopes=["identity.admin"])),
        (api.roles.DeleteRole, role_pb2.DeleteRoleRequest(name="auditor")),
        (api.roles.GetRole, role_pb2.GetRoleRequest(name="clerk")),
        (api.roles.ListRoles, role_pb2.ListRolesRequest()),
    ]
    for method, request in calls:
        assert isinstance(await refusal(method(request, metadata=carol)), PermissionMissing)
        assert isinstance(await refusal(method(request)), CredentialsMissing)


@pytest.mark.requirement("R3")
async def test_narrowing_outdates_tokens_of_the_role_here_at_once_and_widening_waits_for_renewal(api: Api) -> None:
    await api.create_role("reader", "orders.read")
    await api.create_user("carol", "reader")
    peer = await api.peer("orders")
    tokens = await api.login("carol")
    await api.set_scopes("reader", "orders.read", "orders.list")
    assert list((await api.introspect(tokens.access_token, peer)).scopes) == ["orders.read"]
    await api.set_scopes("reader", "orders.list")
    assert not (await api.introspect(tokens.access_token, peer)).active
    renewed = await api.refresh(tokens.refresh_token)
    assert list((await api.introspect(renewed.access_token, peer)).scopes) == ["orders.list"]
    assert payload_of(renewed.access_token)["gen"] == payload_of(tokens.access_token)["gen"]


@pytest.mark.requirement("R15")
async def test_a_narrowed_role_narrows_sessions_and_keys_at_the_next_call(api: Api) -> None:
    await api.create_role("reader", "orders.read", "orders.list")
    await api.create_user("carol", "reader")
    peer = await api.peer("orders")
    opened, key = await api.open_session("carol"), await api.create_api_key("carol", "orders")
    await api.set_scopes("reader", "orders.list", "orders.write")
    for text in (opened.session_token, key.api_key):
        assert list((await api.introspect(text, peer)).scopes) == ["orders.list", "orders.write"]
