"""SessionService over the SessionKeeper: the caller's own log-ins."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from identity.domain.grants import Session
from identity.domain.sessions import SessionKeeper
from identity.v1 import session_pb2 as pb
from identity.v1 import session_pb2_grpc
from identity_client.errors import GrantNotFound, InvalidRequest, PermissionMissing
from identity_client.principal import Principal, current_principal

from . import convert, pages
from .context import act_of_self

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class SessionServicer(session_pb2_grpc.SessionServiceServicer):
    """Shows and ends sessions for the account whose they are."""

    def __init__(self, keeper: SessionKeeper) -> None:
        self._keeper = keeper

    async def GetSession(self, request: pb.GetSessionRequest, _: _Context) -> pb.GetSessionResponse:
        session_id = convert.checked_id(request.session_id, "session_id")
        found = await self._keeper.get(_holder().account_id, session_id)
        return pb.GetSessionResponse(session=session(found, current_principal().grant_id))

    async def ListSessions(self, request: pb.ListSessionsRequest, _: _Context) -> pb.ListSessionsResponse:
        principal, limit = _holder(), pages.page_size(request.page_size)
        before = pages.read_time_and_id(request.page_token)
        found = await self._keeper.list_page(principal.account_id, before, limit + 1)
        return pb.ListSessionsResponse(
            sessions=[session(each, principal.grant_id) for each in found[:limit]],
            next_page_token=next_page_token(found, limit),
        )

    async def EndSession(self, request: pb.EndSessionRequest, context: _Context) -> pb.EndSessionResponse:
        session_id = convert.checked_id(request.session_id, "session_id")
        await self._keeper.end(_holder().account_id, session_id, act_of_self(context))
        return pb.EndSessionResponse()

    async def Logout(self, _: pb.LogoutRequest, context: _Context) -> pb.LogoutResponse:
        principal = _holder()
        try:
            await self._keeper.end(principal.account_id, principal.grant_id, act_of_self(context))
        except GrantNotFound:
            raise InvalidRequest("the call is made with a credential, which is no session: revoke it instead") from None
        return pb.LogoutResponse()

    async def LogoutEverywhere(self, _: pb.LogoutEverywhereRequest, context: _Context) -> pb.LogoutEverywhereResponse:
        count = await self._keeper.end_all(_holder().account_id, act_of_self(context))
        return pb.LogoutEverywhereResponse(ended_session_count=count)


def _holder() -> Principal:
    """The account itself: what a service received to act for it opens none of its log-ins. Raises PermissionMissing."""
    principal = current_principal()
    if principal.actors:
        raise PermissionMissing("Sessions are shown to the account itself, not to a service that acts for it.")
    return principal


def next_page_token(found: list[Session], limit: int) -> str:
    """Goes on after the last row of a page of which one row more was read."""
    return (
        pages.write_token(str(found[limit - 1].create_time), found[limit - 1].session_id) if len(found) > limit else ""
    )


def session(value: Session, current_id: str) -> pb.Session:
    """A session; *current_id* is that of the caller."""
    return pb.Session(
        session_id=value.session_id,
        account_id=value.account_id,
        kind=_kind(value),
        audiences=value.audiences,
        create_time=convert.timestamp(value.create_time),
        last_used_time=convert.timestamp(value.last_used_time),
        idle_expire_time=convert.timestamp(value.idle_expire_time),
        absolute_expire_time=convert.timestamp(value.absolute_expire_time),
        ip_address=value.ip_address,
        user_agent=value.user_agent,
        current=value.session_id == current_id,
    )


def _kind(value: Session) -> pb.SessionKind.ValueType:
    if value.is_opaque:
        return pb.SESSION_KIND_OPAQUE
    return pb.SESSION_KIND_TOKENS if value.has_refresh else pb.SESSION_KIND_ACCESS_TOKEN
