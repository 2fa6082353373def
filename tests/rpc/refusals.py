"""Waiting for a refusal."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable
from contextlib import closing
from pathlib import Path
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


def answer_of(error: grpc.aio.AioRpcError) -> tuple[object, ...]:
    """All that a caller can see of a refusal, in the very bytes."""
    return (
        error.code(),
        error.details(),
        tuple(error.trailing_metadata() or ()),
        tuple(error.initial_metadata() or ()),
    )


def audited(tmp_path: Path, action: str = "%") -> list[str]:
    """The outcomes in the audit log, in order, of actions that match."""
    with closing(sqlite3.connect(tmp_path / "identity.db")) as connection:
        query = "SELECT outcome FROM audit_events WHERE action LIKE ? ORDER BY event_id"
        return [outcome for (outcome,) in connection.execute(query, (action,))]
