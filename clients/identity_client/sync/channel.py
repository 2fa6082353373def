"""The threaded twin of `identity_client.aio.channel`: channels of grpc whose calls carry a token and renew it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import grpc

from identity_client import status
from identity_client.aio.channel import is_worth_a_repeat
from identity_client.aio.token_source import AccessToken
from identity_client.errors import IdentityError


class Source(Protocol):
    """The token of one call."""

    def get(self) -> AccessToken:
        """Raises IdentityError."""

    def discard(self, token: AccessToken) -> None:
        """It was refused."""


FindSource = Callable[[], Source]
"""Asked in the calling thread. Raises NoPrincipal (on behalf of nobody)."""


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: tuple[tuple[str, str | bytes], ...]
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: Any


class Interceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """For a channel to the service *audience*; see aio.channel for what is repeated."""

    def __init__(self, find_source: FindSource, audience: str) -> None:
        self._find_source = find_source
        self._audience = audience

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        source = self._find_source()
        token = _get(source)
        call = continuation(_with_token(client_call_details, token), request)
        if call.code() is not grpc.StatusCode.UNAUTHENTICATED:
            return call
        if not is_worth_a_repeat(status.from_trailers(call.trailing_metadata()), self._audience):
            return call
        source.discard(token)
        return continuation(_with_token(client_call_details, _get(source)), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(_with_token(client_call_details, _get(self._find_source())), request)

    def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return continuation(_with_token(client_call_details, _get(self._find_source())), request_iterator)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return continuation(_with_token(client_call_details, _get(self._find_source())), request_iterator)


def _get(source: Source) -> AccessToken:
    try:
        return source.get()
    except IdentityError as error:
        raise status.to_rpc_error(error) from error


def _with_token(details: Any, token: AccessToken) -> Any:
    metadata = [(key, value) for key, value in details.metadata or () if key != "authorization"]
    return _Details(
        details.method,
        details.timeout,
        (*metadata, *token.metadata),
        details.credentials,
        details.wait_for_ready,
        details.compression,
    )
