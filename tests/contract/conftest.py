"""The stores over a fresh database, and a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from identity.storage.database import Stores, open_stores
from tests.clients.issuer import FixedClock


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'identity.db'}"


@pytest.fixture
async def stores(url: str, clock: FixedClock) -> AsyncIterator[Stores]:
    opened = await open_stores(url, clock)
    yield opened
    await opened.close()
