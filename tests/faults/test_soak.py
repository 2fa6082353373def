"""Log in, renew, log out, watch, again and again: whatever a server takes for them it gives back.

The invariant: after any number of rounds, once their clients have left and what they did has expired, the server holds
no task, no descriptor and no stream more than after the first ones, and its memory has grown by less than the bounds
below. An ordinary run makes hundreds of rounds, `make faults` thousands.
"""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from identity.storage.sealing import MasterKey
from identity.v1 import authentication_pb2, session_pb2, trust_pb2, trust_pb2_grpc
from tests.databases import KINDS, is_postgres
from tests.faults.harness.dialogue import Dialogue
from tests.faults.harness.rounds import times
from tests.rpc.api import Api, Metadata, bearer

WARM_UP = 300
CYCLES = times(300, 2_400)
CLIENTS = 8
EXPIRY_SECONDS = 7_200
"""By then every access token has expired, and so has every revocation of one."""

MEMORY_KIB = 8_192
"""By which a server may have grown beyond the warm-up; 2,400 cycles were seen to take 4.6 MB, and 9,600 to take 7.2:
SQLite keeps pages of a database that grows, up to two megabytes for each connection."""

BLOCKS = {"sqlite": 3_000, "postgresql": 8_000}
"""The same in live blocks of Python's allocator. On SQLite 2,400 cycles were seen to take 2,200, and 9,600 took 1,700;
on PostgreSQL, where each connection comes to remember its statements, 2,400 take 5,600."""


class SoakServer(Dialogue):
    """The process of soak_server."""

    def __init__(self, directory: Path, database: str) -> None:
        MasterKey.generate(directory / "master.key")
        super().__init__("tests.faults.soak_server", str(directory), database)

    def rest(self, seconds: float) -> dict[str, int]:
        """What the server holds *seconds* later by its clock, with what has expired forgotten."""
        held: dict[str, int] = json.loads(self.ask(str(seconds)))
        return held


@pytest.fixture
async def server(service_database: str, tmp_path: Path) -> AsyncIterator[SoakServer]:
    started = await asyncio.to_thread(SoakServer, tmp_path, service_database)
    yield started
    await asyncio.to_thread(started.stop)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("service_database", KINDS, indirect=True)
async def test_a_server_gives_back_what_log_ins_renewals_log_outs_and_watchers_took(
    server: SoakServer, service_database: str
) -> None:
    secret = await create_accounts(server.address)
    await soak(server.address, secret, WARM_UP)
    before = await rested(server)
    await soak(server.address, secret, CYCLES)
    after = await rested(server, before)
    grown = {name: after[name] - before[name] for name in before}
    print(f"{CYCLES} cycles: before {before}, grown by {grown}")
    assert {name: grown[name] for name in ("tasks", "descriptors", "streams")} == dict.fromkeys(
        ("tasks", "descriptors", "streams"), 0
    )
    assert grown["memory_kib"] < MEMORY_KIB
    assert grown["blocks"] < BLOCKS["postgresql" if is_postgres(service_database) else "sqlite"]


async def rested(server: SoakServer, before: dict[str, int] | None = None) -> dict[str, int]:
    """The figures once all is expired; connections that were closed are noticed a moment later."""
    gc.collect()  # calls and channels of ours refer to each other, and keep their connections meanwhile
    held = await asyncio.to_thread(server.rest, EXPIRY_SECONDS)
    for _ in range(100):
        later = await asyncio.to_thread(server.rest, 0)
        if later["tasks"] == held["tasks"] and later["streams"] == 0 and _is_level(later, before):
            return later
        held = later
        await asyncio.sleep(0.05)
    return held


def _is_level(held: dict[str, int], before: dict[str, int] | None) -> bool:
    return before is None or all(held[name] <= before[name] for name in ("tasks", "descriptors"))


async def create_accounts(address: str) -> str:
    """A user for each client, and a peer; -> the peer's secret."""
    api = Api(None, address)  # type: ignore[arg-type]
    for number in range(CLIENTS):
        await api.create_user(f"user{number}")
    service = await api.create_service("orders", "peer")
    await api.channel.close()
    return service.client_secret


async def soak(address: str, secret: str, cycles: int) -> None:
    """*cycles* by CLIENTS side by side."""
    api = Api(None, address)  # type: ignore[arg-type]
    peer = bearer((await api.login_service("orders", secret)).access_token)
    await asyncio.gather(*(live(api, number, peer, cycles // CLIENTS) for number in range(CLIENTS)))
    await api.channel.close()


async def live(api: Api, number: int, peer: Metadata, cycles: int) -> None:
    for cycle in range(cycles):
        tokens = await api.login(f"user{number}", audience="identity")
        for _ in range(2):
            tokens = await api.refresh(tokens.refresh_token)
        await wrong_turns(api, tokens)
        await api.sessions.Logout(session_pb2.LogoutRequest(), metadata=bearer(tokens.access_token))
        if cycle % 4 == 0:
            await watch(api.address, peer, has_own_connection=cycle % 8 == 0)


async def wrong_turns(api: Api, tokens: authentication_pb2.TokenSet) -> None:
    """Refusals must cost nothing that stays either, nor calls that their callers leave."""
    unsigned = tokens.access_token.rpartition(".")[0] + "." + "A" * 86
    with pytest.raises(grpc.aio.AioRpcError):
        await api.sessions.ListSessions(session_pb2.ListSessionsRequest(), metadata=bearer(unsigned))
    left: Any = api.sessions.ListSessions(session_pb2.ListSessionsRequest(), metadata=bearer(tokens.access_token))
    await asyncio.sleep(0)
    left.cancel()


async def watch(address: str, peer: Metadata, *, has_own_connection: bool) -> None:
    """Follow the trust state until the first heartbeat, and leave."""
    options = (("grpc.use_local_subchannel_pool", int(has_own_connection)),)
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stream: Any = trust_pb2_grpc.TrustServiceStub(channel).WatchTrust(trust_pb2.WatchTrustRequest(), metadata=peer)
        try:
            async for event in stream:
                if event.WhichOneof("event") == "heartbeat":
                    break
        except grpc.aio.AioRpcError as error:
            # Cut, as changes came faster than its snapshot went.
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        stream.cancel()
