"""Where the identity service is reached: one address at a time, the next one when it fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from identity.v1 import authentication_pb2 as pb
from identity.v1 import token_pb2
from identity.v1.authentication_pb2_grpc import AuthenticationServiceStub
from identity.v1.token_pb2_grpc import TokenServiceStub
from identity.v1.trust_pb2_grpc import TrustServiceStub
from identity_client.aio.environment import Connection
from identity_client.aio.reloading import ReloadingChannel
from identity_client.tls_files import TlsFiles

if TYPE_CHECKING:  # the asyncio stubs exist as types only
    from identity.v1.authentication_pb2_grpc import AuthenticationServiceAsyncStub
    from identity.v1.token_pb2_grpc import TokenServiceAsyncStub
    from identity.v1.trust_pb2_grpc import TrustServiceAsyncStub

T = TypeVar("T")

CALL_SECONDS = 5.0

CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 500),  # the stream has its own back-off; the default would wait minutes
    ("grpc.enable_http_proxy", 0),  # a proxy out of the environment would read plain text meant for loopback
)
# A server that stops cancels the calls that reach it in that very moment. What we cancel raises CancelledError instead.
_NO_ANSWER = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})


@dataclass(frozen=True, eq=False)
class Endpoint:
    """One address and its stubs."""

    address: str
    channel: grpc.aio.Channel
    authentication: AuthenticationServiceAsyncStub = field(init=False)
    tokens: TokenServiceAsyncStub = field(init=False)
    trust: TrustServiceAsyncStub = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "authentication", AuthenticationServiceStub(self.channel))
        object.__setattr__(self, "tokens", TokenServiceStub(self.channel))
        object.__setattr__(self, "trust", TrustServiceStub(self.channel))

    @property
    def is_connected(self) -> bool:
        """Whether a new call would go over the connection there is; it would not once the server has said that the
        connection is too old."""
        return self.channel.get_state() is grpc.ChannelConnectivity.READY


class Endpoints:
    """The addresses of one identity service, in the order of the setting. All use the current one until it fails.

    Make it inside the event loop that is to use it.
    """

    def __init__(self, connection: Connection) -> None:
        self._all = [Endpoint(address, open_channel(address, connection.tls)) for address in connection.addresses]
        self._at = 0

    def __len__(self) -> int:
        return len(self._all)

    @property
    def current(self) -> Endpoint:
        """Where to call now."""
        return self._all[self._at]

    def leave(self, endpoint: Endpoint) -> None:
        """Go on to the next one, unless that was done already."""
        if endpoint is self.current:
            self._at = (self._at + 1) % len(self._all)

    async def call(self, rpc: Callable[[Endpoint], Awaitable[T]]) -> T:
        """The answer to *rpc*, a call that may be repeated; each endpoint is asked once, until one answers.

        Raises grpc.aio.AioRpcError: any answer but silence, or the last silence.
        """
        for left in reversed(range(len(self._all))):
            endpoint = self.current
            try:
                return await rpc(endpoint)
            except grpc.aio.AioRpcError as error:
                if error.code() in _NO_ANSWER:
                    self.leave(endpoint)
                if error.code() not in _NO_ANSWER or not left:
                    raise
        raise AssertionError("there is an endpoint at least")

    async def authenticate(self, request: pb.AuthenticateRequest) -> pb.AuthenticateResponse:
        """Log in. Raises AioRpcError."""
        return await self.call(lambda at: at.authentication.Authenticate(request, timeout=CALL_SECONDS))

    async def refresh(self, request: token_pb2.RefreshRequest) -> token_pb2.RefreshResponse:
        """Refresh. Raises AioRpcError."""
        return await self.call(lambda at: at.tokens.Refresh(request, timeout=CALL_SECONDS))

    async def exchange(
        self, request: token_pb2.ExchangeRequest, metadata: tuple[tuple[str, str], ...]
    ) -> token_pb2.ExchangeResponse:
        """Exchange a token. Raises AioRpcError."""
        return await self.call(lambda at: at.tokens.Exchange(request, metadata=metadata, timeout=CALL_SECONDS))

    async def close(self) -> None:
        """Close every connection."""
        for endpoint in self._all:
            await endpoint.channel.close()


def open_channel(
    address: str,
    tls: TlsFiles | None,
    chain: Sequence[grpc.aio.ClientInterceptor] = (),
    options: Sequence[tuple[str, Any]] = CHANNEL_OPTIONS,
) -> grpc.aio.Channel:
    """A channel to *address*: plain text without *tls*, else TLS by files that are read again when they change."""
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options, interceptors=chain)
    return ReloadingChannel(
        tls, lambda made: grpc.aio.secure_channel(address, made, options=options, interceptors=chain)
    )
