"""AccountService over the AccountAdmin."""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any, TypeAlias

import grpc

from identity.domain.accounts import MAXIMUM_USERNAME, AccountAdmin, normalise_username
from identity.v1 import account_pb2, account_pb2_grpc
from identity_client.errors import InvalidRequest

from . import convert
from .context import act_of_admin

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

DEFAULT_PAGE_SIZE = 100
MAXIMUM_PAGE_SIZE = 1_000


class AccountServicer(account_pb2_grpc.AccountServiceServicer):
    """Administers accounts."""

    def __init__(self, admin: AccountAdmin) -> None:
        self._admin = admin

    async def CreateUser(
        self, request: account_pb2.CreateUserRequest, context: _Context
    ) -> account_pb2.CreateUserResponse:
        created = await self._admin.create_user(
            request.username, request.password, tuple(request.roles), act_of_admin(context)
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
        limit = _page_size(request.page_size)
        found = await self._admin.list_page(_read_page_token(request.page_token), limit + 1)
        page = found[:limit]
        next_page_token = _page_token(page[-1].username) if len(found) > limit else ""
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


def _page_size(asked: int) -> int:
    if not 0 <= asked <= MAXIMUM_PAGE_SIZE:
        raise InvalidRequest(f"1-{MAXIMUM_PAGE_SIZE:,}, or 0 for {DEFAULT_PAGE_SIZE}", "page_size")
    return asked or DEFAULT_PAGE_SIZE


def _page_token(last_username: str) -> str:
    """A page goes on after a name, not at a number: rows that come or go meanwhile shift nothing."""
    return urlsafe_b64encode(normalise_username(last_username).encode()).decode()


def _read_page_token(text: str) -> str:
    if not text:
        return ""
    try:
        name = urlsafe_b64decode(text.encode("ascii")).decode("utf-8")
    except (binascii.Error, UnicodeError):
        name = ""
    if not 1 <= len(name) <= MAXIMUM_USERNAME:
        raise InvalidRequest("give next_page_token of the page before, unchanged", "page_token")
    return name
