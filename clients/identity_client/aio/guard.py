"""The asyncio guard: a server interceptor that judges every call before its handler sees it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from identity_client import status
from identity_client.access.gate import Gate
from identity_client.access.hooks import Hooks
from identity_client.access.judge import Ask, Judge, Judgement, Look, Step
from identity_client.access.report import Report
from identity_client.access.streams import Watch
from identity_client.aio.handlers import AsyncBinding, is_async
from identity_client.aio.streams import Sweeper
from identity_client.errors import IdentityError, Internal, TokenMalformed
from identity_client.principal import Principal
from identity_client.sync.handlers import Handler, SyncBinding
from identity_client.sync.streams import HandlerThreads
from identity_client.tokens.claims import Claims
from identity_client.trust.source import Answer

_log = logging.getLogger(__name__)

Confirm = Callable[[Principal], Awaitable[None]]
"""Asks the identity service whether the grant behind a principal is live; raises the IdentityError that refuses it."""

Introspect = Callable[[str, bool], Awaitable[Claims]]
"""Asks the identity service about an opaque text (session token or API key), which is well-formed. The flag: an answer
that was given before will not do. Raises the IdentityError that refuses the caller: a TokenError if the text is not
active, DependencyDown if there is no answer. token_id and key_id of the claims are empty."""

LookUp = Callable[[Claims], Awaitable[Answer]]
"""Asks a source of revocations about a token; raises nothing: without an answer, one that knows nothing."""


class Guard(grpc.aio.ServerInterceptor):
    """Admits a call, or answers in its handler's place with a status, a reason and `refused_by=guard`.

    *audience* is the name that refusals carry, so that a caller knows whose token to renew. *confirm* is needed as soon
    as a rule demands confirmation (ValueError without it). What *introspect* answers is judged by trust state and rule
    like any token; without it opaque bearers are refused as malformed. *look_up* belongs to a judge that asks a source
    of revocations. *on_unknown_key* is told of a token whose key is
    not held; it must not block. A method that the server has not registered stays UNIMPLEMENTED, and whatever a handler
    raises passes untouched.

    A call that streams is ended when its token no longer holds: an asynchronous handler is cancelled where it waits; of
    a synchronous one `identity_client.sync.guard.Guard` says what can be done. A stream on a session ends when the
    session would have expired as of the stream's beginning: streaming is no use that prolongs it.
    """

    def __init__(
        self,
        judge: Judge,
        *,
        audience: str,
        confirm: Confirm | None = None,
        introspect: Introspect | None = None,
        look_up: LookUp | None = None,
        on_unknown_key: Callable[[], None] | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        if confirm is None and (methods := judge.confirmed_methods()):
            raise ValueError(f"these methods demand confirmation, but no confirm was given: {', '.join(methods)}")
        self._judge = judge
        self._confirm = confirm
        self._introspect = introspect
        self._look_up = look_up
        self._gate = Gate(judge, audience=audience, hooks=hooks, on_unknown_key=on_unknown_key)
        self._watch = Watch(judge.recheck, self._gate.is_ended)
        self._sweeper: Sweeper | None = None
        self._threads = HandlerThreads()
        self._bindings: dict[str, tuple[Handler[Any, Any], AsyncBinding | SyncBinding]] = {}

    @property
    def report(self) -> Report:
        """What would have been refused where refusals are not enforced."""
        return self._gate.report

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        self._gate.judged(method)
        try:
            step = self._judge.judge(method, handler_call_details.invocation_metadata)
            judgement = step if isinstance(step, Judgement) else await self._finish(step)
            if judgement.must_confirm:
                await self._check_confirmed(judgement)
        except IdentityError as error:
            return self._refused(method, handler, error)
        except Exception:
            # grpc would send the exception's text to the caller.
            _log.exception("the guard failed to judge a call of %s and refused it", method)
            return self._refused(method, handler, Internal())
        if judgement.is_stale:
            self._gate.accepted_stale(method)
        principal = judgement.principal
        binding = self._bound(method, handler)
        if principal is not None and principal.certificate_thumbprint:
            return binding.open(self._gate.binding(method, principal))
        return binding.admit(principal)

    async def _finish(self, step: Step) -> Judgement:
        while not isinstance(step, Judgement):
            if isinstance(step, Look):
                step = step.decide(await self._look_up(step.claims) if self._look_up else Answer())
            else:
                step = await self._ask(step)
        return step

    async def _ask(self, ask: Ask) -> Judgement | Look:
        if self._introspect is None:
            raise TokenMalformed()
        return self._judge.admit(ask, await self._introspect(ask.raw_token, ask.is_anew))

    async def _check_confirmed(self, judgement: Judgement) -> None:
        if judgement.principal is not None and self._confirm is not None:
            await self._confirm(judgement.principal)

    def _bound(self, method: str, handler: Handler[Any, Any]) -> AsyncBinding | SyncBinding:
        known = self._bindings.get(method)
        if known is not None and known[0] is handler:
            return known[1]
        binding = self._bind(method, handler)
        if self._judge.rules.find(method) is not None:  # their number is bounded
            self._bindings[method] = (handler, binding)
        return binding

    def _bind(self, method: str, handler: Handler[Any, Any]) -> AsyncBinding | SyncBinding:
        if self._sweeper is None:
            self._sweeper = Sweeper(self._watch, asyncio.get_running_loop())
        if is_async(handler):
            return AsyncBinding(method, handler, sweeper=self._sweeper, refuse=self._abort)
        return SyncBinding(
            method,
            handler,
            watch=self._watch,
            wake=self._sweeper.wake_from_thread,
            threads=self._threads,
            refuse=self._abort_from_thread,
        )

    def _refused(self, method: str, handler: Handler[Any, Any], error: IdentityError) -> Handler[Any, Any]:
        self._gate.refused(method, error)
        if not self._gate.is_enforced(method):
            return self._bound(method, handler).open(self._gate.reporting(method, error))

        async def refuse(_requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await self._abort(context, error)

        # Request-streaming whatever the method's shape: such a handler is run before a byte of the request is awaited.
        return grpc.stream_unary_rpc_method_handler(refuse)

    async def _abort(self, context: grpc.aio.ServicerContext[Any, Any], error: IdentityError) -> None:
        code, message, metadata = status.refusal(error, self._gate.audience)
        try:
            await context.abort(code, message, metadata)
        except grpc.aio.AbortError as aborted:
            raise aborted from error  # for interceptors around this one: grpc's own exception does not say what it was

    def _abort_from_thread(self, context: Any, error: IdentityError) -> None:
        code, message, metadata = status.refusal(error, self._gate.audience)
        context.abort(code, message, metadata)
