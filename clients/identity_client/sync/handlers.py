"""Synchronous method handlers, wrapped so that they see the caller's principal and long calls can be ended. They run on
grpc.server as well as on grpc.aio.server, which runs them on its thread pool.

A wrapped handler keeps the shape of the call; only one that must look at the connection first takes its single request
as a stream of one, so that a refusal is answered before a byte of the request is awaited.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from identity_client.access.streams import Watch
from identity_client.errors import IdentityError, MalformedRequest
from identity_client.principal import Principal, set_principal
from identity_client.sync.streams import HandlerThreads, ThreadStream

Handler = grpc.RpcMethodHandler
Behaviour = Callable[[Any, Any], Any]
Prelude = Callable[[Any], Principal | None]
"""Run in the handler's place with the servicer context: who calls. Raises the IdentityError that refuses the call."""
Refuse = Callable[[Any, IdentityError], object]
"""Ends the call with an error's status: raises, or answers an awaitable that does."""

_SHAPES: dict[tuple[bool, bool], tuple[str, Callable[..., Handler[Any, Any]]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


def behaviour_of(handler: Handler[Any, Any]) -> Behaviour:
    """The one function of a handler that is set."""
    behaviour: Behaviour = getattr(handler, _SHAPES[handler.request_streaming, handler.response_streaming][0])
    return behaviour


def rebuilt(handler: Handler[Any, Any], behaviour: Behaviour, is_request_streaming: bool) -> Handler[Any, Any]:
    """The handler with another function, and perhaps with its request as a stream."""
    _, build = _SHAPES[is_request_streaming, handler.response_streaming]
    return build(behaviour, handler.request_deserializer, handler.response_serializer)


class SyncBinding:
    """A synchronous handler of one method, prepared to be run for its callers."""

    def __init__(
        self,
        method: str,
        handler: Handler[Any, Any],
        *,
        watch: Watch,
        wake: Callable[[], None],
        threads: HandlerThreads,
        refuse: Refuse,
    ) -> None:
        self._method = method
        self._handler = handler
        self._behaviour = behaviour_of(handler)
        self._is_long = handler.request_streaming or handler.response_streaming
        self._watch = watch
        self._wake = wake
        self._threads = threads
        self._refuse = refuse

    def admit(self, principal: Principal | None) -> Handler[Any, Any]:
        """The handler to run for *principal*. To be called in the call's context."""
        run = self._run(principal, contextvars.copy_context())
        return rebuilt(self._handler, run, self._handler.request_streaming)

    def open(self, prelude: Prelude) -> Handler[Any, Any]:
        """The same, for whom *prelude* says."""
        context = contextvars.copy_context()

        def opened(requests: Iterator[Any], servicer_context: Any) -> Any:
            principal, request = self._opened(prelude, requests, servicer_context)
            return self._run(principal, context)(request, servicer_context)

        def opened_stream(requests: Iterator[Any], servicer_context: Any) -> Iterator[Any]:
            principal, request = self._opened(prelude, requests, servicer_context)
            yield from self._run(principal, context)(request, servicer_context)

        run = opened_stream if self._handler.response_streaming else opened
        return rebuilt(self._handler, run, is_request_streaming=True)

    def _opened(self, prelude: Prelude, requests: Iterator[Any], servicer_context: Any) -> tuple[Principal | None, Any]:
        try:
            principal = prelude(servicer_context)
            if self._handler.request_streaming:
                return principal, requests
            for request in requests:
                return principal, request
            raise MalformedRequest()
        except IdentityError as error:
            self._refuse(servicer_context, error)
            raise

    def _run(self, principal: Principal | None, context: contextvars.Context) -> Behaviour:
        # A pool thread does not inherit the call's context, and would hand what is set there to its next caller.
        context.run(set_principal, principal)
        if self._is_long and principal is not None:
            return (
                self._run_stream(principal, context)
                if self._handler.response_streaming
                else self._run_long(principal, context)
            )
        if self._handler.response_streaming:
            return _iterate_in(context, self._behaviour)
        return lambda request, servicer_context: context.run(self._behaviour, request, servicer_context)

    def _run_long(self, principal: Principal, context: contextvars.Context) -> Behaviour:
        def run(requests: Iterator[Any], servicer_context: Any) -> Any:
            def produce(stream: ThreadStream) -> Iterator[Any]:
                yield self._behaviour(stream.requests(requests), servicer_context)

            for response in self._watched(principal, context, servicer_context, produce):
                return response
            return None

        return run

    def _run_stream(self, principal: Principal, context: contextvars.Context) -> Behaviour:
        def run(request: Any, servicer_context: Any) -> Iterator[Any]:
            def produce(stream: ThreadStream) -> Iterator[Any]:
                argument = stream.requests(request) if self._handler.request_streaming else request
                return iter(self._behaviour(argument, servicer_context))

            return self._watched(principal, context, servicer_context, produce)

        return run

    def _watched(
        self,
        principal: Principal,
        context: contextvars.Context,
        servicer_context: Any,
        produce: Callable[[ThreadStream], Iterator[Any]],
    ) -> Iterator[Any]:
        """What the handler yields, until its caller's token no longer holds."""
        stream = ThreadStream(self._method, principal, servicer_context, self._threads)
        self._watch.add(stream)
        self._wake()
        try:
            yield from stream.responses(lambda: produce(stream), context)
        except IdentityError as error:
            if error is stream.error:
                self._refuse(servicer_context, error)
            raise
        finally:
            self._watch.remove(stream)


def _iterate_in(context: contextvars.Context, behaviour: Behaviour) -> Behaviour:
    end = object()

    def iterate(request: Any, servicer_context: Any) -> Iterator[Any]:
        responses = iter(context.run(behaviour, request, servicer_context))
        while (response := context.run(next, responses, end)) is not end:
            yield response

    return iterate
