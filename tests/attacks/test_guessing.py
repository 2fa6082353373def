"""Thousands of guesses at one account, over two processes that share a database. `make attacks` sends 10,000."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import pytest

from identity.house import LOCAL_ACT, open_house
from identity.storage.sealing import MasterKey
from identity.v1 import authentication_pb2, authentication_pb2_grpc
from identity_client import status
from tests.attacks.counting_server import settings
from tests.clients.issuer import FixedClock
from tests.redis_server import RedisServer
from tests.rpc.api import USER_PASSWORD
from tests.rpc.refusals import refused

GUESSES = int(os.environ.get("IDENTITY_TEST_GUESSES", "500"))
FREE = 10
AT_ONCE = 50
SPELLINGS = ("carol", "Carol", "CAROL", "\uff43arol")


class CountingServer:
    """One process over the database in *directory*."""

    def __init__(self, directory: Path, *redis: str) -> None:
        command = [sys.executable, "-m", "tests.attacks.counting_server", str(directory), *redis]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def address(self) -> str:
        """Where it serves, once it does."""
        assert self._process.stdout is not None
        address = self._process.stdout.readline().strip()
        assert address, "the server ended before it was ready"
        return address

    def compared(self) -> int:
        """End it; -> how many passwords it hashed."""
        out, _ = self._process.communicate("", timeout=60)
        return int(out)

    def kill(self) -> None:
        """Does nothing where it has ended."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def two_servers(directory: Path, *redis: str) -> Iterator[list[CountingServer]]:
    servers = [CountingServer(directory, *redis) for _ in range(2)]
    try:
        yield servers
    finally:
        for server in servers:
            server.kill()


@asynccontextmanager
async def stubs_of(
    servers: list[CountingServer],
) -> AsyncIterator[list[authentication_pb2_grpc.AuthenticationServiceAsyncStub]]:
    channels = [grpc.aio.insecure_channel(server.address()) for server in servers]
    yield [authentication_pb2_grpc.AuthenticationServiceStub(channel) for channel in channels]
    for channel in channels:
        await channel.close()


@pytest.fixture
async def directory(tmp_path: Path) -> Path:
    """A database with the user carol."""
    MasterKey.generate(tmp_path / "master.key")
    house = await open_house(settings(tmp_path), FixedClock())
    await house.accounts.create_user("carol", USER_PASSWORD, (), LOCAL_ACT)
    await house.close()
    return tmp_path


def empty(redis_server: RedisServer) -> None:
    redis_server.client.flushall()


@pytest.mark.requirement("R51")
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("names", [SPELLINGS, ("nobody",)], ids=["existing", "unknown"])
async def test_two_processes_hash_no_more_guesses_than_one_may(directory: Path, names: tuple[str, ...]) -> None:
    answers, compared = await guess(directory, names)
    assert answers == {"BAD_CREDENTIALS": FREE, "THROTTLED": GUESSES - FREE}
    assert compared == FREE


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.stop()


@pytest.mark.requirement("R51")
@pytest.mark.timeout(1_200)
async def test_two_processes_that_share_redis_hash_no_more_either(directory: Path, redis_server: RedisServer) -> None:
    answers, compared = await guess(directory, SPELLINGS, redis_server.url, "30")
    assert answers == {"BAD_CREDENTIALS": FREE, "THROTTLED": GUESSES - FREE}
    assert compared == FREE


@pytest.mark.requirement("R51")
@pytest.mark.requirement("R9")
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("at", [FREE // 2, GUESSES // 2])
@pytest.mark.parametrize("harm", [RedisServer.kill, RedisServer.pause, empty])
async def test_a_loss_of_redis_gives_a_guesser_no_more_than_one_allowance_more(
    directory: Path, redis_server: RedisServer, harm: Callable[[RedisServer], None], at: int
) -> None:
    answers, compared = await guess(directory, SPELLINGS, redis_server.url, harms={at: lambda: harm(redis_server)})
    print(f"{compared} of {GUESSES} guesses hashed")
    assert answers == {"BAD_CREDENTIALS": compared, "THROTTLED": GUESSES - compared}
    assert FREE <= compared <= 2 * FREE


async def guess(
    directory: Path, names: tuple[str, ...], *redis: str, harms: Mapping[int, Callable[[], None]] | None = None
) -> tuple[Counter[str], int]:
    """Guess over two processes, and do harm before the guesses of these numbers. -> what was answered, and how many
    passwords were hashed."""
    answers: Counter[str] = Counter()
    with two_servers(directory, *redis) as servers:
        async with stubs_of(servers) as stubs:
            numbers = iter(range(GUESSES))

            async def guess_on() -> None:
                for number in numbers:
                    if harms and number in harms:
                        harms[number]()
                    password = authentication_pb2.PasswordCredential(
                        username=names[number % len(names)], password=f"guess number {number}"
                    )
                    request = authentication_pb2.AuthenticateRequest(password=password)
                    error = await refused(stubs[number // len(names) % 2].Authenticate(request))
                    answers[status.from_rpc_error(error).reason] += 1

            await asyncio.gather(*(guess_on() for _ in range(AT_ONCE)))
        return answers, sum(server.compared() for server in servers)
