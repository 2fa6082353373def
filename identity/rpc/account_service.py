"""AccountService over the AccountAdmin."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from identity.domain.accounts import MAXIMUM_USERNAME, AccountAdmin, normalise_username
from identity.v1 import account_pb2, account_pb2_grpc

from . import convert, pages
from .context import act_of_admin

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class AccountServicer(account_pb2_grpc.AccountServiceServicer):
    """Administers accounts."""

    def __init__(self, admin: AccountAdmin) -> None:
        self._admin = admin

    async def CreateUser(
        self, request: account_pb2.CreateUserRequest, context: _Context
    ) -> account_pb2.CreateUserResponse:
        created = await self._admin.create_user(
            request.username,
            request.password,
            tuple(request.roles),
            act_of_admin(context),
            password_change_required=request.password_change_required,
        )
        return account_pb2.CreateUserResponse(account=convert.account(created))

    async def CreateServiceAccount(
        self, request: account_pb2.CreateServiceAccountRequest, context: _Context
    ) -> account_pb2.CreateServiceAccountResponse:
        created, grant_id, secret = await self._admin.create_service(
            request.username, tuple(request.roles), act_of_admin(context)
        )
        return account_pb2.CreateServiceAccountResponse(
            account=convert.account(created), client_secret=secret, grant_id=grant_id
        )

    async def GetAccount(self, request: account_pb2.GetAccountRequest, _: _Context) -> account_pb2.GetAccountResponse:
        found = await self._admin.get(convert.account_ref(request))
        return account_pb2.GetAccountResponse(account=convert.account(found))

    async def ListAccounts(
        self, request: account_pb2.ListAccountsRequest, _: _Context
    ) -> account_pb2.ListAccountsResponse:
        limit = pages.page_size(request.page_size)
        found = await self._admin.list_page(pages.read_name(request.page_token, MAXIMUM_USERNAME), limit + 1)
        page = found[:limit]
        next_page_token = pages.write_token(normalise_username(page[-1].username)) if len(found) > limit else ""
        return account_pb2.ListAccountsResponse(
            accounts=[convert.account(each) for each in page], next_page_token=next_page_token
        )

    async def SetRoles(self, request: account_pb2.SetRolesRequest, context: _Context) -> account_pb2.SetRolesResponse:
        ref = convert.account_ref(request)
        changed = await self._admin.set_roles(ref, tuple(request.roles), act_of_admin(context))
        return account_pb2.SetRolesResponse(account=convert.account(changed))

    async def DisableAccount(
        self, request: account_pb2.DisableAccountRequest, context: _Context
    ) -> account_pb2.DisableAccountResponse:
        changed = await self._admin.disable(convert.account_ref(request), act_of_admin(context))
        return account_pb2.DisableAccountResponse(account=convert.account(changed))

    async def EnableAccount(
        self, request: account_pb2.EnableAccountRequest, context: _Context
    ) -> account_pb2.EnableAccountResponse:
        changed = await self._admin.enable(convert.account_ref(request), act_of_admin(context))
        return account_pb2.EnableAccountResponse(account=convert.account(changed))
