"""Channels that authenticate themselves: each call carries a token, and callers never think of it.

When the guard of the called service itself refuses a unary call because its token is outdated or has expired, nothing
was done yet: the token is renewed, and the call repeated, once. A refusal that a handler merely passes on from a
service behind it repeats nothing. Streams are not repeated: their messages may have been seen.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from identity_client import status
from identity_client.aio.token_source import AccessToken, TokenSource
from identity_client.errors import IdentityError, TokenExpired, TokenOutdated

Details = grpc.aio.ClientCallDetails
Continuation = Callable[[Details, Any], Awaitable[Any]]


FindSource = Callable[[], TokenSource]
"""Where the token of a call comes from, asked when it is made. Raises NoPrincipal (on behalf of nobody)."""


def interceptors(find_source: FindSource, audience: str) -> Sequence[grpc.aio.ClientInterceptor]:
    """For a channel to the service *audience*. One object a shape: grpc.aio files an object under its first base only,
    and one of all four would leave streams without a token."""
    shared = (find_source, audience)
    return (_UnaryUnary(*shared), _UnaryStream(*shared), _StreamUnary(*shared), _StreamStream(*shared))


def is_worth_a_repeat(error: IdentityError | None, audience: str) -> bool:
    """Whether the guard of *audience* refused, before the method ran, what a new token mends."""
    return (
        isinstance(error, TokenExpired | TokenOutdated)
        and error.refused_by == "guard"
        and error.refused_audience == audience
    )


class _Authenticating:
    def __init__(self, find_source: FindSource, audience: str) -> None:
        self._find_source = find_source
        self._audience = audience

    async def _details(self, details: Details) -> Details:
        return with_token(details, await _get(self._find_source()))


class _UnaryUnary(_Authenticating, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Continuation, client_call_details: Details, request: Any
    ) -> Any:
        source = self._find_source()
        token = await _get(source)
        call = await continuation(with_token(client_call_details, token), request)
        if await call.code() is not grpc.StatusCode.UNAUTHENTICATED:
            return call
        if not is_worth_a_repeat(status.from_trailers(await call.trailing_metadata()), self._audience):
            return call
        source.discard(token)
        return await continuation(with_token(client_call_details, await _get(source)), request)


class _UnaryStream(_Authenticating, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Continuation, client_call_details: Details, request: Any
    ) -> Any:
        return await continuation(await self._details(client_call_details), request)


class _StreamUnary(_Authenticating, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self,
        continuation: Continuation,
        client_call_details: Details,
        request_iterator: Any,
    ) -> Any:
        return await continuation(await self._details(client_call_details), request_iterator)


class _StreamStream(_Authenticating, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self,
        continuation: Continuation,
        client_call_details: Details,
        request_iterator: Any,
    ) -> Any:
        return await continuation(await self._details(client_call_details), request_iterator)


async def _get(source: TokenSource) -> AccessToken:
    try:
        return await source.get()
    except IdentityError as error:
        raise status.to_rpc_error(error) from error


def with_token(details: Details, token: AccessToken) -> Details:
    """*details* with the token; an authorization entry of the caller's own would make two, and is replaced."""
    metadata = [(key, value) for key, value in details.metadata or () if key != "authorization"]
    return Details(
        details.method,
        details.timeout,
        grpc.aio.Metadata(*metadata, *token.metadata),
        details.credentials,
        details.wait_for_ready,
    )
