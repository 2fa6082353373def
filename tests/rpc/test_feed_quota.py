"""Over the wire: a user who logs in and out without end fills nobody's memory, and leaves nothing alive behind."""

from __future__ import annotations

import asyncio

import pytest

from identity.storage.sql.ending import ENTRIES_OF_AN_ACCOUNT
from identity.v1 import audit_pb2, revocation_pb2, session_pb2
from identity_client.errors import SessionEnded, TokenOutdated, TokenRevoked
from tests.databases import KINDS
from tests.rpc.api import Api, Metadata, bearer
from tests.rpc.refusals import refusal

LOG_INS = 300
TOGETHER = 10

pytestmark = [pytest.mark.requirement("R2"), pytest.mark.parametrize("service_database", KINDS, indirect=True)]


async def list_sessions(api: Api, caller: Metadata) -> session_pb2.ListSessionsResponse:
    return await api.sessions.ListSessions(session_pb2.ListSessionsRequest(), metadata=caller)


async def test_a_user_who_logs_in_and_out_without_end_costs_every_peer_a_bounded_number_of_entries(api: Api) -> None:
    assert api.server.house is not None
    state = api.server.house.hub.state
    await api.create_user("carol")
    await api.create_user("dave")
    dave = bearer((await api.login("dave", audience="identity")).access_token)
    ended = []
    for _ in range(LOG_INS):
        tokens = await api.login("carol", audience="identity")
        await api.sessions.Logout(session_pb2.LogoutRequest(), metadata=bearer(tokens.access_token))
        ended.append(tokens)
    assert state.entry_count() == ENTRIES_OF_AN_ACCOUNT + 1
    for tokens in ended:
        refused = await refusal(list_sessions(api, bearer(tokens.access_token)))
        assert isinstance(refused, TokenRevoked | TokenOutdated)
        assert isinstance(await refusal(api.refresh(tokens.refresh_token)), SessionEnded)
    assert len((await list_sessions(api, dave)).sessions) == 1
    carol = bearer((await api.login("carol", audience="identity")).access_token)
    assert len((await list_sessions(api, carol)).sessions) == 1
    which = audit_pb2.AuditFilter(action_prefix="account.end_sessions.too_many_ended")
    request = audit_pb2.ListAuditEventsRequest(filter=which, page_size=200)
    told = await api.audit.ListAuditEvents(request, metadata=await api.admin())
    assert len(told.events) == LOG_INS - ENTRIES_OF_AN_ACCOUNT


async def test_what_an_administrator_ends_is_not_limited(api: Api) -> None:
    assert api.server.house is not None
    state = api.server.house.hub.state
    await api.create_user("carol")
    admin = await api.admin()
    kept = bearer((await api.login("carol", audience="identity")).access_token)
    for _ in range((ENTRIES_OF_AN_ACCOUNT + TOGETHER) // TOGETHER):
        opened = await asyncio.gather(*(api.login("carol") for _ in range(TOGETHER)))
        for tokens in opened:
            request = revocation_pb2.RevokeGrantRequest(grant_id=tokens.session_id)
            assert (await api.revocations.RevokeGrant(request, metadata=admin)).ended_grant_count == 1
    assert state.entry_count() == ENTRIES_OF_AN_ACCOUNT + TOGETHER
    assert len((await list_sessions(api, kept)).sessions) == 1
