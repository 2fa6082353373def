"""What the service bounds, call by call: the wait for a request, the time of a call, and the calls that stay open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from identity.rpc import arrivals, firewall
from identity.rpc.open_streams import WATCH_TRUST
from identity.server import Server
from identity.v1 import audit_pb2, session_pb2, trust_pb2
from identity_client.errors import DeadlineExceeded, MalformedRequest, Overloaded
from tests.clients.probe import until
from tests.rpc.api import Api, MakeSettings, Metadata, bearer, prepare
from tests.rpc.refusals import refusal, refused

GET_KEYS = "/identity.v1.TrustService/GetKeys"
LIST_ACCOUNTS = "/identity.v1.AccountService/ListAccounts"
HEALTH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


async def close(api: Api) -> None:
    await api.channel.close()
    await api.server.stop()


@pytest.fixture
async def narrow(make_settings: MakeSettings) -> AsyncIterator[Api]:
    """A server that serves 5 trust streams, of one credential 3."""
    server = Server(make_settings(trust_streams=5, trust_streams_per_grant=3))
    api = Api(server, await server.start())
    assert server.house is not None
    await prepare(server.house)
    yield api
    await close(api)


def half_open(api: Api, method: str, metadata: Metadata = ()) -> Any:
    """A call of which the headers are sent and no more."""
    channel: Any = api.channel
    return channel.stream_stream(method)(metadata=metadata)


async def end_of(call: Any) -> Any:
    """What a stream without a message ended with, raised."""
    message = await call.read()
    assert message is grpc.aio.EOF, message
    assert await call.code() is grpc.StatusCode.OK


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server that is started after it: long enough for every call that is not held up."""
    monkeypatch.setattr(arrivals, "LONGEST_SECONDS", 1.0)
    monkeypatch.setattr(firewall, "UNARY_LIMIT_SECONDS", 1.0)


# -- requests that do not come -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [GET_KEYS, LIST_ACCOUNTS, WATCH_TRUST, HEALTH, REFLECTION])
@pytest.mark.usefixtures("short_limits")
async def test_a_call_whose_request_does_not_come_is_given_up(api: Api, method: str) -> None:
    service = await api.create_service("orders", "peer", "admin")
    caller = bearer((await api.login_service("orders", service.client_secret)).access_token)
    error = await refusal(end_of(half_open(api, method, caller)))
    assert isinstance(error, DeadlineExceeded)
    assert "send it together with the call" in str(error)


async def test_a_call_that_ends_without_a_request_is_malformed(api: Api) -> None:
    call = half_open(api, GET_KEYS)
    await call.done_writing()
    assert isinstance(await refusal(end_of(call)), MalformedRequest)


@pytest.fixture
def few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server that is started after it: for four calls without a request, which time alone does not end."""
    monkeypatch.setattr(arrivals, "MAXIMUM_WAITING", 4)
    monkeypatch.setattr(arrivals, "SHORTEST_SECONDS", 0.0)
    monkeypatch.setattr(arrivals, "LONGEST_SECONDS", 3_600.0)


@pytest.mark.usefixtures("few_places")
async def test_of_many_calls_without_a_request_some_give_way_and_others_are_served(api: Api) -> None:
    calls = [half_open(api, GET_KEYS) for _ in range(12)]
    ends = [asyncio.ensure_future(end_of(call)) for call in calls]
    done, waiting = set[Any](), set(ends)
    async with asyncio.timeout(20):
        while len(done) < 8:
            more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            done |= more
            assert (await api.trust.GetKeys(trust_pb2.GetKeysRequest())).key_set.keys
    for end in done:
        assert isinstance(await refusal(end), DeadlineExceeded)
    for call in calls:
        call.cancel()
    await asyncio.gather(*ends, return_exceptions=True)


class SlowCall:
    """A call whose request comes when it may."""

    def __init__(self) -> None:
        self.may_come = asyncio.Event()

    async def read(self) -> str:
        await self.may_come.wait()
        return "request"


@pytest.mark.usefixtures("few_places")
async def test_those_give_way_that_have_waited_longest() -> None:
    reader, call = arrivals.Arrivals(), SlowCall()
    context: Any = call
    reading = [asyncio.ensure_future(reader.first(context)) for _ in range(12)]
    await until(lambda: sum(each.done() for each in reading) == 8)
    assert all(isinstance(each.exception(), DeadlineExceeded) for each in reading[:8])
    call.may_come.set()
    assert await asyncio.gather(*reading[8:]) == ["request"] * 4


async def test_of_a_burst_of_calls_none_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MAXIMUM_WAITING", 4)
    reader, call = arrivals.Arrivals(), SlowCall()
    context: Any = call
    reading = [asyncio.ensure_future(reader.first(context)) for _ in range(20)]
    await until(lambda: reader.waiting_count == 20)
    call.may_come.set()
    assert await asyncio.gather(*reading) == ["request"] * 20
    assert reader.waiting_count == 0


# -- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_limits")
async def test_a_call_that_takes_too_long_is_given_up_whatever_its_deadline(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = asyncio.Event()

    async def stuck(*_: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    assert api.server.house is not None
    caller = await api.admin()
    monkeypatch.setattr(api.server.house.sessions, "list_page", stuck)
    error = await refusal(api.sessions.ListSessions(session_pb2.ListSessionsRequest(), metadata=caller, timeout=3_600))
    assert isinstance(error, DeadlineExceeded)
    assert ended.is_set()


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_call_is_not_begun_without_time_to_do_it(
    api: Api, monkeypatch: pytest.MonkeyPatch, is_stream: bool
) -> None:
    assert firewall.SHORTEST_SECONDS == 0.005
    monkeypatch.setattr(firewall, "SHORTEST_SECONDS", 60.0)

    async def call(seconds: float | None) -> Any:
        if not is_stream:
            return await api.trust.GetKeys(trust_pb2.GetKeysRequest(), timeout=seconds)
        health: Any = health_pb2_grpc.HealthStub(api.channel)
        return await first_of(health.Watch(health_pb2.HealthCheckRequest(), timeout=seconds))

    error = await refusal(call(30))
    assert isinstance(error, DeadlineExceeded)
    assert "set a longer one" in str(error)
    assert await call(90)
    assert await call(None)


# -- calls that stay open ------------------------------------------------------------------------------------------


async def first_of(call: Any) -> Any:
    """The first message of a stream, which stays open, or its refusal."""
    message = await call.read()
    if message is grpc.aio.EOF:
        raise AssertionError(f"the stream ended with {await call.code()}")
    return message


def watch(api: Api, caller: Metadata) -> Any:
    return api.trust.WatchTrust(trust_pb2.WatchTrustRequest(), metadata=caller)


async def open_all(calls: list[Any]) -> list[Any]:
    await asyncio.gather(*map(first_of, calls))
    return calls


def assert_to_wait(error: Exception, whose: str) -> None:
    assert isinstance(error, Overloaded)
    assert whose in str(error)
    assert error.retry_after_seconds > 0


async def test_trust_streams_are_bounded_for_each_credential_and_in_all(narrow: Api) -> None:
    orders, stock = await narrow.peer("orders"), await narrow.peer("stock")
    calls = await open_all([watch(narrow, orders) for _ in range(3)])
    assert_to_wait(await refusal(first_of(watch(narrow, orders))), "Your credential has 3 calls")
    calls += await open_all([watch(narrow, stock) for _ in range(2)])
    assert_to_wait(await refusal(first_of(watch(narrow, stock))), "The service has 5 calls")
    assert await narrow.create_user("carol")  # calls with one answer are not counted
    calls[0].cancel()
    await until(lambda: narrow.server.streams.count(WATCH_TRUST) == 4)
    await open_all([watch(narrow, stock)])


async def test_another_token_of_the_same_credential_shares_its_streams(narrow: Api) -> None:
    service = await narrow.create_service("orders", "peer")
    tokens = [(await narrow.login_service("orders", service.client_secret)).access_token for _ in range(4)]
    await open_all([watch(narrow, bearer(token)) for token in tokens[:3]])
    assert_to_wait(await refusal(first_of(watch(narrow, bearer(tokens[3])))), "Your credential has 3 calls")


async def test_a_stream_that_is_refused_by_the_guard_is_not_counted(narrow: Api) -> None:
    for _ in range(8):
        assert (await refused(first_of(watch(narrow, ())))).code() is grpc.StatusCode.UNAUTHENTICATED
    assert narrow.server.streams.count(WATCH_TRUST) == 0
    await open_all([watch(narrow, await narrow.peer())])


async def test_streams_whose_request_does_not_come_are_counted_too(narrow: Api) -> None:
    caller = await narrow.peer()
    for _ in range(3):
        half_open(narrow, WATCH_TRUST, caller)
    await until(lambda: narrow.server.streams.count(WATCH_TRUST) == 3)
    assert_to_wait(await refusal(first_of(watch(narrow, caller))), "Your credential has 3 calls")


async def test_streams_without_a_token_are_bounded_for_each_connection(api: Api) -> None:
    health: Any = health_pb2_grpc.HealthStub(api.channel)
    await open_all([health.Watch(health_pb2.HealthCheckRequest()) for _ in range(8)])
    assert_to_wait(await refusal(first_of(health.Watch(health_pb2.HealthCheckRequest()))), "Your connection has 8")
    channel: Any = api.channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    for _ in range(4):
        half_open(api, REFLECTION)
    await until(lambda: api.server.streams.count(REFLECTION) == 4)
    assert_to_wait(await refusal(first_of(stub.ServerReflectionInfo(iter(asked)))), "Your connection has 4")
    # Another connection has its own.
    async with grpc.aio.insecure_channel(api.address, [("grpc.use_local_subchannel_pool", 1)]) as other:
        elsewhere: Any = health_pb2_grpc.HealthStub(other)
        await first_of(elsewhere.Watch(health_pb2.HealthCheckRequest()))


async def test_one_reader_of_the_audit_log_leaves_room_for_others(api: Api) -> None:
    caller, request = await api.admin(), audit_pb2.WatchAuditEventsRequest()
    await open_all([api.audit.WatchAuditEvents(request, metadata=caller) for _ in range(16)])
    error = await refusal(first_of(api.audit.WatchAuditEvents(request, metadata=caller)))
    assert_to_wait(error, "Your credential has 16 calls")
    await open_all([api.audit.WatchAuditEvents(request, metadata=await api.admin())])
