"""What most tests start from: a clock that stands still, an issuer, and a real server on port 0 of this process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.clients.issuer import FixedClock, Issuer
from tests.requirements_report import RequirementsReport

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # tests start processes while calls run, and fork no caller

if TYPE_CHECKING:  # the tests of the client library run where no server is installed, too
    from identity.config import Settings
    from tests.clients.fake_identity import FakeIdentity
    from tests.postgres_server import Databases
    from tests.rpc.api import Api, MakeSettings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--requirements", action="store_true", help="fail where a requirement that is due is not proved")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--requirements"):
        config.pluginmanager.register(RequirementsReport())


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def issuer(clock: FixedClock) -> Issuer:
    return Issuer(clock)


@pytest.fixture
async def fake(clock: FixedClock) -> AsyncIterator[FakeIdentity]:
    """The service as peers see it, without a database: for tests of the client library."""
    from tests.clients.fake_identity import FakeIdentity

    service = FakeIdentity(clock)
    await service.start()
    yield service
    await service.stop()


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """One PostgreSQL for the whole run, started when the first test asks for it."""
    from tests.postgres_server import Databases

    databases = Databases()
    yield databases
    databases.stop()


@pytest.fixture(params=("sqlite", "postgresql"))
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of an empty database, of each kind; its schema is the newest."""
    async for url in _database(request.param, request, tmp_path):
        yield url


@pytest.fixture
async def service_database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of the database that servers of a test stand on: SQLite, or what IDENTITY_TEST_DATABASE says, or a test's
    own parameter.
    """
    kind = getattr(request, "param", os.environ.get("IDENTITY_TEST_DATABASE", "sqlite"))
    async for url in _database(kind, request, tmp_path):
        yield url


async def _database(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{tmp_path / 'identity.db'}"
        return
    databases: Databases = request.getfixturevalue("databases")
    url = await databases.create()
    yield url
    databases.drop(url)


@pytest.fixture
def make_settings(tmp_path: Path, service_database: str) -> MakeSettings:
    """Settings for a throw-away server with cheap hashes."""
    from identity.config import Settings
    from identity.storage.sealing import MasterKey

    key_file = tmp_path / "master.key"
    MasterKey.generate(key_file)

    def make(**changes: object) -> Settings:
        values: dict[str, object] = {
            "listen": "127.0.0.1:0",
            "database": service_database,
            "http_listen": "127.0.0.1:0",
            "master_key_file": str(key_file),
            "reflection": "open",
            "hash_memory_kib": 64,
            "hash_iterations": 1,
            "hash_workers": 2,
        }
        return Settings(**(values | changes))  # type: ignore[arg-type]

    return make


@pytest.fixture
def server_clock() -> FixedClock:
    """Tests move its wall time alone: the server's own trust state stays fresh."""
    return FixedClock()


@pytest.fixture
async def timed_api(make_settings: MakeSettings, server_clock: FixedClock) -> AsyncIterator[Api]:
    """A running server whose admin is `root`, and whose time stands still until the test moves it."""
    from identity.server import Server
    from tests.rpc.api import Api, prepare

    server = Server(make_settings(), server_clock)
    api = Api(server, await server.start())
    assert server.house is not None
    await prepare(server.house)
    yield api
    await api.channel.close()
    await server.stop()


@pytest.fixture
async def api(make_settings: MakeSettings) -> AsyncIterator[Api]:
    """A running server whose admin is `root`."""
    from identity.server import Server
    from tests.rpc.api import Api, prepare

    server = Server(make_settings())
    api = Api(server, await server.start())
    assert server.house is not None
    await prepare(server.house)
    yield api
    await api.channel.close()
    await server.stop()
