"""The stores over a fresh database, and a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from identity.storage.database import Stores, open_stores
from tests.clients.issuer import FixedClock
from tests.contract.builders import ACT, ROLES


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'identity.db'}"


@pytest.fixture
async def stores(url: str, clock: FixedClock) -> AsyncIterator[Stores]:
    opened = await open_stores(url, clock)
    for name in ROLES:
        await opened.roles.create(name, (), "", ACT)
    yield opened
    await opened.close()
