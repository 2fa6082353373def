"""What every test of a front end starts from: a user, and the front end's connection to a real identity service."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from identity_client.aio.identity import Identity
from tests.rpc.api import Api
from tests.web.site import connected


@pytest.fixture
async def identity(api: Api) -> AsyncIterator[Identity]:
    """The front end `storefront`; alice is a clerk."""
    await api.create_user("alice", "clerk")
    async with connected(api) as connection:
        yield connection
