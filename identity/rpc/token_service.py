"""TokenService over Refresher, Revoker, Exchanger and Introspector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import grpc

from identity import failpoints
from identity.domain.exchange import Exchanger, Exchanging
from identity.domain.introspect import Asker, Introspector
from identity.domain.refresh import Refresher
from identity.domain.revoke import Revoker
from identity.v1 import token_pb2, token_pb2_grpc
from identity_client.errors import InvalidRequest
from identity_client.principal import current_principal

from . import convert
from .context import act_of_anyone, act_of_self

ANY_SCOPE = "identity.introspect.any"

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class TokenServicer(token_pb2_grpc.TokenServiceServicer):
    """Renews, revokes and describes tokens."""

    def __init__(
        self, refresher: Refresher, revoker: Revoker, exchanger: Exchanger, introspector: Introspector
    ) -> None:
        self._refresher = refresher
        self._revoker = revoker
        self._exchanger = exchanger
        self._introspector = introspector

    async def Refresh(self, request: token_pb2.RefreshRequest, context: _Context) -> token_pb2.RefreshResponse:
        raw_token = convert.presented(request.refresh_token, "refresh_token")
        _when_answered(context, lambda: failpoints.hit("refresh.after_answer"))
        issued = await self._refresher.refresh(raw_token, act_of_anyone(context))
        return token_pb2.RefreshResponse(tokens=convert.token_set(issued))

    async def Revoke(self, request: token_pb2.RevokeRequest, context: _Context) -> token_pb2.RevokeResponse:
        raw_token = convert.presented(request.token, "token")
        await self._revoker.revoke_presented(raw_token, act_of_anyone(context))
        return token_pb2.RevokeResponse()

    async def Exchange(self, request: token_pb2.ExchangeRequest, context: _Context) -> token_pb2.ExchangeResponse:
        if len(request.audience) > convert.MAXIMUM_NAME:
            raise InvalidRequest(f"at most {convert.MAXIMUM_NAME} characters", "audience")
        raw_token = convert.presented(request.subject_token, "subject_token")
        wanted = Exchanging(raw_token, request.audience, convert.scopes(request.scopes))
        issued = await self._exchanger.exchange(wanted, current_principal(), act_of_self(context))
        return token_pb2.ExchangeResponse(access=convert.access_grant(issued))

    async def Introspect(self, request: token_pb2.IntrospectRequest, _: _Context) -> token_pb2.IntrospectResponse:
        raw_token = convert.presented(request.token, "token")
        return convert.introspection(await self._introspector.introspect(raw_token, _asker()))

    async def BatchIntrospect(
        self, request: token_pb2.BatchIntrospectRequest, _: _Context
    ) -> token_pb2.BatchIntrospectResponse:
        asker, raw_tokens = _asker(), convert.presented_batch(request.tokens)
        results = [convert.introspection(await self._introspector.introspect(raw, asker)) for raw in raw_tokens]
        return token_pb2.BatchIntrospectResponse(results=results)


def _asker() -> Asker:
    principal = current_principal()
    return Asker(principal.client_id, ANY_SCOPE in principal.scopes)


def _when_answered(context: Any, then: Callable[[], None]) -> None:
    """Have *then* called once the answer's bytes are written (Any: grpc's type stubs miss this callback's form)."""
    context.add_done_callback(lambda _: then())
