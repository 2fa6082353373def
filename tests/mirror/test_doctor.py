"""`identity doctor` looks at Redis, says what to do, and changes nothing in it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from identity.config import Settings
from identity.doctor import Finding, Patient, Severity, examine
from tests.clients.issuer import FixedClock
from tests.mirror.conftest import Mirrored
from tests.redis_server import RedisServer


@pytest.fixture
async def settings(fragile: Mirrored) -> AsyncIterator[Settings]:
    """Of a running service."""
    await fragile.has_caught_up()
    yield fragile.api.server._settings


async def found(settings: Settings) -> list[Finding]:
    findings = await examine(Patient(settings, [], FixedClock(time.time())))
    return [finding for finding in findings if finding.check == "redis"]


async def ailment(settings: Settings) -> Finding:
    [finding] = [finding for finding in await found(settings) if finding.severity is not Severity.OK]
    assert finding.advice
    return finding


async def test_a_healthy_one_is_left_alone(settings: Settings, redis_server: RedisServer) -> None:
    server, mirror = await found(settings)
    assert (server.severity, mirror.severity) == (Severity.OK, Severity.OK)
    assert mirror.found == "the mirror holds 0 revocations, 0 versions behind the database"


async def test_nothing_is_changed(fragile: Mirrored, settings: Settings, redis_server: RedisServer) -> None:
    await fragile.api.server.house.mirror.stop()  # type: ignore[union-attr]
    before = redis_server.client.get("identity:trust"), redis_server.client.dbsize()
    redis_server.client.config_resetstat()
    await found(settings)
    used = set(redis_server.client.info("commandstats"))
    assert used <= {
        f"cmdstat_{name}"
        for name in ("mget", "info", "time", "client", "hello", "client|setinfo", "config|resetstat", "config")
    }
    assert (redis_server.client.get("identity:trust"), redis_server.client.dbsize()) == before


async def test_one_that_is_away_is_worth_a_warning(settings: Settings, redis_server: RedisServer) -> None:
    redis_server.kill()
    try:
        finding = await ailment(settings)
    finally:
        redis_server.start()
    assert (finding.severity, "does not answer" in finding.found) == (Severity.WARNING, True)


async def test_a_policy_that_drops_revocations_is_an_error(
    fragile: Mirrored, settings: Settings, redis_server: RedisServer
) -> None:
    redis_server.client.config_set("maxmemory-policy", "volatile-lru")
    finding = await ailment(settings)
    assert (finding.severity, "volatile-lru" in finding.found) == (Severity.ERROR, True)


CHANGES: dict[str, dict[str, Any] | None] = {
    "there is no mirror": None,
    "seconds old": {"time_ms": 1_000},
    "another epoch": {"epoch": "another"},
}


@pytest.mark.parametrize("said", CHANGES)
async def test_a_mirror_that_is_missing_old_or_another_s(
    fragile: Mirrored, settings: Settings, redis_server: RedisServer, said: str
) -> None:
    await fragile.api.server.house.mirror.stop()  # type: ignore[union-attr]
    changes, sentinel = CHANGES[said], json.loads(redis_server.client.get("identity:trust"))
    redis_server.client.delete("identity:trust")
    if changes is not None:
        redis_server.client.set("identity:trust", json.dumps(sentinel | changes))
    finding = await ailment(settings)
    assert (finding.severity, said in finding.found) == (Severity.WARNING, True)
