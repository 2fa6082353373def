"""Token exchange: narrower at each hop, never wider, with the chain of actors, and falling with the user's session."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from identity.house import LOCAL_ACT
from identity.v1 import account_pb2, authentication_pb2, revocation_pb2, role_pb2, session_pb2, token_pb2
from identity_client.errors import (
    InvalidRequest,
    PermissionMissing,
    ScopeNotGranted,
    TokenMalformed,
    TokenOutdated,
    TokenRevoked,
    UnknownAudience,
)
from tests.rpc.api import Api, Metadata, bearer
from tests.rpc.refusals import refusal

SCOPES = ("orders.read", "stock.read", "stock.write")


@dataclass
class Chain:
    """Services that may act for users, each with its metadata at the identity service."""

    orders: Metadata
    billing: Metadata
    ids: dict[str, str]


@pytest.fixture
async def chain(api: Api) -> Chain:
    assert api.server.house is not None
    await api.server.house.roles.create("shopper", SCOPES, "", LOCAL_ACT)
    await api.server.house.roles.create("hop", ("identity.exchange", "identity.introspect"), "", LOCAL_ACT)
    created = {name: await api.create_service(name, "hop") for name in ("orders", "billing", "stock")}
    await api.create_user("alice", "shopper")

    async def metadata(name: str) -> Metadata:
        return bearer((await api.login_service(name, created[name].client_secret)).access_token)

    ids = {name: made.account.account_id for name, made in created.items()}
    return Chain(await metadata("orders"), await metadata("billing"), ids)


async def exchange(
    api: Api, token: str, metadata: Metadata, audience: str = "", *scopes: str
) -> authentication_pb2.AccessGrant:
    request = token_pb2.ExchangeRequest(subject_token=token, audience=audience, scopes=scopes)
    return (await api.tokens.Exchange(request, metadata=metadata)).access


async def introspect(api: Api, token: str, metadata: Metadata) -> token_pb2.IntrospectResponse:
    return await api.tokens.Introspect(token_pb2.IntrospectRequest(token=token), metadata=metadata)


@pytest.mark.requirement("R34")
async def test_each_hop_is_narrower_and_names_its_actors(api: Api, chain: Chain) -> None:
    login = await api.login("alice", audience="orders")
    first = await exchange(api, login.access_token, chain.orders, "billing", "stock.read", "stock.write")
    second = await exchange(api, first.access_token, chain.billing, "internal", "stock.read")
    seen = await introspect(api, second.access_token, chain.orders)
    assert list(seen.actors) == [chain.ids["billing"], chain.ids["orders"]]
    assert list(seen.scopes) == ["stock.read"]
    assert list(seen.roles) == ["shopper"]
    assert seen.grant_id == login.session_id
    assert seen.audience == "internal"
    assert seen.expire_time.seconds <= login.access_token_expire_time.seconds
    assert seen.HasField("authentication_time")


@pytest.mark.requirement("R34")
async def test_a_token_for_the_next_hop_is_of_no_use_at_the_last(api: Api, chain: Chain) -> None:
    login = await api.login("alice", audience="orders")
    first = await exchange(api, login.access_token, chain.orders, "stock")
    assert not (await introspect(api, first.access_token, chain.orders)).active
    assert isinstance(await refusal(exchange(api, first.access_token, chain.orders, "billing")), TokenMalformed)


@pytest.mark.requirement("R34")
async def test_no_scope_is_won(api: Api, chain: Chain) -> None:
    login = await api.login("alice", audience="orders", scopes=("orders.read",))
    widened = exchange(api, login.access_token, chain.orders, "stock", "stock.read")
    assert isinstance(await refusal(widened), ScopeNotGranted)
    narrow = await exchange(api, login.access_token, chain.orders, "stock")
    assert list(narrow.scopes) == ["orders.read"]
    own = exchange(api, login.access_token, chain.orders, "identity", "identity.admin")
    assert isinstance(await refusal(own), ScopeNotGranted)


async def test_of_a_token_without_scopes_comes_one_without_scopes(api: Api, chain: Chain) -> None:
    await api.create_user("bob", "clerk")
    login = await api.login("bob", audience="orders")
    assert list(login.scopes) == []
    widened = role_pb2.Role(name="clerk", scopes=["stock.read"])
    request = role_pb2.UpdateRoleRequest(role=widened, update_mask=FieldMask(paths=["scopes"]))
    await api.roles.UpdateRole(request, metadata=await api.admin())
    assert list((await exchange(api, login.access_token, chain.orders, "stock")).scopes) == []


@pytest.mark.requirement("R34")
async def test_a_service_without_the_scope_acts_for_nobody(api: Api, chain: Chain) -> None:
    plain = await api.create_service("plain", "peer")
    metadata = bearer((await api.login_service("plain", plain.client_secret)).access_token)
    login = await api.login("alice", audience="internal")
    error = await refusal(exchange(api, login.access_token, metadata, "stock"))
    assert isinstance(error, PermissionMissing)
    assert "identity.exchange" in str(error)


@pytest.mark.requirement("R34")
async def test_a_token_limited_to_scopes_stays_so_and_no_role_widens_it(api: Api, chain: Chain) -> None:
    whole = await api.login("alice", audience="orders")
    narrowed = await api.login("alice", audience="orders", scopes=("orders.read",))
    assert not (await introspect(api, whole.access_token, chain.orders)).limited
    assert (await introspect(api, narrowed.access_token, chain.orders)).limited
    passed_on = await exchange(api, narrowed.access_token, chain.orders, "billing")
    assert (await introspect(api, passed_on.access_token, chain.billing)).limited
    narrowed_here = await exchange(api, whole.access_token, chain.orders, "billing", "stock.read")
    assert (await introspect(api, narrowed_here.access_token, chain.billing)).limited
    next_hop = await exchange(api, narrowed_here.access_token, chain.billing, "orders")
    assert (await introspect(api, next_hop.access_token, chain.orders)).limited
    untouched = await exchange(api, whole.access_token, chain.orders, "billing")
    assert not (await introspect(api, untouched.access_token, chain.billing)).limited


@pytest.mark.requirement("R34")
async def test_a_service_launders_no_token_of_its_user(api: Api, chain: Chain) -> None:
    """As if it were the user it would drop itself from the chain, and go on when it may no longer act."""
    login = await api.login("alice", audience="orders")
    acting = (await exchange(api, login.access_token, chain.orders, "identity")).access_token
    with_itself = exchange(api, acting, bearer(acting), "billing")
    assert isinstance(await refusal(with_itself), PermissionMissing)
    clean = (await api.login("alice", audience="identity")).access_token
    for_another_session = exchange(api, clean, bearer(acting), "billing")
    assert isinstance(await refusal(for_another_session), TokenMalformed)


async def test_a_service_that_acts_for_a_user_has_no_hand_in_the_users_log_ins(api: Api, chain: Chain) -> None:
    login = await api.login("alice", audience="orders")
    acting = bearer((await exchange(api, login.access_token, chain.orders, "identity")).access_token)
    one = session_pb2.EndSessionRequest(session_id=login.session_id)
    for call in (
        api.sessions.GetSession(session_pb2.GetSessionRequest(session_id=login.session_id), metadata=acting),
        api.sessions.ListSessions(session_pb2.ListSessionsRequest(), metadata=acting),
        api.sessions.EndSession(one, metadata=acting),
        api.sessions.Logout(session_pb2.LogoutRequest(), metadata=acting),
        api.sessions.LogoutEverywhere(session_pb2.LogoutEverywhereRequest(), metadata=acting),
    ):
        assert isinstance(await refusal(call), PermissionMissing)
    assert (await introspect(api, login.access_token, chain.orders)).active


async def test_the_audiences_of_a_credential_bind_what_its_holder_exchanges(api: Api, chain: Chain) -> None:
    made = await api.create_client_secret("orders", audiences=["identity", "orders"])
    own = (await api.login_service("orders", made.client_secret, audience="identity")).access_token
    assert (await exchange(api, own, bearer(own), "orders")).access_token
    error = await refusal(exchange(api, own, bearer(own), "billing"))
    assert isinstance(error, InvalidRequest)
    assert "orders" in str(error)


async def test_of_a_revoked_token_nothing_is_derived(api: Api, chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the revocation is committed after the token was looked at."""
    assert api.server.house is not None
    token = (await api.login("alice", audience="orders")).access_token
    look, admin = api.server.house.introspector.introspect, await api.admin()

    async def look_and_be_overtaken(raw_token: str, asker: Any) -> Any:
        seen = await look(raw_token, asker)
        await api.revocations.RevokeToken(revocation_pb2.RevokeTokenRequest(token=token), metadata=admin)
        return seen

    monkeypatch.setattr(api.server.house.introspector, "introspect", look_and_be_overtaken)
    assert isinstance(await refusal(exchange(api, token, chain.orders, "stock")), TokenRevoked)


@pytest.mark.requirement("R34")
async def test_whoever_received_a_group_token_cannot_pose_as_its_owner(api: Api, chain: Chain) -> None:
    login = await api.login("alice", audience="internal")
    posing = exchange(api, login.access_token, bearer(login.access_token), "stock")
    assert isinstance(await refusal(posing), PermissionMissing)


async def test_an_owner_narrows_a_token_that_no_peer_ever_sees(api: Api, chain: Chain) -> None:
    login = await api.login("alice", audience="identity")
    own = await exchange(api, login.access_token, bearer(login.access_token), "orders", "orders.read")
    seen = await introspect(api, own.access_token, chain.orders)
    assert (list(seen.actors), list(seen.scopes), seen.grant_id) == ([], ["orders.read"], login.session_id)


async def test_a_session_token_is_exchanged_by_the_service_that_received_it(api: Api, chain: Chain) -> None:
    request = authentication_pb2.AuthenticateRequest(
        password=authentication_pb2.PasswordCredential(username="alice", password="a long enough secret"),
        grant_type=authentication_pb2.GRANT_TYPE_SESSION,
        audiences=["orders", "billing"],
    )
    session = (await api.authentication.Authenticate(request)).session
    derived = await exchange(api, session.session_token, chain.billing, "orders")
    seen = await introspect(api, derived.access_token, chain.orders)
    assert (seen.grant_id, list(seen.actors)) == (session.session_id, [chain.ids["billing"]])


@pytest.mark.requirement("R34")
async def test_ending_the_users_session_ends_every_token_of_the_chain(api: Api, chain: Chain) -> None:
    login = await api.login("alice", audience="orders")
    first = await exchange(api, login.access_token, chain.orders, "billing")
    second = await exchange(api, first.access_token, chain.billing, "orders")
    own = bearer((await api.login("alice")).access_token)
    await api.sessions.EndSession(session_pb2.EndSessionRequest(session_id=login.session_id), metadata=own)
    assert not (await introspect(api, first.access_token, chain.billing)).active
    assert not (await introspect(api, second.access_token, chain.orders)).active
    assert isinstance(await refusal(exchange(api, login.access_token, chain.orders, "stock")), TokenMalformed)


async def test_a_chain_has_at_most_four_actors(api: Api, chain: Chain) -> None:
    token = (await api.login("alice")).access_token
    for metadata in (chain.orders, chain.billing) * 2:
        token = (await exchange(api, token, metadata, "internal")).access_token
    assert len((await introspect(api, token, chain.orders)).actors) == 4
    assert isinstance(await refusal(exchange(api, token, chain.orders, "internal")), InvalidRequest)


async def test_the_audience_must_be_known_and_the_scope_must_still_be_the_services(api: Api, chain: Chain) -> None:
    token = (await api.login("alice")).access_token
    assert isinstance(await refusal(exchange(api, token, chain.orders, "nowhere")), UnknownAudience)
    request = account_pb2.SetRolesRequest(username="orders", roles=["peer"])
    await api.accounts.SetRoles(request, metadata=await api.admin())
    assert isinstance(await refusal(exchange(api, token, chain.orders, "stock")), TokenOutdated)


async def test_a_service_whose_credential_ended_acts_for_nobody(api: Api, chain: Chain) -> None:
    token = (await api.login("alice")).access_token
    request = revocation_pb2.RevokeAccountRequest(username="orders", reason="test")
    await api.revocations.RevokeAccount(request, metadata=await api.admin())
    error = await refusal(exchange(api, token, chain.orders, "stock"))
    assert isinstance(error, TokenRevoked | TokenOutdated)


@pytest.mark.requirement("R34")
async def test_an_exchange_is_audited_with_who_acted(api: Api, chain: Chain, tmp_path: Path) -> None:
    login = await api.login("alice")
    await exchange(api, login.access_token, chain.orders, "stock")
    with closing(sqlite3.connect(tmp_path / "identity.db")) as connection:
        columns = "account_id, grant_id, caller_account_id, subject"
        rows = connection.execute(f"SELECT {columns} FROM audit_events WHERE action = 'token.exchange'").fetchall()
    [(account_id, grant_id, caller, subject)] = rows
    assert (grant_id, caller, subject) == (login.session_id, chain.ids["orders"], "for stock")
    assert account_id
