"""RoleService over the RoleAdmin."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from identity.domain.once import RequestIds
from identity.domain.roles import RoleAdmin
from identity.domain.values import Role, RoleChange
from identity.v1 import role_pb2 as pb
from identity.v1 import role_pb2_grpc
from identity_client.errors import InvalidRequest

from . import convert, pages
from .context import act_of_admin, act_of_creator

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_CHANGEABLE = ("scopes", "description")
_LONGEST_NAME = 64


class RoleServicer(role_pb2_grpc.RoleServiceServicer):
    """Administers roles."""

    def __init__(self, admin: RoleAdmin, request_ids: RequestIds) -> None:
        self._admin = admin
        self._request_ids = request_ids

    async def CreateRole(self, request: pb.CreateRoleRequest, context: _Context) -> pb.CreateRoleResponse:
        act = act_of_creator(context, request, self._request_ids)
        created = await self._admin.create(request.name, tuple(request.scopes), request.description, act)
        return pb.CreateRoleResponse(role=_role(created))

    async def GetRole(self, request: pb.GetRoleRequest, _: _Context) -> pb.GetRoleResponse:
        return pb.GetRoleResponse(role=_role(await self._admin.get(request.name)))

    async def ListRoles(self, request: pb.ListRolesRequest, _: _Context) -> pb.ListRolesResponse:
        limit = pages.page_size(request.page_size)
        found = await self._admin.list_page(pages.read_name(request.page_token, _LONGEST_NAME), limit + 1)
        return pb.ListRolesResponse(
            roles=[_role(each) for each in found[:limit]],
            next_page_token=pages.write_token(found[limit - 1].name) if len(found) > limit else "",
        )

    async def UpdateRole(self, request: pb.UpdateRoleRequest, context: _Context) -> pb.UpdateRoleResponse:
        changed = await self._admin.update(request.role.name, _change(request), act_of_admin(context))
        return pb.UpdateRoleResponse(role=_role(changed))

    async def DeleteRole(self, request: pb.DeleteRoleRequest, context: _Context) -> pb.DeleteRoleResponse:
        await self._admin.delete(request.name, act_of_admin(context))
        return pb.DeleteRoleResponse()


def _change(request: pb.UpdateRoleRequest) -> RoleChange:
    paths = convert.mask(request.update_mask, _CHANGEABLE)
    if not request.HasField("role"):
        raise InvalidRequest("name the role, and give the new values", "role")
    return RoleChange(
        scopes=tuple(request.role.scopes) if "scopes" in paths else None,
        description=request.role.description if "description" in paths else None,
    )


def _role(value: Role) -> pb.Role:
    return pb.Role(
        name=value.name,
        scopes=value.scopes,
        description=value.description,
        built_in=value.is_built_in,
        create_time=convert.timestamp(value.create_time),
        update_time=convert.timestamp(value.update_time),
    )
