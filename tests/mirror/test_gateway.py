"""The README's recipe for gateways, run with a plain redis-cli against what the service has written."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tests.clients.shapes import until
from tests.mirror.conftest import Mirrored
from tests.mirror.test_peers import TakeBack, disable, end_session, log_in, narrow_role, revoke_key, revoke_token
from tests.redis_server import RedisServer
from tests.rpc.test_revoke_and_introspect import payload_of

README = (Path(__file__).parents[2] / "clients" / "README.md").read_text()
HOLDS, REFUSED, UNKNOWN = 0, 1, 2


async def judge(redis_server: RedisServer, token: str) -> int:
    """The exit status of the recipe for the claims of *token*."""
    found = re.search(r"<!-- recipe: gateway -->\n```sh\n(.*?)```", README, re.DOTALL)
    assert found
    claims = payload_of(token) | {"kid": payload_of(token, 0)["kid"]}
    claims["roles"] = " ".join(claims["roles"])
    variables = {name: str(claims[name]) for name in ("jti", "sid", "sub", "gen", "pol", "kid", "roles")}
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", found[1], env=redis_server.shell_environment() | variables, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        await process.communicate()
    assert process.returncode is not None
    return process.returncode


@pytest.mark.requirement("R27")
@pytest.mark.parametrize("take_back", [revoke_token, end_session, disable, narrow_role, revoke_key])
async def test_a_gateway_refuses_whatever_is_taken_back(
    fragile: Mirrored, redis_server: RedisServer, take_back: TakeBack
) -> None:
    token = await log_in(fragile.api)
    await fragile.has_caught_up()
    assert await judge(redis_server, token) == HOLDS
    await take_back(fragile.api, token)
    await fragile.has_caught_up()
    assert await judge(redis_server, token) == REFUSED


@pytest.mark.requirement("R27")
@pytest.mark.parametrize("take_back", [revoke_token, end_session, disable])
async def test_a_gateway_refuses_it_after_the_mirror_was_built_anew_as_well(
    fragile: Mirrored, redis_server: RedisServer, take_back: TakeBack
) -> None:
    token = await log_in(fragile.api)
    await take_back(fragile.api, token)
    await fragile.has_caught_up()
    redis_server.client.flushall()
    assert await judge(redis_server, token) in (UNKNOWN, REFUSED)  # it may have been built by now
    await fragile.has_caught_up()
    await until(lambda: redis_server.client.exists("identity:fresh"))
    assert await judge(redis_server, token) == REFUSED


async def test_a_gateway_knows_nothing_without_the_mirror(fragile: Mirrored, redis_server: RedisServer) -> None:
    token = await log_in(fragile.api)
    await fragile.has_caught_up()
    redis_server.client.delete("identity:fresh")
    status = await judge(redis_server, token)
    assert status in (UNKNOWN, HOLDS)  # the service may have written it again
    redis_server.kill()
    assert await judge(redis_server, token) == UNKNOWN
    redis_server.start()


async def test_a_gateway_that_may_not_read_admits_nobody(fragile: Mirrored, redis_server: RedisServer) -> None:
    token = await log_in(fragile.api)
    redis_server.client.config_set("requirepass", "secret")
    try:
        assert await judge(redis_server, token) == UNKNOWN
    finally:
        redis_server.client.execute_command("AUTH", "secret")
        redis_server.client.config_set("requirepass", "")
