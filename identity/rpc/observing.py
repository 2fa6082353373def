"""The interceptor outside the firewall: what became of each call, and how long it took."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Protocol, TypeAlias

import grpc

from identity_client.errors import IdentityError

from .call_log import CallLog

UNREGISTERED = "unregistered"
"""Stands for every method that does not exist: invented names never reach a metric."""

# Some versions of grpc tell the code of an ended call as a number.
_NAMES: dict[Any, str] = {form: code.name for code in grpc.StatusCode for form in (code, code.value[0])}

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_End: TypeAlias = Callable[[BaseException | None, _Context], None]


class CallMeter(Protocol):
    """Who is told."""

    def called(self, method: str, code: str, seconds: float | None) -> None:
        """A call ended with *code*, a stream's without *seconds*. *method*: Service/Method."""

    def logged_in(self, credential: str, outcome: str) -> None:
        """A log-in ended; *outcome*: OK, a reason of the contract, or FAILED."""


class Observing(grpc.aio.ServerInterceptor):
    """Tells *meter* of every call, and *log* of those that end neither well nor by their caller. The firewall stands
    within, so each call ends by its status or its cancellation."""

    def __init__(self, meter: CallMeter, log: CallLog) -> None:
        self._meter = meter
        self._log = log

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        began = time.perf_counter()
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            self._meter.called(UNREGISTERED, "UNIMPLEMENTED", None)
            self._log.ended(UNREGISTERED, "UNIMPLEMENTED", "", time.perf_counter() - began)
            return None
        method = handler_call_details.method.rpartition(".")[2]
        if handler.response_streaming:
            kind = "stream_stream" if handler.request_streaming else "unary_stream"
            observed: Any = _streaming(getattr(handler, kind), self._end_of(method, began, is_timed=False))
        else:
            kind = "stream_unary" if handler.request_streaming else "unary_unary"
            observed = _unary(getattr(handler, kind), self._end_of(method, began, is_timed=True))
        wrapped: _Handler = handler._replace(**{kind: observed})
        return wrapped

    def _end_of(self, method: str, began: float, *, is_timed: bool) -> _End:
        def ended(error: BaseException | None, context: _Context) -> None:
            code, seconds = "OK" if error is None else _code(error, context), time.perf_counter() - began
            self._meter.called(method, code, seconds if is_timed else None)
            if code not in ("OK", "CANCELLED"):
                self._log.ended(method, code, str(context.details()), seconds)

        return ended


def _unary(behaviour: Callable[[Any, _Context], Awaitable[Any]], ended: _End) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: _Context) -> Any:
        try:
            response = await behaviour(request, context)
        except BaseException as error:
            ended(error, context)
            raise
        ended(None, context)
        return response

    return call


def _streaming(
    behaviour: Callable[[Any, _Context], AsyncIterator[Any]], ended: _End
) -> Callable[..., AsyncIterator[Any]]:
    async def call(request: Any, context: _Context) -> AsyncIterator[Any]:
        try:
            async for response in behaviour(request, context):
                yield response
        except BaseException as error:
            ended(error, context)
            raise
        ended(None, context)

    return call


def _code(error: BaseException, context: _Context) -> str:
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "CANCELLED"
    return _NAMES.get(context.code(), "UNKNOWN")


@contextlib.contextmanager
def counted_login(meter: CallMeter, credential: str) -> Iterator[None]:
    """Tells how the log-in in its body ends."""
    outcome = "FAILED"
    try:
        yield
        outcome = "OK"
    except IdentityError as error:
        outcome = error.reason
        raise
    finally:
        meter.logged_in(credential, outcome)
