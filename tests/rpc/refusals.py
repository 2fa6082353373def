"""Waiting for a refusal."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import grpc
import pytest

from identity_client import status
from identity_client.errors import IdentityError


async def refused(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    """The error that *call* must end with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def refusal(call: Awaitable[Any]) -> IdentityError:
    """The same, as the class that the server raised."""
    return status.from_rpc_error(await refused(call))
