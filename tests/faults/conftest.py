"""A PostgreSQL that keeps what it says it has committed, for tests that kill and stop it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.postgres_server import PostgresServer


@pytest.fixture(scope="session")
def durable_postgres() -> Iterator[PostgresServer]:
    from tests.postgres_server import PostgresServer

    server = PostgresServer(durable=True)
    yield server
    server.stop()


@pytest.fixture
def postgres(durable_postgres: PostgresServer) -> Iterator[PostgresServer]:
    """The same for all tests, running and answering whatever the one before has done to it."""
    if not durable_postgres.is_running:
        durable_postgres.start()
    yield durable_postgres
    if durable_postgres.is_running:
        durable_postgres.resume()
