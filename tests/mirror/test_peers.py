"""Peers that ask Redis about each call: the refusals of the stream, and on_stale to the letter without an answer."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from orders.v1 import orders_pb2 as pb
from orders.v1 import orders_pb2_grpc

import identity_client
from identity.domain.values import Seconds
from identity.storage.sql.common import Moment, publish
from identity.v1 import account_pb2, revocation_pb2, session_pb2
from identity_client import Hooks, aio, status
from identity_client.access.judge import Look
from identity_client.errors import TokenRevoked, TrustStale
from identity_client.redis import RedisRevocations
from identity_client.trust.entries import EntryKind
from tests.clients.shapes import until
from tests.mirror.conftest import Mirrored
from tests.peers.orders import Peer, running
from tests.redis_server import RedisServer
from tests.rpc.api import Api, bearer
from tests.rpc.refusals import refusal
from tests.rpc.test_revoke_and_introspect import payload_of

README = (Path(__file__).parents[2] / "clients" / "README.md").read_text()


@pytest.fixture
async def orders(mirrored: Mirrored) -> AsyncIterator[Peer]:
    async with running(mirrored.api, revocations=mirrored.revocations()) as peer:
        yield peer


async def log_in(api: Api, username: str = "carol") -> str:
    """An access token of a new clerk, who may also read."""
    await api.create_role("reader", "orders.read", "orders.list")
    await api.create_user(username, "clerk", "reader")
    return (await api.login(username)).access_token


async def revoke_token(api: Api, token: str) -> None:
    await api.revocations.RevokeToken(revocation_pb2.RevokeTokenRequest(token=token), metadata=await api.admin())


async def end_session(api: Api, token: str) -> None:
    own = bearer((await api.login("carol", audience="identity")).access_token)
    request = session_pb2.EndSessionRequest(session_id=payload_of(token)["sid"])
    await api.sessions.EndSession(request, metadata=own)


async def disable(api: Api, _: str) -> None:
    await api.accounts.DisableAccount(account_pb2.DisableAccountRequest(username="carol"), metadata=await api.admin())


async def narrow_role(api: Api, _: str) -> None:
    await api.set_scopes("reader", "orders.list")


async def revoke_key(api: Api, token: str) -> None:
    await publish_entry(api, EntryKind.KEY, payload_of(token, 0)["kid"])


async def publish_entry(api: Api, kind: EntryKind, name: str, minimum: int = 0) -> None:
    """Append to the feed what no RPC can yet, and ring."""
    assert api.server.house is not None
    now = time.time()
    await api.server.house.stores.revocations._access.write(
        lambda connection, _: publish(connection, kind, name, Seconds(int(now) + 600), Moment(now), minimum)
    )


TakeBack = Callable[[Api, str], Awaitable[None]]


@pytest.mark.requirement("R27")
@pytest.mark.requirement("R2")
@pytest.mark.parametrize(
    ("take_back", "reason"),
    [
        (revoke_token, "TOKEN_REVOKED"),
        (end_session, "TOKEN_REVOKED"),
        (disable, "TOKEN_OUTDATED"),
        (narrow_role, "TOKEN_OUTDATED"),
        (revoke_key, "TOKEN_REVOKED"),
    ],
)
async def test_what_is_taken_back_is_refused(
    mirrored: Mirrored, orders: Peer, take_back: TakeBack, reason: str
) -> None:
    token = await log_in(mirrored.api)
    assert (await orders.call(token)).item == "tea"
    await take_back(mirrored.api, token)
    start = time.monotonic()
    await mirrored.has_caught_up()
    error = await refusal(orders.call(token))
    print(f"refused {(time.monotonic() - start) * 1000:.1f} ms after the acknowledgement")
    assert error.reason == reason
    assert len(orders.servicer.callers) == 1


async def test_no_stream_is_followed(mirrored: Mirrored, orders: Peer) -> None:
    assert mirrored.api.server.house is not None
    assert not mirrored.api.server.house.hub.streams._subscriptions
    assert orders.identity.is_ready
    assert not orders.identity.trust.is_ready  # it holds the keys alone


async def test_a_forged_token_is_refused_without_asking(mirrored: Mirrored, orders: Peer) -> None:
    token = await log_in(mirrored.api)
    forged = token[:-8] + "AAAAAAAA"
    assert (await refusal(orders.call(forged))).reason == "BAD_SIGNATURE"


@pytest.mark.parametrize("kind", ["session token", "API key"])
async def test_an_opaque_text_that_the_peer_remembers_is_judged_by_redis_too(
    mirrored: Mirrored, orders: Peer, kind: str
) -> None:
    api = mirrored.api
    await api.create_user("carol", "clerk")
    if kind == "session token":
        opened = await api.open_session("carol", "orders")
        token, grant_id = opened.session_token, opened.session_id
    else:
        key = await api.create_api_key("carol", "orders")
        token, grant_id = key.api_key, key.credential.credential_id
    await orders.call(token)
    for roles, is_allowed in ((["auditor"], False), (["clerk"], True)):
        request = account_pb2.SetRolesRequest(username="carol", roles=roles)
        await api.accounts.SetRoles(request, metadata=await api.admin())
        await mirrored.has_caught_up()
        if is_allowed:
            assert (await orders.caller(token)).roles == ("clerk",)
        else:
            assert (await refusal(orders.call(token))).reason == "PERMISSION_MISSING"
    revocation = revocation_pb2.RevokeGrantRequest(grant_id=grant_id)
    await api.revocations.RevokeGrant(revocation, metadata=await api.admin())
    await mirrored.has_caught_up()
    assert isinstance(await refusal(orders.call(token)), TokenRevoked)


async def test_a_running_call_ends_when_its_token_is_revoked(mirrored: Mirrored, orders: Peer) -> None:
    token = await log_in(mirrored.api)
    watching = orders_pb2_grpc.OrderServiceStub(orders.channel).WatchOrders(
        pb.WatchOrdersRequest(), metadata=bearer(token)
    )
    for _ in range(3):
        await watching.read()
    await revoke_token(mirrored.api, token)
    async with asyncio.timeout(30):
        assert isinstance(await refusal(watching.read()), TokenRevoked)


def threaded_orders() -> grpc.GenericRpcHandler:
    def get_order(request: pb.GetOrderRequest, _: object) -> pb.GetOrderResponse:
        return pb.GetOrderResponse(order=pb.Order(order_id=request.order_id, item="tea"))

    handler = grpc.unary_unary_rpc_method_handler(
        get_order,
        request_deserializer=pb.GetOrderRequest.FromString,
        response_serializer=pb.GetOrderResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler("orders.v1.OrderService", {"GetOrder": handler})


async def test_the_threaded_twin_asks_as_well(mirrored: Mirrored) -> None:
    api = mirrored.api
    service = await api.create_service("orders", "peer")
    identity = identity_client.Identity(
        aio.Connection(api.address, "orders", service.client_secret), revocations=mirrored.revocations()
    )
    await asyncio.to_thread(identity.__enter__)
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[identity.guard("orders", pb)])
    try:
        server.add_generic_rpc_handlers((threaded_orders(),))
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        token = await log_in(api)
        async with grpc.aio.insecure_channel(address) as channel:
            stub = orders_pb2_grpc.OrderServiceStub(channel)
            request, metadata = pb.GetOrderRequest(order_id="1"), bearer(token)
            assert (await stub.GetOrder(request, metadata=metadata)).order.item == "tea"
            await revoke_token(api, token)
            await mirrored.has_caught_up()
            assert isinstance(await refusal(stub.GetOrder(request, metadata=metadata)), TokenRevoked)
    finally:
        server.stop(None).wait()
        await asyncio.to_thread(identity.__exit__, None, None, None)


# -- Redis in trouble ----------------------------------------------------------------------------------------------


async def outcome(call: Awaitable[object]) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return status.from_rpc_error(error).reason
    return "admitted"


@pytest.mark.requirement("R27")
async def test_a_flushed_redis_knows_nothing_until_it_is_built_anew(
    fragile: Mirrored, redis_server: RedisServer
) -> None:
    api = fragile.api
    token = await log_in(api)
    await api.create_user("dave", "clerk")
    good = (await api.login("dave")).access_token
    async with running(api, revocations=fragile.revocations()) as orders:
        await revoke_token(api, token)
        await fragile.has_caught_up()
        seen = set()
        for _ in range(3):
            redis_server.client.flushall()
            start = time.monotonic()
            async with asyncio.timeout(5):
                while await outcome(orders.call(good)) != "admitted":
                    seen.add(await outcome(orders.call(token)))
            seen.add(await outcome(orders.call(token)))
            print(f"flushed and built anew in {(time.monotonic() - start) * 1000:.0f} ms")
        assert "TOKEN_REVOKED" in seen
        assert seen <= {"TOKEN_REVOKED", "TRUST_STALE"}


class Counting(Hooks):
    accepted = 0

    def on_accepted_stale(self, method: str) -> None:
        self.accepted += 1


@pytest.mark.requirement("R9")
@pytest.mark.parametrize("harm", [RedisServer.kill, RedisServer.pause])
@pytest.mark.parametrize("on_stale", ["reject", "confirm", "accept"])
async def test_without_an_answer_on_stale_is_followed_and_the_service_goes_on(
    fragile: Mirrored, redis_server: RedisServer, harm: Callable[[RedisServer], None], on_stale: str
) -> None:
    api, hooks = fragile.api, Counting()
    token = await log_in(api)
    source = fragile.revocations()
    async with running(api, revocations=source, on_stale=on_stale, hooks=hooks) as orders:
        await orders.call(token)
        harm(redis_server)
        try:
            expected = "TRUST_STALE" if on_stale == "reject" else "admitted"
            for _ in range(5):
                start = time.monotonic()
                assert await outcome(orders.call(token)) == expected
                print(f"{on_stale}: answered within {(time.monotonic() - start) * 1000:.0f} ms")
            assert hooks.accepted == (5 if on_stale == "accept" else 0)
            await api.login("carol")
            await revoke_token(api, token)
            if on_stale == "confirm":
                assert await outcome(orders.call(token)) == "TOKEN_REVOKED"
        finally:
            if harm is RedisServer.pause:
                redis_server.resume()
            else:
                redis_server.start()
        await fragile.has_caught_up()
        await until(lambda: orders.identity.lookups is not None and orders.identity.lookups.staleness() < 30)
        async with asyncio.timeout(10):
            while (found := await outcome(orders.call(token))) == "TRUST_STALE":
                await asyncio.sleep(0.01)
            while on_stale == "accept" and found == "admitted":  # until the breaker has found that it answers
                found = await outcome(orders.call(token))
        assert found == "TOKEN_REVOKED"


async def test_a_user_of_redis_that_may_only_read_is_enough(fragile: Mirrored, redis_server: RedisServer) -> None:
    commands = re.search(r"may only read `identity:\*`, with ([A-Z, and]+), is enough", README)
    assert commands
    allowed = [f"+{name.lower()}" for name in re.findall(r"[A-Z]+", commands[1])]
    redis_server.client.execute_command("ACL", "SETUSER", "peer", "on", ">secret", "~identity:*", *allowed)
    source = RedisRevocations(f"unix://peer:secret@{redis_server.socket}")
    token = await log_in(fragile.api)
    async with running(fragile.api, revocations=source) as orders:
        assert (await orders.call(token)).item == "tea"
        await revoke_token(fragile.api, token)
        await fragile.has_caught_up()
        assert isinstance(await refusal(orders.call(token)), TokenRevoked)


async def test_a_peer_that_starts_without_redis_authorises_nobody(fragile: Mirrored, redis_server: RedisServer) -> None:
    service = await fragile.api.create_service("orders", "peer")
    connection = aio.Connection(fragile.api.address, "orders", service.client_secret)
    token = await log_in(fragile.api)
    redis_server.kill()
    try:
        identity = aio.Identity(connection, revocations=fragile.revocations(), start_timeout_seconds=1)
        with pytest.raises(aio.StartError, match=r"Redis (gave no|did not) answer"):
            async with identity:
                pass
        assert not identity.is_ready
        guard = identity.guard("orders", pb, on_stale="accept")
        step = guard._judge.judge("/orders.v1.OrderService/GetOrder", bearer(token))
        assert isinstance(step, Look)
        assert identity.lookups is not None
        with pytest.raises(TrustStale):
            step.decide(await identity.lookups.look(step.claims))
    finally:
        redis_server.start()


@pytest.mark.requirement("R27")
@pytest.mark.parametrize("twin", [aio.Identity, identity_client.Identity])
async def test_the_environment_names_redis(
    mirrored: Mirrored, tmp_path: Path, twin: type[aio.Identity] | type[identity_client.Identity]
) -> None:
    service = await mirrored.api.create_service("orders", "peer")
    secret_file = tmp_path / "secret"
    secret_file.write_text(service.client_secret)
    environ = {
        "IDENTITY_ADDRESS": mirrored.api.address,
        "IDENTITY_CLIENT_ID": "orders",
        "IDENTITY_CLIENT_SECRET_FILE": str(secret_file),
        "IDENTITY_REDIS_URL": mirrored.url,
        "IDENTITY_REDIS_PREFIX": mirrored.prefix,
    }
    identity = twin.from_env(environ)
    if isinstance(identity, aio.Identity):
        async with identity:
            assert identity.lookups is not None and identity.is_ready
    else:
        await asyncio.to_thread(identity.__enter__)
        assert identity.is_ready and not identity.trust.is_ready
        await asyncio.to_thread(identity.__exit__, None, None, None)
    with pytest.raises(aio.ConfigurationError) as refused:
        twin.from_env({"IDENTITY_REDIS_URL": "http://:secret@redis"})
    assert [problem.split()[0] for problem in refused.value.problems][-1] == "IDENTITY_REDIS_URL,"
    assert len(refused.value.problems) == 4
    assert "secret@" not in str(refused.value)
