"""Signing keys on the wire: who signs, what peers are told on the stream they have, and what is shown of a key."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from identity.domain.signing_keys import KEPT_SECONDS, PUBLISHED_SECONDS
from identity.server import Server
from identity.v1 import signing_key_pb2 as pb
from identity.v1 import trust_pb2
from identity_client.clock import SystemClock
from identity_client.tokens import compact
from identity_client.tokens.keys import PublicKey
from identity_client.trust import wire
from identity_client.trust.state import TrustState
from tests.clients.issuer import FixedClock
from tests.rpc.api import Api, MakeSettings
from tests.rpc.refusals import refusal

pytestmark = pytest.mark.requirement("R26")


async def prepare(api: Api) -> str:
    response = await api.signing_keys.PrepareSigningKey(pb.PrepareSigningKeyRequest(), metadata=await api.admin())
    return response.signing_key.key_id


async def activate(api: Api, key_id: str, force: bool = True) -> pb.SigningKey:
    request = pb.ActivateSigningKeyRequest(key_id=key_id, force=force)
    return (await api.signing_keys.ActivateSigningKey(request, metadata=await api.admin())).signing_key


async def revoke(api: Api, key_id: str) -> pb.RevokeSigningKeyResponse:
    request = pb.RevokeSigningKeyRequest(key_id=key_id, reason="leaked")
    return await api.signing_keys.RevokeSigningKey(request, metadata=await api.admin())


async def listed(api: Api) -> list[pb.SigningKey]:
    response = await api.signing_keys.ListSigningKeys(pb.ListSigningKeysRequest(), metadata=await api.admin())
    return list(response.signing_keys)


async def published(api: Api) -> set[str]:
    return {key.key_id for key in (await api.trust.GetKeys(trust_pb2.GetKeysRequest())).key_set.keys}


def signing_key_of(token: str) -> str:
    return compact.split(token).key_id


async def log_in(api: Api) -> str:
    return (await api.login("carol")).access_token


@asynccontextmanager
async def watching(api: Api) -> AsyncIterator[tuple[TrustState, grpc.aio.UnaryStreamCall]]:  # type: ignore[type-arg]
    """A peer's state, fed by one stream, which the body reads on with `follow`."""
    stream = api.trust.WatchTrust(trust_pb2.WatchTrustRequest(), metadata=await api.peer())
    yield TrustState(SystemClock()), stream
    stream.cancel()


async def follow(state: TrustState, stream: grpc.aio.UnaryStreamCall, until: str) -> list[str]:  # type: ignore[type-arg]
    """Apply events up to the first of the kind *until*; -> the kinds, but heartbeats."""
    kinds: list[str] = []
    async with asyncio.timeout(10):
        while until not in kinds:
            message = await stream.read()
            assert isinstance(message, trust_pb2.WatchTrustResponse)
            wire.apply_event(state, message, wire.Transit(SystemClock()))
            kinds.append(str(message.WhichOneof("event")))
    return [kind for kind in kinds if kind != "heartbeat"]


async def test_a_prepared_key_is_published_at_once_and_signs_from_its_activation_on(api: Api) -> None:
    await api.create_user("carol")
    [first] = await listed(api)
    next_id = await prepare(api)
    assert await published(api) == {first.key_id, next_id}
    assert signing_key_of(await log_in(api)) == first.key_id
    await activate(api, next_id)
    assert signing_key_of(await log_in(api)) == next_id
    assert await published(api) == {first.key_id, next_id}
    states = {key.key_id: key.state for key in await listed(api)}
    assert states == {first.key_id: pb.SIGNING_KEY_STATE_RETIRED, next_id: pb.SIGNING_KEY_STATE_ACTIVE}


async def test_watchers_keep_their_stream_and_know_a_new_key_before_it_signs(api: Api) -> None:
    await api.create_user("carol")
    async with watching(api) as (state, stream):
        await follow(state, stream, "heartbeat")
        next_id = await prepare(api)
        assert await follow(state, stream, "keys") == ["keys"]
        await activate(api, next_id)
        assert state.find_key(signing_key_of(await log_in(api))) is not None


async def test_a_revoked_key_is_refused_on_the_stream_its_successor_told_before(api: Api) -> None:
    await api.create_user("carol")
    [first] = await listed(api)
    async with watching(api) as (state, stream):
        await follow(state, stream, "heartbeat")
        response = await revoke(api, first.key_id)
        assert await follow(state, stream, "changes") == ["keys", "changes"]
        assert state.is_key_revoked(first.key_id)
        assert state.find_key(first.key_id) is None
        assert state.find_key(response.active_key_id) is not None
        assert signing_key_of(await log_in(api)) == response.active_key_id


async def test_tokens_of_a_revoked_key_are_refused_here_too_and_refresh_tokens_give_new_ones(api: Api) -> None:
    await api.create_user("carol")
    [first] = await listed(api)
    tokens, admin = await api.login("carol", audience="identity"), await api.admin()
    request = pb.RevokeSigningKeyRequest(key_id=first.key_id)
    await api.signing_keys.RevokeSigningKey(request, metadata=admin)
    refused = await refusal(api.signing_keys.ListSigningKeys(pb.ListSigningKeysRequest(), metadata=admin))
    assert refused.reason == "UNKNOWN_KEY"
    renewed = await api.refresh(tokens.refresh_token)
    assert signing_key_of(renewed.access_token) in await published(api)


async def test_a_key_is_shown_with_its_times_and_never_with_its_private_half(
    timed_api: Api, server_clock: FixedClock
) -> None:
    now = int(server_clock.now())
    next_id = await prepare(timed_api)
    [prepared] = [key for key in await listed(timed_api) if key.key_id == next_id]
    assert prepared.usable_time.seconds == now + PUBLISHED_SECONDS
    error = await refusal(
        timed_api.signing_keys.ActivateSigningKey(
            pb.ActivateSigningKeyRequest(key_id=next_id), metadata=await timed_api.admin()
        )
    )
    assert error.reason == "SIGNING_KEY_TOO_NEW"
    server_clock.wall += PUBLISHED_SECONDS
    activated = await activate(timed_api, next_id, force=False)
    assert activated.activate_time.seconds == now + PUBLISHED_SECONDS
    [retired] = [key for key in await listed(timed_api) if key.key_id != next_id]
    assert retired.remove_time.seconds == now + PUBLISHED_SECONDS + KEPT_SECONDS
    assert {field.name for field in pb.SigningKey.DESCRIPTOR.fields}.isdisjoint({"private_key", "sealed_private_key"})


@pytest.mark.parametrize("name", ["ActivateSigningKey", "RetireSigningKey", "RevokeSigningKey"])
async def test_a_key_has_to_be_named(api: Api, name: str) -> None:
    method = getattr(api.signing_keys, name)
    for key_id, reason in (("", "INVALID_FIELD"), ("x" * 65, "INVALID_FIELD"), ("none", "SIGNING_KEY_NOT_FOUND")):
        error = await refusal(method(getattr(pb, f"{name}Request")(key_id=key_id), metadata=await api.admin()))
        assert error.reason == reason


async def test_a_repeated_request_answers_the_same_key(api: Api) -> None:
    request = pb.PrepareSigningKeyRequest(request_id="prepare-1")
    first = await api.signing_keys.PrepareSigningKey(request, metadata=await api.admin())
    assert await api.signing_keys.PrepareSigningKey(request, metadata=await api.admin()) == first
    request = pb.PrepareSigningKeyRequest(request_id="prepare-2")
    error = await refusal(api.signing_keys.PrepareSigningKey(request, metadata=await api.admin()))
    assert error.reason == "SIGNING_KEY_ALREADY_PREPARED"


async def test_the_jwks_document_has_every_published_key(api: Api) -> None:
    assert api.server.house is not None
    [first] = await listed(api)
    await prepare(api)
    await revoke(api, first.key_id)
    await prepare(api)
    document = json.loads(api.server.house.jwks())
    assert {key["kid"] for key in document["keys"]} == await published(api)
    assert first.key_id not in await published(api)
    for key in document["keys"]:
        assert key == {"kty": "EC", "use": "sig", "alg": "ES256", "crv": "P-256"} | {
            name: key[name] for name in ("kid", "x", "y")
        }
        x, y = (base64.urlsafe_b64decode(key[name] + "=") for name in ("x", "y"))
        assert PublicKey.from_coordinates(x, y).key_id == key["kid"]


async def test_what_one_replica_does_to_the_keys_another_follows_within_a_second(
    api: Api, make_settings: MakeSettings
) -> None:
    await api.create_user("carol")
    other = Server(make_settings())
    twin = Api(other, await other.start())
    try:
        [first] = await listed(api)
        next_id = await prepare(twin)
        await activate(twin, next_id)
        await signs(api, lambda key_id: key_id == next_id)
        await revoke(twin, next_id)
        await signs(api, lambda key_id: key_id != next_id)
        assert await published(api) == await published(twin)
        assert first.key_id in await published(api)
    finally:
        await twin.channel.close()
        await other.stop()


async def signs(api: Api, is_wanted: Callable[[str], bool]) -> None:
    """Return once a token is signed by a key that is wanted."""
    async with asyncio.timeout(5):
        while not is_wanted(signing_key_of(await log_in(api))):
            await asyncio.sleep(0.05)
