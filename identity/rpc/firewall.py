"""The outermost interceptor: every call gets a request id and a time limit, and nothing unplanned leaves the house.

A planned error goes out with its status, reason and sentence. Anything else becomes INTERNAL with constant text and an
error id that finds the cause in the log. Undecodable requests become INVALID_ARGUMENT.
"""

from __future__ import annotations

import inspect
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from identity.logs import request_id
from identity_client import status
from identity_client.errors import DeadlineExceeded, IdentityError, Internal
from identity_client.sync.handlers import behaviour_of

from .arrivals import Arrivals, firm
from .open_streams import OpenStreams
from .refused_calls import RefusedCalls
from .time_limits import TimeLimit

_log = logging.getLogger(__name__)

UNARY_LIMIT_SECONDS = 30.0
"""The longest that a unary call may run, whatever deadline its caller set."""

SHORTEST_SECONDS = 0.005
"""With less time left before its deadline a call is not begun."""

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Firewall(grpc.aio.ServerInterceptor):
    """Wraps every handler, the guard's refusing ones included. *refused_calls* is told what becomes of the calls,
    *streams* counts those that stay open."""

    def __init__(self, refused_calls: RefusedCalls, streams: OpenStreams) -> None:
        self._refused_calls = refused_calls
        self._streams = streams
        self._arrivals = Arrivals()
        self._limit = TimeLimit(UNARY_LIMIT_SECONDS)
        self._wrapped: dict[str, tuple[_Handler, _Handler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        request_id.set(secrets.token_hex(8))
        try:
            handler = await continuation(handler_call_details)
        except Exception:
            return _refusing(_unplanned(handler_call_details.method))
        return None if handler is None else self._kept(handler, handler_call_details.method)

    def _kept(self, handler: _Handler, method: str) -> _Handler:
        """The last one again, where the guard admits as it mostly does; methods that do not exist have no handler."""
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._wrap(handler, method))
        return known[1]

    def _wrap(self, handler: _Handler, method: str) -> _Handler:
        run = self._streaming(handler, method) if handler.response_streaming else self._unary(handler, method)
        build = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return build(run, firm(handler.request_deserializer), handler.response_serializer)

    def _unary(self, handler: _Handler, method: str) -> Callable[..., Awaitable[Any]]:
        behaviour = behaviour_of(handler)

        async def call(requests: Any, context: _Context) -> Any:
            try:
                _check_time(context)
                request = await self._request(handler, requests, context)
                return await self._limit.run(behaviour(request, context))
            except TimeoutError:
                await _abort(context, DeadlineExceeded())
            except Exception as error:
                await self._end(method, error, context)

        return call

    def _streaming(self, handler: _Handler, method: str) -> Callable[..., AsyncIterator[Any]]:
        behaviour = behaviour_of(handler)

        async def call(requests: Any, context: _Context) -> AsyncIterator[Any]:
            try:
                _check_time(context)
                with self._streams.counted(method, context):
                    responses = behaviour(await self._request(handler, requests, context), context)
                    if inspect.isawaitable(responses):
                        await responses  # it writes its responses itself
                        return
                    async for response in responses:
                        yield response
            except Exception as error:
                await self._end(method, error, context)

        return call

    async def _request(self, handler: _Handler, requests: Any, context: _Context) -> Any:
        """What came with the call, in the shape that *handler* takes. Raises DeadlineExceeded, MalformedRequest."""
        if handler.request_streaming:
            return self._arrivals.all(context, requests)
        return await self._arrivals.first(context)

    async def _end(self, method: str, error: Exception, context: _Context) -> None:
        """Answer what a handler raised."""
        if isinstance(error, grpc.aio.AbortError):
            self._refused_calls.by_guard(method, error.__cause__, context)
            raise error
        if not isinstance(error, IdentityError):
            error = _unplanned(method)
        self._refused_calls.by_handler(method, error, context)
        await _abort(context, error)


def _check_time(context: _Context) -> None:
    """Work that its caller will not wait for is not begun. Raises DeadlineExceeded."""
    remaining = context.time_remaining()
    if remaining is not None and remaining < SHORTEST_SECONDS:
        raise DeadlineExceeded("The call's deadline leaves no time to do it: set a longer one.")


def _unplanned(method: str) -> Internal:
    error_id = secrets.token_hex(8)
    _log.exception("unplanned error %s in %s", error_id, method)
    return Internal(f"Something went wrong inside the service; the log has it as {error_id}.", error_id)


def _refusing(error: IdentityError) -> _Handler:
    async def refuse(_: Any, context: _Context) -> None:
        await _abort(context, error)

    return grpc.stream_unary_rpc_method_handler(refuse)


async def _abort(context: _Context, error: IdentityError) -> None:
    context.set_trailing_metadata(((status.STATUS_DETAILS_KEY, status.pack(error)),))
    await context.abort(grpc.StatusCode[error.status], status.message_of(error))
