"""A service of several addresses: where one does not answer, the next is asked, and stays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from identity.v1 import authentication_pb2, authentication_pb2_grpc
from identity_client.aio.endpoints import Endpoints
from identity_client.aio.environment import Connection

REQUEST = authentication_pb2.AuthenticateRequest(audience="orders")


class Replica(authentication_pb2_grpc.AuthenticationServiceServicer):
    """Answers with *code*, or, where there is none, in order."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None
        self.asked = 0

    async def Authenticate(self, request: Any, context: Any) -> authentication_pb2.AuthenticateResponse:
        self.asked += 1
        if self.code is not None:
            await context.abort(self.code)
        return authentication_pb2.AuthenticateResponse()

    async def ChangePassword(self, request: Any, context: Any) -> authentication_pb2.ChangePasswordResponse:
        raise NotImplementedError


@pytest.fixture
async def replicas() -> AsyncIterator[dict[str, Replica]]:
    """Two, by their addresses."""
    async with AsyncExitStack() as stack:
        replicas = {}
        for _ in range(2):
            server, replica = grpc.aio.server(), Replica()
            authentication_pb2_grpc.add_AuthenticationServiceServicer_to_server(replica, server)
            replicas[f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"] = replica
            await server.start()
            stack.push_async_callback(server.stop, None)
        yield replicas


@pytest.fixture
async def endpoints(replicas: dict[str, Replica]) -> AsyncIterator[Endpoints]:
    endpoints = Endpoints(Connection(",".join(replicas)))
    yield endpoints
    await endpoints.close()


SILENCE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


@pytest.mark.parametrize("code", SILENCE)
async def test_a_replica_that_stops_is_left_for_the_next_one(
    endpoints: Endpoints, replicas: dict[str, Replica], code: grpc.StatusCode
) -> None:
    first, second = replicas.values()
    first.code = code
    for _ in range(2):
        await endpoints.authenticate(REQUEST)
    assert (first.asked, second.asked) == (1, 2)


@pytest.mark.parametrize("code", SILENCE)
async def test_each_is_asked_once(endpoints: Endpoints, replicas: dict[str, Replica], code: grpc.StatusCode) -> None:
    for replica in replicas.values():
        replica.code = code
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await endpoints.authenticate(REQUEST)
    assert failed.value.code() is code
    assert [replica.asked for replica in replicas.values()] == [1, 1]


@pytest.mark.parametrize("code", sorted({*grpc.StatusCode} - {*SILENCE, grpc.StatusCode.OK}, key=str))
async def test_an_answer_is_an_answer(
    endpoints: Endpoints, replicas: dict[str, Replica], code: grpc.StatusCode
) -> None:
    first, second = replicas.values()
    first.code = code
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await endpoints.authenticate(REQUEST)
    assert failed.value.code() is code
    assert second.asked == 0
