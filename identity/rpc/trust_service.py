"""TrustService over the hub and the revocation store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc

from identity.domain.ports import RevocationStore
from identity.feed.hub import Hub
from identity.feed.turns import Peer
from identity.v1 import trust_pb2
from identity_client.errors import InvalidRequest
from identity_client.principal import current_principal
from identity_client.trust import wire

from . import convert

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_SERVICE = "identity.v1.TrustService"


class TrustServicer:
    """Hands out keys and revocations."""

    def __init__(self, hub: Hub, revocations: RevocationStore) -> None:
        self._hub = hub
        self._revocations = revocations

    async def GetKeys(self, _: trust_pb2.GetKeysRequest, __: _Context) -> trust_pb2.GetKeysResponse:
        state = self._hub.state
        return trust_pb2.GetKeysResponse(key_set=wire.key_set_message(state.issuer, state.keys))

    async def WatchTrust(self, request: trust_pb2.WatchTrustRequest, context: _Context) -> AsyncIterator[bytes]:
        if request.version < 0 or len(request.epoch) > 64:
            raise InvalidRequest("give epoch and version as the last heartbeat said them, or neither", "version")
        subscription = self._hub.streams.subscribe(
            request.epoch, request.version, Peer(current_principal().grant_id, context.peer())
        )
        try:
            while True:
                yield await subscription.next()
        finally:
            self._hub.streams.unsubscribe(subscription)

    async def CheckRevocation(
        self, request: trust_pb2.CheckRevocationRequest, _: _Context
    ) -> trust_pb2.CheckRevocationResponse:
        tokens = convert.token_identities(request)
        return convert.standings(await self._revocations.standings(tokens))


def add_to_server(servicer: TrustServicer, server: grpc.aio.Server) -> None:
    """Register by hand: WatchTrust sends bytes that were serialised once for all streams."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "GetKeys": grpc.unary_unary_rpc_method_handler(
            servicer.GetKeys,
            trust_pb2.GetKeysRequest.FromString,
            trust_pb2.GetKeysResponse.SerializeToString,
        ),
        "WatchTrust": grpc.unary_stream_rpc_method_handler(
            servicer.WatchTrust, trust_pb2.WatchTrustRequest.FromString, None
        ),
        "CheckRevocation": grpc.unary_unary_rpc_method_handler(
            servicer.CheckRevocation,
            trust_pb2.CheckRevocationRequest.FromString,
            trust_pb2.CheckRevocationResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
