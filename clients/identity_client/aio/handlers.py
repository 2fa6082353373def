"""Method handlers, wrapped so that they see the caller's principal and long streams can be ended.

A wrapped handler keeps the shape of the call, and stays synchronous if it was: the server then still runs it on its
thread pool.
"""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from identity_client.aio.streams import OpenStreams
from identity_client.errors import IdentityError
from identity_client.principal import find_principal

Handler = grpc.RpcMethodHandler
Behaviour = Callable[[Any, Any], Any]
Binder = Callable[[], "Handler[Any, Any]"]
Context = grpc.aio.ServicerContext
Refuse = Callable[["Context[Any, Any]", IdentityError], Awaitable[None]]

_SHAPES: dict[tuple[bool, bool], tuple[str, Callable[..., Handler[Any, Any]]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
_END = object()


def bind(handler: Handler[Any, Any], streams: OpenStreams, refuse: Refuse) -> Binder:
    """Prepares *handler* once. What it returns is called in each call's context, and gives the handler to run."""
    name, build = _SHAPES[handler.request_streaming, handler.response_streaming]
    behaviour: Behaviour = getattr(handler, name)

    def rebuilt(replacement: Behaviour) -> Handler[Any, Any]:
        return build(replacement, handler.request_deserializer, handler.response_serializer)

    if not _is_async(behaviour):
        # A pool thread does not inherit the call's context, and would hand what is set there to its next caller.
        run_in = _iterate_in if handler.response_streaming else _run_in
        return lambda: rebuilt(run_in(contextvars.copy_context(), behaviour))
    prepared = rebuilt(_ending(behaviour, streams, refuse)) if handler.response_streaming else handler
    return lambda: prepared


def _is_async(behaviour: Behaviour) -> bool:
    return inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)


def _run_in(context: contextvars.Context, behaviour: Behaviour) -> Behaviour:
    return lambda request, servicer_context: context.run(behaviour, request, servicer_context)


def _iterate_in(context: contextvars.Context, behaviour: Behaviour) -> Behaviour:
    def iterate(request: Any, servicer_context: Any) -> Iterator[Any]:
        responses = iter(context.run(behaviour, request, servicer_context))
        while (response := context.run(next, responses, _END)) is not _END:
            yield response

    return iterate


def _ending(behaviour: Behaviour, streams: OpenStreams, refuse: Refuse) -> Behaviour:
    """An async response stream that ends with the reason as soon as its token no longer holds."""
    if inspect.isasyncgenfunction(behaviour):
        return _ending_generator(behaviour, streams, refuse)
    return _ending_writer(behaviour, streams, refuse)


def _ending_generator(behaviour: Behaviour, streams: OpenStreams, refuse: Refuse) -> Behaviour:
    async def guarded(request: Any, context: Context[Any, Any]) -> AsyncIterator[Any]:
        with streams.watch(find_principal()) as stream:
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    stream.is_sending = True
                    yield response
                    stream.is_sending = False
                    if stream.error is not None:
                        break
        if stream.error is not None:
            await refuse(context, stream.error)

    return guarded


def _ending_writer(behaviour: Behaviour, streams: OpenStreams, refuse: Refuse) -> Behaviour:
    async def guarded(request: Any, context: Context[Any, Any]) -> None:
        with streams.watch(find_principal()) as stream:
            await behaviour(request, context)
        if stream.error is not None:
            await refuse(context, stream.error)

    return guarded
