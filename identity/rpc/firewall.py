"""The outermost interceptor: every call gets a request id and a time limit, and nothing unplanned leaves the house.

A planned error goes out with its status, reason and sentence. Anything else becomes INTERNAL with constant text and an
error id that finds the cause in the log. Undecodable requests become INVALID_ARGUMENT: grpc itself would send the text
of the exception to the caller.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from identity_client import status
from identity_client.errors import IdentityError, Internal, MalformedRequest

from .context import request_id
from .refused_calls import RefusedCalls

_log = logging.getLogger(__name__)

UNARY_LIMIT_SECONDS = 30.0
"""The longest that a unary call may run, whatever deadline its caller set."""

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Firewall(grpc.aio.ServerInterceptor):
    """Wraps every handler, the guard's refusing ones included. *refused_calls* is told what becomes of the calls."""

    def __init__(self, refused_calls: RefusedCalls) -> None:
        self._refused_calls = refused_calls

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
        return None if handler is None else _wrap(handler, handler_call_details.method, self._refused_calls)


def _wrap(handler: Any, method: str, refused_calls: RefusedCalls) -> _Handler:
    if handler.response_streaming and not handler.request_streaming:
        return grpc.unary_stream_rpc_method_handler(
            _streaming(handler.unary_stream, method, refused_calls),
            _firm(handler.request_deserializer),
            handler.response_serializer,
        )
    if not handler.response_streaming and not handler.request_streaming:
        return grpc.unary_unary_rpc_method_handler(
            _unary(handler.unary_unary, method, refused_calls),
            _firm(handler.request_deserializer),
            handler.response_serializer,
        )
    if not handler.response_streaming:  # the guard's: refusals, and callers whose token is bound to a certificate
        return grpc.stream_unary_rpc_method_handler(
            _unary(handler.stream_unary, method, refused_calls),
            _firm(handler.request_deserializer),
            handler.response_serializer,
        )
    return grpc.stream_stream_rpc_method_handler(  # reflection
        _streaming(handler.stream_stream, method, refused_calls),
        _firm(handler.request_deserializer),
        handler.response_serializer,
    )


def _unary(
    behaviour: Callable[[Any, _Context], Awaitable[Any]], method: str, refused_calls: RefusedCalls
) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: _Context) -> Any:
        try:
            async with asyncio.timeout(UNARY_LIMIT_SECONDS):
                return await behaviour(_sound(request), context)
        except grpc.aio.AbortError:
            refused_calls.by_guard(method, context)
            raise
        except IdentityError as error:
            refused_calls.by_handler(method, error, context)
            await _abort(context, error)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "The call took too long and was given up.")
        except Exception:
            await _abort(context, _unplanned(method))

    return call


def _streaming(
    behaviour: Callable[[Any, _Context], Any], method: str, refused_calls: RefusedCalls
) -> Callable[..., AsyncIterator[Any]]:
    async def call(request: Any, context: _Context) -> AsyncIterator[Any]:
        try:
            responses = behaviour(_sound(request), context)
            if inspect.isawaitable(responses):
                await responses  # it writes its responses itself
                return
            async for response in responses:
                yield response
        except grpc.aio.AbortError:
            refused_calls.by_guard(method, context)
            raise
        except IdentityError as error:
            refused_calls.by_handler(method, error, context)
            await _abort(context, error)
        except Exception:
            await _abort(context, _unplanned(method))

    return call


def _sound(request: Any) -> Any:
    """The request or requests. Raises MalformedRequest."""
    if isinstance(request, MalformedRequest):
        raise request
    return _all_sound(request) if isinstance(request, AsyncIterator) else request


async def _all_sound(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _sound(request)


def _firm(deserialise: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if deserialise is None:
        return None

    def parse(raw: bytes) -> Any:
        try:
            return deserialise(raw)
        except Exception:  # protobuf raises more than one class; the bytes are at fault in every case
            return MalformedRequest()

    return parse


def _unplanned(method: str) -> Internal:
    error_id = secrets.token_hex(8)
    _log.exception("unplanned error %s in %s", error_id, method)
    return Internal(f"Something went wrong inside the service; the log has it as {error_id}.", error_id)


def _refusing(error: IdentityError) -> _Handler:
    async def refuse(_: Any, context: _Context) -> None:
        await _abort(context, error)

    return grpc.unary_unary_rpc_method_handler(refuse)


async def _abort(context: _Context, error: IdentityError) -> None:
    context.set_trailing_metadata(((status.STATUS_DETAILS_KEY, status.pack(error)),))
    await context.abort(grpc.StatusCode[error.status], status.message_of(error))
