"""A web front end that asks Redis about each request."""

from __future__ import annotations

from identity.v1 import account_pb2, revocation_pb2
from identity_client.errors import TrustStale
from tests.mirror.conftest import Mirrored
from tests.redis_server import RedisServer
from tests.web.site import Site, account_id, connected, log_in, sessions_of_alice


async def test_a_session_lasts_through_a_change_of_roles_until_it_is_ended(mirrored: Mirrored) -> None:
    api = mirrored.api
    await api.create_user("alice", "clerk")
    async with connected(api, revocations=mirrored.revocations()) as identity, Site(identity).browser() as browser:
        await log_in(browser)
        assert (await browser.get("/account")).text == await account_id(api)
        roles = account_pb2.SetRolesRequest(username="alice", roles=["clerk", "auditor"])
        await api.accounts.SetRoles(roles, metadata=await api.admin())
        await mirrored.has_caught_up()
        assert (await browser.get("/account")).text == await account_id(api)
        for session in await sessions_of_alice(api):
            request = revocation_pb2.RevokeGrantRequest(grant_id=session.session_id)
            await api.revocations.RevokeGrant(request, metadata=await api.admin())
        await mirrored.has_caught_up()
        assert (await browser.get("/account")).status_code == 401


async def test_without_redis_nobody_is_taken_for_signed_in(fragile: Mirrored, redis_server: RedisServer) -> None:
    await fragile.api.create_user("alice", "clerk")
    source = fragile.revocations()
    async with connected(fragile.api, revocations=source) as identity, Site(identity).browser() as browser:
        await log_in(browser)
        redis_server.kill()
        try:
            answer = await browser.get("/account")
            assert (answer.status_code, TrustStale.reason in answer.text) == (503, True)
        finally:
            redis_server.start()
