"""The pytest plugin that peers test with: real guards on real servers, an issuer in memory, no service."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

import identity_client
from identity_client import aio
from identity_client.access.rules import Rule
from identity_client.errors import DependencyDown, ScopeNotGranted, TokenMalformed
from identity_client.principal import Principal
from identity_client.testing import AioIdentity, Credential, Issuer, ThreadedIdentity
from tests.clients.shapes import TABLE, ShapePeer, end_of, path
from tests.rpc.certificates import Authority

GOOD: dict[str, Any] = {"scopes": ["read"], "roles": ["clerk"]}
RULES = TABLE | {"/shapes.v1.ShapeService/Public": Rule(max_authentication_age_seconds=60)}


@pytest.fixture(params=["aio", "threaded"])
async def peer(
    request: pytest.FixtureRequest, identity_aio: AioIdentity, identity_threaded: ThreadedIdentity
) -> AsyncIterator[ShapePeer]:
    if request.param == "aio":
        async with identity_aio as identity, ShapePeer(identity.guard("shapes", rules=RULES)) as running:
            yield running
    else:
        with identity_threaded as threaded:
            async with ShapePeer(threaded.guard("shapes", rules=RULES)) as running:
                yield running


def minters(issuer: Issuer) -> list[Callable[..., Credential]]:
    return [issuer.mint, issuer.mint_session, issuer.mint_api_key]


@pytest.mark.requirement("R74")
async def test_what_the_issuer_mints_is_admitted_and_the_handler_knows_who_it_was_minted_for(
    peer: ShapePeer, identity_issuer: Issuer
) -> None:
    for mint in minters(identity_issuer):
        assert await peer.call("UnaryUnary", mint("bob", **GOOD)) == [identity_issuer.account_id("bob").encode()]
    assert (await peer.refusal("UnaryUnary", identity_issuer.mint("bob"))).reason == "PERMISSION_MISSING"
    assert (await peer.refusal("UnaryUnary", Issuer().mint("bob", **GOOD))).reason == "UNKNOWN_KEY"
    assert (await peer.refusal("UnaryUnary", Issuer().mint_session("bob", **GOOD))).reason == "TOKEN_REVOKED"


REVOCATIONS: dict[str, tuple[str, Callable[[Issuer, Credential], None]]] = {
    "a token": ("TOKEN_REVOKED", lambda issuer, held: issuer.revoke(held)),
    "its grant": ("TOKEN_REVOKED", lambda issuer, held: issuer.revoke_grant(held)),
    "its grant, by id": ("TOKEN_REVOKED", lambda issuer, held: issuer.revoke_grant(held.grant_id)),
    "its account": ("TOKEN_OUTDATED", lambda issuer, held: issuer.revoke_account("bob")),
    "the account's roles": ("TOKEN_OUTDATED", lambda issuer, held: issuer.set_roles("bob", ["clerk"])),
    "what its role allows": ("TOKEN_OUTDATED", lambda issuer, held: issuer.change_role("clerk")),
    "the key": ("TOKEN_REVOKED", lambda issuer, held: issuer.revoke_key()),
}


@pytest.mark.requirement("R74")
@pytest.mark.parametrize("what", REVOCATIONS)
async def test_what_is_taken_back_is_refused_on_the_next_call_and_nobody_else_is(
    peer: ShapePeer, identity_issuer: Issuer, what: str
) -> None:
    reason, take_back = REVOCATIONS[what]
    held = identity_issuer.mint("bob", **GOOD)
    bystander = identity_issuer.mint_session("carol", **GOOD)
    await peer.call("UnaryUnary", held)
    take_back(identity_issuer, held)
    assert (await peer.refusal("UnaryUnary", held)).reason == reason
    await peer.call("UnaryUnary", bystander)
    await peer.call("UnaryUnary", identity_issuer.mint("bob", **GOOD))


@pytest.mark.requirement("R74")
async def test_sessions_and_api_keys_end_with_their_revocation_and_have_the_roles_of_the_moment(
    peer: ShapePeer, identity_issuer: Issuer
) -> None:
    for mint in minters(identity_issuer)[1:]:
        held = mint("bob", **GOOD)
        await peer.call("UnaryUnary", held)
        identity_issuer.set_roles("bob", ["cook"])
        assert (await peer.refusal("UnaryUnary", held)).reason == "PERMISSION_MISSING"
        identity_issuer.set_roles("bob", ["clerk"])
        identity_issuer.change_role("clerk")
        await peer.call("UnaryUnary", held)
        identity_issuer.revoke(held)
        assert (await peer.refusal("UnaryUnary", held)).reason == "TOKEN_REVOKED"
        other = mint("bob", **GOOD)
        identity_issuer.revoke_account("bob")
        assert (await peer.refusal("UnaryUnary", other)).reason == "TOKEN_REVOKED"


async def test_tokens_of_the_old_key_are_admitted_after_a_rotation(peer: ShapePeer, identity_issuer: Issuer) -> None:
    old = identity_issuer.mint(**GOOD)
    identity_issuer.rotate_key()
    new = identity_issuer.mint(**GOOD)
    assert old.claims.key_id != new.claims.key_id
    for held in (old, new):
        await peer.call("UnaryUnary", held)


async def test_time_passes_when_the_test_says_so(peer: ShapePeer, identity_issuer: Issuer) -> None:
    token, session = identity_issuer.mint(**GOOD, lifetime_seconds=60), identity_issuer.mint_session(**GOOD)
    identity_issuer.clock.advance(64)  # the leeway is 5 s
    await peer.call("UnaryUnary", token)
    assert (await peer.refusal("Public", token)).reason == "AUTHENTICATION_TOO_OLD"
    identity_issuer.clock.advance(1)
    assert (await peer.refusal("UnaryUnary", token)).reason == "TOKEN_EXPIRED"
    await peer.call("UnaryUnary", session)
    identity_issuer.clock.advance(86_400)
    assert (await peer.refusal("UnaryUnary", session)).reason == "TOKEN_REVOKED"  # what is over is not active


async def test_a_log_in_is_as_old_as_the_test_wants(peer: ShapePeer, identity_issuer: Issuer) -> None:
    await peer.call("Public", identity_issuer.mint(authentication_age_seconds=60))
    for age in (61, None):
        held = identity_issuer.mint(authentication_age_seconds=age)
        assert (await peer.refusal("Public", held)).reason == "AUTHENTICATION_TOO_OLD"


async def test_a_running_stream_ends_when_its_token_is_revoked(peer: ShapePeer, identity_issuer: Issuer) -> None:
    held = identity_issuer.mint(**GOOD)
    call = await peer.begin("LongStreamStream", held)
    identity_issuer.revoke(held)
    assert await end_of(call) == "TOKEN_REVOKED"


async def test_a_confirmed_method_refuses_what_was_never_minted(peer: ShapePeer, identity_issuer: Issuer) -> None:
    held = identity_issuer.mint()
    await peer.call("Confirmed", held)
    invented = identity_issuer.signing_key.sign(held.claims._replace(grant_id="AAAAAAAAAAAAAAAAAAAAAA"))
    metadata = (("authorization", f"Bearer {invented}"),)
    assert (await peer.refusal("Confirmed", metadata)).reason == "TOKEN_REVOKED"


async def test_in_an_outage_guards_judge_alone_for_a_while_and_hear_afterwards_what_happened(
    peer: ShapePeer, identity_issuer: Issuer
) -> None:
    held, other = (identity_issuer.mint(name, **GOOD) for name in ("alice", "bob"))
    identity_issuer.disconnect()
    identity_issuer.revoke(held)
    identity_issuer.clock.advance(30)
    await peer.call("UnaryUnary", held)
    assert (await peer.refusal("Confirmed", other)).reason == "DEPENDENCY_DOWN"
    assert (await peer.refusal("UnaryUnary", identity_issuer.mint_session(**GOOD))).reason == "DEPENDENCY_DOWN"
    identity_issuer.clock.advance(1)
    assert (await peer.refusal("UnaryUnary", held)).reason == "TRUST_STALE"
    identity_issuer.reconnect()
    assert (await peer.refusal("UnaryUnary", held)).reason == "TOKEN_REVOKED"
    await peer.call("Confirmed", other)


def call_threaded(identity: ThreadedIdentity, port: int, caller: Principal | None) -> bytes:
    with identity.channel(
        f"127.0.0.1:{port}", audience="shapes", on_behalf_of=None if caller is None else lambda: caller
    ) as channel:
        return bytes(cast(Any, channel).unary_unary(path("UnaryUnary"))(b"", timeout=10))


@pytest.mark.requirement("R74")
async def test_calls_to_other_peers_carry_tokens_of_the_issuer_the_callers_own_where_wanted(
    identity_aio: AioIdentity, identity_threaded: ThreadedIdentity, identity_issuer: Issuer
) -> None:
    identity_issuer.set_roles("test", ["clerk"])
    received = identity_issuer.mint("alice", roles=["clerk"], scopes=["read", "write"], audience="front")
    with identity_issuer.calling(received) as alice:
        async with identity_aio as identity, ShapePeer(identity.guard("shapes", rules=RULES)) as peer:
            target = f"127.0.0.1:{peer.port}"
            ours = identity.channel(target, audience="shapes", scopes=["read"])
            hers = identity.channel(target, audience="shapes", scopes=["read"], on_behalf_of=lambda: alice)
            for channel, account in ((ours, "test"), (hers, "alice")):
                answer = await cast(Any, channel).unary_unary(path("UnaryUnary"))(b"", timeout=10)
                assert bytes(answer) == identity_issuer.account_id(account).encode()
                await channel.close()
            assert peer.handlers.principal is not None
            assert peer.handlers.principal.claims.actors == (identity_issuer.account_id("test"),)
            assert peer.handlers.principal.scopes == ("read",)
            with identity_threaded as threaded:
                answer = await asyncio.to_thread(call_threaded, threaded, peer.port, alice)
                assert answer == alice.account_id.encode()

            identity_issuer.revoke_grant(received)
            with pytest.raises(TokenMalformed):
                identity_issuer.exchange(received.raw_token, audience="shapes", actor="test")


def test_an_exchange_gives_no_more_than_was_received_and_no_longer(identity_issuer: Issuer) -> None:
    received = identity_issuer.mint(scopes=["read"], lifetime_seconds=60)
    given = identity_issuer.exchange(received.raw_token, audience="stock", actor="orders")
    assert (given.claims.scopes, given.claims.expire_time) == (("read",), received.claims.expire_time)
    assert (given.grant_id, given.claims.audience) == (received.grant_id, "stock")
    with pytest.raises(ScopeNotGranted):
        identity_issuer.exchange(received.raw_token, audience="stock", actor="orders", scopes=["write"])
    identity_issuer.disconnect()
    with pytest.raises(DependencyDown):
        identity_issuer.exchange(received.raw_token, audience="stock", actor="orders")


async def test_a_token_can_be_bound_to_a_certificate(identity_aio: AioIdentity, identity_issuer: Issuer) -> None:
    authority = Authority("test")
    certificate, key = authority.issue("client")
    other = authority.issue("other")
    server = grpc.ssl_server_credentials([authority.issue("server")[::-1]], authority.certificate, True)
    channels = [
        grpc.ssl_channel_credentials(authority.certificate, *pair[::-1]) for pair in ((certificate, key), other)
    ]
    guard = identity_aio.guard("shapes", rules=RULES)
    async with ShapePeer(guard, credentials=(server, channels[0])) as peer:
        other_client = peer.connect(channels[1])
        held = identity_issuer.mint(**GOOD, certificate=certificate)
        await peer.call("UnaryUnary", held)
        assert (await peer.refusal("UnaryUnary", held, other_client)).reason == "CERTIFICATE_MISMATCH"
        await other_client.close()


def test_a_handler_can_be_called_without_a_server(identity_issuer: Issuer) -> None:
    with identity_issuer.calling(identity_issuer.mint("bob", roles=["clerk"])) as principal:
        assert identity_client.current_principal() is principal
        assert principal.roles == ("clerk",)
    assert identity_client.find_principal() is None


def test_the_stand_ins_are_what_a_peer_annotates(identity_aio: object, identity_threaded: object) -> None:
    assert isinstance(identity_aio, aio.Identity)
    assert isinstance(identity_threaded, identity_client.Identity)


@pytest.mark.parametrize("changes", [{"lifetime_seconds": 0}, {"lifetime_seconds": 3_601}, {"scopes": ["two words"]}])
def test_the_issuer_mints_nothing_that_the_service_would_not(identity_issuer: Issuer, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"issues no token|an access token lives"):
        identity_issuer.mint(**changes)


@pytest.mark.parametrize("name", ["scopes", "roles"])
def test_one_text_in_place_of_a_list_of_names_is_refused(identity_issuer: Issuer, name: str) -> None:
    with pytest.raises(TypeError, match="a list of names is wanted"):
        identity_issuer.mint(**{name: "orders.read"})  # type: ignore[arg-type]


def test_a_credential_is_named_without_its_text(identity_issuer: Issuer) -> None:
    for mint in minters(identity_issuer):
        held = mint()
        assert tuple(held) == (("authorization", f"Bearer {held.raw_token}"),)
        assert held.raw_token not in repr(held)


PEERS_TEST = """
import sys

def test_that_uses_no_fixture():
    assert not {"grpc", "cryptography", "google.protobuf", "identity_client.tokens"} & set(sys.modules)

def test_with_a_token(identity_issuer):
    identity_issuer.mint("alice", scopes=["orders.read"])
    assert "grpc" not in sys.modules
"""


@pytest.mark.requirement("R74")
def test_the_plugin_is_found_by_itself_and_loads_nothing_heavy_before_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "test_peer.py").write_text(PEERS_TEST)
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
