"""The example peer in this process: its own guard, its own connection to the service, its own server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from orders.server import OrderServicer
from orders.v1 import orders_pb2 as pb
from orders.v1 import orders_pb2_grpc

from identity_client import aio
from identity_client.principal import Principal, current_principal
from identity_client.trust.source import RevocationSource
from tests.rpc.api import Api, bearer


class ListeningServicer(OrderServicer):
    """Keeps who called."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)
        self.callers: list[Principal] = []

    async def GetOrder(self, request: pb.GetOrderRequest, context: Any) -> pb.GetOrderResponse:
        self.callers.append(current_principal())
        return await super().GetOrder(request, context)


@dataclass
class Peer:
    """A running service that accepts tokens for its name and for the group `internal`."""

    name: str
    identity: aio.Identity
    address: str
    channel: grpc.aio.Channel
    servicer: ListeningServicer = field(repr=False)

    async def call(self, token: str) -> pb.Order:
        stub = orders_pb2_grpc.OrderServiceStub(self.channel)
        return (await stub.GetOrder(pb.GetOrderRequest(order_id="1"), metadata=bearer(token))).order

    async def caller(self, token: str) -> Principal:
        """Who the handler takes the holder of *token* for."""
        await self.call(token)
        return self.servicer.callers[-1]

    async def has_heard(self, version: int) -> None:
        """Wait until the peer holds the feed's *version*."""
        async with asyncio.timeout(20):
            while self.identity.trust.version < version:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def running(
    api: Api, name: str = "orders", revocations: RevocationSource | None = None, **options: Any
) -> AsyncIterator[Peer]:
    """*revocations*: where the peer asks in place of following the stream; *options* are the guard's."""
    service = await api.create_service(name, "peer")
    connection = aio.Connection(api.address, name, service.client_secret)
    async with (
        aio.Identity(connection, revocations=revocations) as identity,
        guarding(identity, name, **options) as peer,
    ):
        yield peer


@asynccontextmanager
async def guarding(identity: aio.Identity, name: str, **options: Any) -> AsyncIterator[Peer]:
    """A service behind a guard of *identity*."""
    server = grpc.aio.server(interceptors=[identity.guard(name, pb, **options)])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    async with grpc.aio.insecure_channel(address) as channel:
        servicer = ListeningServicer(channel)  # nothing is billed here
        orders_pb2_grpc.add_OrderServiceServicer_to_server(servicer, server)
        await server.start()
        yield Peer(name, identity, address, channel, servicer)
    await server.stop(None)


async def feed_version(api: Api) -> int:
    """The newest version in the database."""
    assert api.server.house is not None
    _, version, _ = await api.server.house.stores.revocations.live_entries()
    return version
