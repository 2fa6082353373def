"""Signing keys in the store: one active, one prepared, whoever moves them on at once; and none lost on the way."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from identity.domain.once import RequestIds
from identity.domain.signing_keys import KEPT_SECONDS, MAXIMUM_PUBLISHED, PUBLISHED_SECONDS
from identity.domain.values import Act, KeyState, Seconds, SigningKeyRecord
from identity.storage.database import Stores
from identity.storage.sql.common import ENTRY_MARGIN_SECONDS, LONGEST_ACCESS_LIFETIME_SECONDS
from identity_client.errors import (
    IdentityError,
    RequestIdReused,
    SigningKeyAlreadyPrepared,
    SigningKeyMisplaced,
    SigningKeyNotFound,
    SigningKeyTooNew,
    TooManySigningKeys,
)
from identity_client.trust.entries import EntryKind
from tests.clients.issuer import FixedClock
from tests.contract.builders import ACT, act_of, add_key, create_user, entries, log_in

pytestmark = pytest.mark.requirement("R26")


def record(name: str, clock: FixedClock) -> SigningKeyRecord:
    return SigningKeyRecord(name, KeyState.PREPARED, bytes(32), bytes(32), b"sealed", Seconds(int(clock.now())))


async def states(stores: Stores) -> dict[str, str]:
    return {key.key_id: key.state.value for key in await stores.signing_keys.list_keys()}


@pytest.fixture
async def pair(stores: Stores, clock: FixedClock) -> Stores:
    """An active key "old", and a prepared one, "next", that every peer knows."""
    await add_key(stores, "old")
    await stores.signing_keys.prepare(record("next", clock), ACT)
    clock.advance(PUBLISHED_SECONDS)
    return stores


def test_a_key_is_kept_until_its_last_token_has_expired_everywhere() -> None:
    assert KEPT_SECONDS == LONGEST_ACCESS_LIFETIME_SECONDS + ENTRY_MARGIN_SECONDS


async def test_an_activated_key_takes_the_place_of_the_active_one_whose_private_half_is_gone(pair: Stores) -> None:
    activated = await pair.signing_keys.activate("next", ACT, force=False)
    assert activated.state is KeyState.ACTIVE
    assert activated.sealed_private_key == b"sealed"
    assert await states(pair) == {"old": "retired", "next": "active"}
    [old, _] = await pair.signing_keys.list_keys()
    assert old.sealed_private_key == b""
    assert await pair.signing_keys.activate("next", ACT, force=False) == activated  # a repeat changes nothing


async def test_a_key_that_peers_may_not_know_yet_signs_only_by_force(stores: Stores, clock: FixedClock) -> None:
    await add_key(stores, "old")
    await stores.signing_keys.prepare(record("next", clock), ACT)
    clock.advance(PUBLISHED_SECONDS - 1)
    with pytest.raises(SigningKeyTooNew, match="wait 1 seconds"):
        await stores.signing_keys.activate("next", ACT, force=False)
    assert await states(stores) == {"old": "active", "next": "prepared"}
    await stores.signing_keys.activate("next", ACT, force=True)
    assert await states(stores) == {"old": "retired", "next": "active"}


async def test_there_is_one_prepared_key_however_many_prepare_one(stores: Stores, clock: FixedClock) -> None:
    await add_key(stores, "old")
    prepares = (stores.signing_keys.prepare(record(f"next{n}", clock), ACT) for n in range(10))
    outcomes = await asyncio.gather(*prepares, return_exceptions=True)
    assert sum(isinstance(outcome, SigningKeyAlreadyPrepared) for outcome in outcomes) == 9
    assert sorted((await states(stores)).values()) == ["active", "prepared"]


async def test_a_repeated_request_prepares_one_key(stores: Stores, clock: FixedClock) -> None:
    await add_key(stores, "old")
    admin = await create_user(stores, "root", "admin")
    once = RequestIds(bytes(32)).read("request-1", "Prepare", b"")
    act = replace(act_of(await log_in(stores, admin)), once=once)
    first = await stores.signing_keys.prepare(record("next", clock), act)
    assert await stores.signing_keys.prepare(record("another", clock), act) == first
    other = RequestIds(bytes(32)).read("request-1", "Prepare", b"else")
    with pytest.raises(RequestIdReused):
        await stores.signing_keys.prepare(record("another", clock), replace(act, once=other))


async def test_no_more_keys_are_published_than_peers_take(stores: Stores, clock: FixedClock) -> None:
    await add_key(stores, "key0")
    for n in range(1, MAXIMUM_PUBLISHED):
        await stores.signing_keys.prepare(record(f"key{n}", clock), ACT)
        await stores.signing_keys.activate(f"key{n}", ACT, force=True)
    with pytest.raises(TooManySigningKeys):
        await stores.signing_keys.prepare(record("more", clock), ACT)
    await stores.signing_keys.revoke(f"key{MAXIMUM_PUBLISHED - 1}", record("spare", clock), "", ACT)
    keys = await stores.signing_keys.list_keys()
    assert sum(key.is_published for key in keys) == MAXIMUM_PUBLISHED
    clock.advance(KEPT_SECONDS)
    assert await stores.signing_keys.remove_old()
    await stores.signing_keys.prepare(record("more", clock), ACT)


async def test_a_revoked_active_key_is_followed_by_the_prepared_one_however_new(
    stores: Stores, clock: FixedClock
) -> None:
    await add_key(stores, "old")
    await stores.signing_keys.prepare(record("next", clock), ACT)
    revoked, active, version = await stores.signing_keys.revoke("old", record("spare", clock), "leaked", ACT)
    assert (revoked.state, revoked.sealed_private_key, active) == (KeyState.REVOKED, b"", "next")
    assert await states(stores) == {"old": "revoked", "next": "active"}
    expire_time = int(clock.now()) + LONGEST_ACCESS_LIFETIME_SECONDS + ENTRY_MARGIN_SECONDS
    assert await entries(stores) == [(version, EntryKind.KEY, "old", 0, expire_time)]
    again = await stores.signing_keys.revoke("old", record("spare", clock), "leaked", ACT)
    assert again == (revoked, "next", None)


async def test_a_revoked_active_key_is_followed_by_a_new_one_where_none_is_prepared(
    stores: Stores, clock: FixedClock
) -> None:
    await add_key(stores, "old")
    _, active, _ = await stores.signing_keys.revoke("old", record("spare", clock), "", ACT)
    assert active == "spare"
    assert await states(stores) == {"old": "revoked", "spare": "active"}


async def test_revoking_another_key_leaves_the_active_one(pair: Stores, clock: FixedClock) -> None:
    _, active, version = await pair.signing_keys.revoke("next", record("spare", clock), "", ACT)
    assert (active, version) == ("old", 1)
    assert await states(pair) == {"old": "active", "next": "revoked"}


async def test_a_withdrawn_key_never_signs(pair: Stores) -> None:
    retired = await pair.signing_keys.retire("next", ACT)
    assert await pair.signing_keys.retire("next", ACT) == retired
    with pytest.raises(SigningKeyMisplaced):
        await pair.signing_keys.activate("next", ACT, force=True)
    assert await states(pair) == {"old": "active", "next": "retired"}


async def test_the_active_key_is_retired_by_its_successor_alone(pair: Stores, clock: FixedClock) -> None:
    with pytest.raises(SigningKeyMisplaced):
        await pair.signing_keys.retire("old", ACT)
    await pair.signing_keys.revoke("next", record("spare", clock), "", ACT)
    for move in (pair.signing_keys.retire("next", ACT), pair.signing_keys.activate("next", ACT, force=True)):
        with pytest.raises(SigningKeyMisplaced):
            await move


async def test_an_unknown_key_is_not_found(pair: Stores, clock: FixedClock) -> None:
    for move in (
        pair.signing_keys.retire("none", ACT),
        pair.signing_keys.activate("none", ACT, force=True),
        pair.signing_keys.revoke("none", record("spare", clock), "", ACT),
    ):
        with pytest.raises(SigningKeyNotFound):
            await move


async def test_a_retired_key_verifies_until_its_last_token_has_expired_and_is_then_removed(
    pair: Stores, clock: FixedClock
) -> None:
    await pair.signing_keys.activate("next", ACT, force=False)
    clock.advance(KEPT_SECONDS - 1)
    assert not await pair.signing_keys.remove_old()
    clock.advance(1)
    assert await pair.signing_keys.remove_old()
    assert await states(pair) == {"next": "active"}


async def test_a_retired_key_that_is_revoked_is_kept_anew(pair: Stores, clock: FixedClock) -> None:
    await pair.signing_keys.activate("next", ACT, force=False)
    clock.advance(KEPT_SECONDS - 1)
    await pair.signing_keys.revoke("old", record("spare", clock), "", ACT)
    clock.advance(KEPT_SECONDS - 1)
    assert not await pair.signing_keys.remove_old()


async def test_whoever_may_not_act_any_more_moves_no_key(pair: Stores, clock: FixedClock) -> None:
    act: Act = act_of(await log_in(pair, await create_user(pair, "carol", "clerk")))
    before = await states(pair)
    for move in (
        pair.signing_keys.prepare(record("new", clock), act),
        pair.signing_keys.activate("next", act, force=True),
        pair.signing_keys.retire("next", act),
        pair.signing_keys.revoke("old", record("spare", clock), "", act),
    ):
        with pytest.raises(IdentityError, match="lacks a scope"):
            await move
    assert await states(pair) == before
