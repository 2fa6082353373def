"""The stores over a fresh database of each kind, and a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from identity.storage.database import Stores, open_stores
from tests.clients.issuer import FixedClock
from tests.contract.builders import ACT, ROLES


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


@pytest.fixture
async def stores(url: str, clock: FixedClock) -> AsyncIterator[Stores]:
    opened = await open_stores(url, clock)
    for name in ROLES:
        await opened.roles.create(name, (), "", ACT)
    yield opened
    await opened.close()
