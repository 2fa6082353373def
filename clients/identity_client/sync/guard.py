"""The threaded guard: an interceptor of grpc.server that judges every call before its handler sees it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import grpc

from identity_client import status
from identity_client.access.gate import Gate
from identity_client.access.hooks import Hooks
from identity_client.access.judge import Ask, Judge, Judgement, Look, Step
from identity_client.access.report import Report
from identity_client.access.streams import Watch
from identity_client.errors import IdentityError, Internal, TokenMalformed
from identity_client.principal import Principal
from identity_client.sync.handlers import Handler, Prelude, SyncBinding
from identity_client.sync.streams import HandlerThreads, Sweeper
from identity_client.tokens.claims import Claims
from identity_client.trust.source import Answer

_log = logging.getLogger(__name__)

Confirm = Callable[[Principal], None]
"""Asks the identity service whether the grant behind a principal is live; raises the IdentityError that refuses it."""

Introspect = Callable[[str, bool], Claims]
"""The blocking twin of `identity_client.aio.guard.Introspect`."""

LookUp = Callable[[Claims], Answer]
"""The blocking twin of `identity_client.aio.guard.LookUp`."""


class Guard(grpc.ServerInterceptor):
    """The twin of `identity_client.aio.Guard` for grpc.server; the options are the same.

    grpc.server runs its interceptors one after the other, so nothing is waited for there: where the identity service
    or a source of revocations must be asked, the handler's own thread asks it, before it awaits the request.

    A handler that streams runs on a thread beside grpc's own, which ends the call when the caller's token no longer
    holds. The handler cannot be interrupted: one that waits for requests is told the refusal as an exception, any other
    is closed at its next response. One that waits for something else for ever keeps its thread, so have it wait with a
    time limit and look at `context.is_active()`, or wake it from `context.add_callback`.
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
        self._sweeper = Sweeper(self._watch)
        self._threads = HandlerThreads()
        self._bindings: dict[str, tuple[Handler[Any, Any], SyncBinding]] = {}

    @property
    def report(self) -> Report:
        """What would have been refused where refusals are not enforced."""
        return self._gate.report

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler[Any, Any] | None:
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        self._gate.judged(method)
        try:
            step = self._judge.judge(method, handler_call_details.invocation_metadata)
        except IdentityError as error:
            return self._refused(method, handler, error)
        except Exception:
            _log.exception("the guard failed to judge a call of %s and refused it", method)
            return self._refused(method, handler, Internal())
        binding = self._bound(method, handler)
        if not isinstance(step, Judgement) or step.must_confirm or _is_bound(step.principal):
            return binding.open(self._late(method, step))
        if step.is_stale:
            self._gate.accepted_stale(method)
        return binding.admit(step.principal)

    def _late(self, method: str, step: Step) -> Prelude:
        """The rest of the judgement, which waits for others' answers or looks at the connection."""

        def finish(context: Any) -> Principal | None:
            try:
                judged = self._finished(step)
            except IdentityError as error:
                return self._gate.refuse_late(method, error, context)
            except Exception:
                _log.exception("the guard failed to judge a call of %s and refused it", method)
                return self._gate.refuse_late(method, Internal(), context)
            if judged.is_stale:
                self._gate.accepted_stale(method)
            if judged.principal is not None and _is_bound(judged.principal):
                return self._gate.binding(method, judged.principal)(context)
            return judged.principal

        return finish

    def _finished(self, step: Step) -> Judgement:
        while not isinstance(step, Judgement):
            if isinstance(step, Look):
                step = step.decide(self._look_up(step.claims) if self._look_up else Answer())
            else:
                step = self._ask(step)
        if step.must_confirm and step.principal is not None and self._confirm is not None:
            self._confirm(step.principal)
        return step

    def _ask(self, ask: Ask) -> Judgement | Look:
        if self._introspect is None:
            raise TokenMalformed()
        return self._judge.admit(ask, self._introspect(ask.raw_token, ask.is_anew))

    def _bound(self, method: str, handler: Handler[Any, Any]) -> SyncBinding:
        known = self._bindings.get(method)
        if known is not None and known[0] is handler:
            return known[1]
        binding = SyncBinding(
            method,
            handler,
            watch=self._watch,
            wake=self._sweeper.wake,
            threads=self._threads,
            refuse=self._abort,
        )
        if self._judge.rules.find(method) is not None:  # their number is bounded
            self._bindings[method] = (handler, binding)
        return binding

    def _refused(self, method: str, handler: Handler[Any, Any], error: IdentityError) -> Handler[Any, Any]:
        self._gate.refused(method, error)
        if not self._gate.is_enforced(method):
            return self._bound(method, handler).open(self._gate.reporting(method, error))

        def refuse(_requests: Any, context: grpc.ServicerContext) -> None:
            self._abort(context, error)

        # Request-streaming whatever the method's shape: such a handler is run before a byte of the request is awaited.
        return grpc.stream_unary_rpc_method_handler(refuse)

    def _abort(self, context: Any, error: IdentityError) -> None:
        code, message, metadata = status.refusal(error, self._gate.audience)
        context.set_trailing_metadata(metadata)
        context.abort(code, message)


def _is_bound(principal: Principal | None) -> bool:
    return principal is not None and bool(principal.certificate_thumbprint)
