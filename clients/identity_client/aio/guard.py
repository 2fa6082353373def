"""The asyncio guard: a server interceptor that judges every call before its handler sees it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from identity_client import status
from identity_client.access.judge import Ask, Judge, Judgement
from identity_client.aio.handlers import Binder, bind
from identity_client.aio.streams import OpenStreams
from identity_client.errors import IdentityError, Internal, TokenMalformed, UnknownKey
from identity_client.principal import Principal, set_principal
from identity_client.tokens.claims import Claims

_log = logging.getLogger(__name__)

Confirm = Callable[[Principal], Awaitable[None]]
"""Asks the identity service whether the grant behind a principal is live; raises the IdentityError that refuses it."""

Introspect = Callable[[str, bool], Awaitable[Claims]]
"""Asks the identity service about an opaque text (session token or API key), which is well-formed. The flag: an answer
that was given before will not do. Raises the IdentityError that refuses the caller: a TokenError if the text is not
active, DependencyDown if there is no answer. token_id and key_id of the claims are empty."""


class Guard(grpc.aio.ServerInterceptor):
    """Admits a call, or answers in its handler's place with a status, a reason and `refused_by=guard`.

    *audience* is the name that refusals carry, so that a caller knows whose token to renew. *confirm* is needed as soon
    as a rule demands confirmation (ValueError without it). What *introspect* answers is judged by trust state and rule
    like any token; without it opaque bearers are refused as malformed. *on_unknown_key* is told of a token whose key is
    not held; it must not block. A method that the server has not registered stays UNIMPLEMENTED, and whatever a handler
    raises passes untouched.
    """

    def __init__(
        self,
        judge: Judge,
        *,
        audience: str,
        confirm: Confirm | None = None,
        introspect: Introspect | None = None,
        on_unknown_key: Callable[[], None] | None = None,
    ) -> None:
        if confirm is None and (methods := judge.rules.confirmed_methods()):
            raise ValueError(f"these methods demand confirmation, but no confirm was given: {', '.join(methods)}")
        self._judge = judge
        self._audience = audience
        self._confirm = confirm
        self._introspect = introspect
        self._on_unknown_key = on_unknown_key
        self._streams = OpenStreams(judge.recheck)
        self._binders: dict[str, tuple[grpc.RpcMethodHandler[Any, Any], Binder]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        try:
            judgement = self._judge.judge(method, handler_call_details.invocation_metadata)
            if isinstance(judgement, Ask):
                judgement = await self._ask(judgement)
            if judgement.must_confirm:
                await self._check_confirmed(judgement)
        except IdentityError as error:
            return self._refusal(error)
        except Exception:
            # grpc would send the exception's text to the caller.
            _log.exception("the guard failed to judge a call of %s and refused it", method)
            return self._refusal(Internal())
        set_principal(judgement.principal)
        return self._bound(method, handler)

    async def _ask(self, ask: Ask) -> Judgement:
        if self._introspect is None:
            raise TokenMalformed()
        return self._judge.admit(ask, await self._introspect(ask.raw_token, ask.is_anew))

    async def _check_confirmed(self, judgement: Judgement) -> None:
        if judgement.principal is not None and self._confirm is not None:
            await self._confirm(judgement.principal)

    def _bound(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        known = self._binders.get(method)  # only methods with a rule come here, so their number is bounded
        if known is None or known[0] is not handler:
            known = self._binders[method] = (handler, bind(handler, self._streams, self._abort))
        return known[1]()

    def _refusal(self, error: IdentityError) -> grpc.RpcMethodHandler[Any, Any]:
        if isinstance(error, UnknownKey) and self._on_unknown_key is not None:
            self._on_unknown_key()

        async def refuse(_requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await self._abort(context, error)

        # Request-streaming whatever the method's shape: such a handler is run before a byte of the request is awaited.
        return grpc.stream_unary_rpc_method_handler(refuse)

    async def _abort(self, context: grpc.aio.ServicerContext[Any, Any], error: IdentityError) -> None:
        details = status.pack(error, refused_by="guard", audience=self._audience)
        metadata = ((status.STATUS_DETAILS_KEY, details),)
        await context.abort(grpc.StatusCode[error.status], status.message_of(error), metadata)
