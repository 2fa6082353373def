"""RevocationService over the Revoker."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from identity.domain.revoke import Revoker
from identity.v1 import revocation_pb2, revocation_pb2_grpc

from . import convert
from .context import act_of_admin

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class RevocationServicer(revocation_pb2_grpc.RevocationServiceServicer):
    """Ends tokens and grants for administrators."""

    def __init__(self, revoker: Revoker) -> None:
        self._revoker = revoker

    async def RevokeToken(
        self, request: revocation_pb2.RevokeTokenRequest, context: _Context
    ) -> revocation_pb2.RevokeTokenResponse:
        raw_token = convert.presented(request.token, "token")
        count = await self._revoker.revoke_token(raw_token, convert.note(request.reason), act_of_admin(context))
        return revocation_pb2.RevokeTokenResponse(ended_grant_count=count)

    async def RevokeGrant(
        self, request: revocation_pb2.RevokeGrantRequest, context: _Context
    ) -> revocation_pb2.RevokeGrantResponse:
        grant_id = convert.checked_id(request.grant_id, "grant_id")
        count = await self._revoker.end_grant(grant_id, convert.note(request.reason), act_of_admin(context))
        return revocation_pb2.RevokeGrantResponse(ended_grant_count=count)

    async def RevokeAccount(
        self, request: revocation_pb2.RevokeAccountRequest, context: _Context
    ) -> revocation_pb2.RevokeAccountResponse:
        ref = convert.account_ref(request)
        count = await self._revoker.end_account(ref, convert.note(request.reason), act_of_admin(context))
        return revocation_pb2.RevokeAccountResponse(ended_grant_count=count)
