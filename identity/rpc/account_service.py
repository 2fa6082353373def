"""AccountService over the AccountAdmin."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from identity.domain.accounts import MAXIMUM_USERNAME, AccountAdmin, normalise_username
from identity.domain.once import RequestIds
from identity.domain.values import AccountChange, AccountFilter, AccountKind
from identity.v1 import account_pb2, account_pb2_grpc
from identity_client.errors import InvalidRequest
from identity_client.principal import current_principal

from . import convert, pages, session_service
from .context import act_of_admin, act_of_creator

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


_CHANGEABLE = ("username", "password_change_required")
_KINDS = {
    account_pb2.ACCOUNT_KIND_UNSPECIFIED: None,
    account_pb2.ACCOUNT_KIND_USER: AccountKind.USER,
    account_pb2.ACCOUNT_KIND_SERVICE: AccountKind.SERVICE,
}


class AccountServicer(account_pb2_grpc.AccountServiceServicer):
    """Administers accounts."""

    def __init__(self, admin: AccountAdmin, request_ids: RequestIds) -> None:
        self._admin = admin
        self._request_ids = request_ids

    async def CreateUser(
        self, request: account_pb2.CreateUserRequest, context: _Context
    ) -> account_pb2.CreateUserResponse:
        created = await self._admin.create_user(
            request.username,
            request.password,
            tuple(request.roles),
            act_of_creator(context, request, self._request_ids),
            password_change_required=request.password_change_required,
        )
        return account_pb2.CreateUserResponse(account=convert.account(created))

    async def CreateServiceAccount(
        self, request: account_pb2.CreateServiceAccountRequest, context: _Context
    ) -> account_pb2.CreateServiceAccountResponse:
        created, grant_id, secret = await self._admin.create_service(
            request.username, tuple(request.roles), act_of_creator(context, request, self._request_ids)
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
        after = pages.read_name(request.page_token, MAXIMUM_USERNAME)
        found = await self._admin.list_page(after, limit + 1, _filter(request))
        page = found[:limit]
        next_page_token = pages.write_token(normalise_username(page[-1].username)) if len(found) > limit else ""
        return account_pb2.ListAccountsResponse(
            accounts=[convert.account(each) for each in page], next_page_token=next_page_token
        )

    async def UpdateAccount(
        self, request: account_pb2.UpdateAccountRequest, context: _Context
    ) -> account_pb2.UpdateAccountResponse:
        ref, change = convert.account_ref(request), _change(request)
        changed = await self._admin.update(ref, change, act_of_admin(context))
        return account_pb2.UpdateAccountResponse(account=convert.account(changed))

    async def DeleteAccount(
        self, request: account_pb2.DeleteAccountRequest, context: _Context
    ) -> account_pb2.DeleteAccountResponse:
        ref, note = convert.account_ref(request), convert.note(request.reason)
        count = await self._admin.delete(ref, note, act_of_admin(context))
        return account_pb2.DeleteAccountResponse(ended_grant_count=count)

    async def SetPassword(
        self, request: account_pb2.SetPasswordRequest, context: _Context
    ) -> account_pb2.SetPasswordResponse:
        is_change_required = not request.HasField("password_change_required") or request.password_change_required
        ref, act = convert.account_ref(request), act_of_admin(context)
        changed, count = await self._admin.set_password(
            ref, request.password, act, is_change_required=is_change_required
        )
        return account_pb2.SetPasswordResponse(account=convert.account(changed), ended_session_count=count)

    async def ListAccountSessions(
        self, request: account_pb2.ListAccountSessionsRequest, _: _Context
    ) -> account_pb2.ListAccountSessionsResponse:
        limit, before = pages.page_size(request.page_size), pages.read_time_and_id(request.page_token)
        found = await self._admin.list_sessions(convert.account_ref(request), before, limit + 1)
        own = current_principal().grant_id
        return account_pb2.ListAccountSessionsResponse(
            sessions=[session_service.session(each, own) for each in found[:limit]],
            next_page_token=session_service.next_page_token(found, limit),
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


def _filter(request: account_pb2.ListAccountsRequest) -> AccountFilter:
    if request.kind not in _KINDS:
        raise InvalidRequest(f"use one of {', '.join(account_pb2.AccountKind.keys()[1:])}", "kind")
    return AccountFilter(
        kind=_KINDS[request.kind],
        role=request.role,
        is_disabled=request.disabled if request.HasField("disabled") else None,
        username_prefix=request.username_prefix,
    )


def _change(request: account_pb2.UpdateAccountRequest) -> AccountChange:
    paths = convert.mask(request.update_mask, _CHANGEABLE)
    change = request.change
    return AccountChange(
        username=change.username if "username" in paths else None,
        password_change_required=change.password_change_required if "password_change_required" in paths else None,
    )
