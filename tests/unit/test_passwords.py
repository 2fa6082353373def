"""Passwords: their form, their hashes, and the pool that keeps a flood of them from hurting anyone else."""

from __future__ import annotations

import asyncio
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from identity.domain import passwords
from identity.domain.passwords import (
    HashParameters,
    HashPool,
    PasswordHasher,
    check_new_password,
    common_passwords,
    prepare_password,
)
from identity.domain.randomness import SystemRandomness
from identity_client.errors import InvalidRequest, Overloaded


@pytest.fixture
def pool() -> Iterator[HashPool]:
    pool = HashPool(workers=1, queue_limit=2)
    yield pool
    pool.close()


@pytest.fixture
def release(pool: HashPool) -> Iterator[threading.Event]:
    """What the work waits for; set in the end, so that a failing test does not leave the pool's threads waiting."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def hasher(pool: HashPool) -> PasswordHasher:
    return PasswordHasher(HashParameters(memory_kib=64, iterations=1), pool, SystemRandomness())


def test_equal_passwords_are_equal_however_typed() -> None:
    composed, decomposed = "pass\u00e9word", unicodedata.normalize("NFD", "pass\u00e9word")
    assert composed != decomposed
    assert prepare_password(composed) == prepare_password(decomposed)


@pytest.mark.parametrize("bad", ["", "x" * 1025, "\u00e9" * 513, "bell\x07", "new\nline", "zero\x00"])
def test_an_impossible_password_is_refused(bad: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        prepare_password(bad)
    assert refused.value.field == "password"
    assert bad == "" or bad not in str(refused.value)


def test_a_new_password_counts_characters_and_not_bytes() -> None:
    assert check_new_password("\u00e9" * 11 + "e", "carol")
    with pytest.raises(InvalidRequest):
        check_new_password("\u00e9" * 11, "carol")


@pytest.mark.parametrize(
    "bad",
    [
        "password1234",
        "PASSWORD1234",
        "PassWord1234",
        "\uff50assword1234",  # a fullwidth p
        "aaaaaaaaaaaaaaaa",
        "aAaAaAaAaAaAaAaA",
        "\u00e9" * 20,
        "eleven char",
        "carol.the.clerk",
        "Carol.The.Clerk",
        "\uff23arol.the.clerk",
        "idc_0123456789",
        "eyJhbGciOiJFUzI1NiJ9",
    ],
)
def test_a_password_that_guessers_try_first_cannot_be_chosen(bad: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_new_password(bad, "carol.the.clerk", "new_password")
    assert refused.value.field == "new_password"
    assert bad not in str(refused.value)


@pytest.mark.parametrize(
    "good",
    ["correct horse battery", "            space inside", "1357908642134", "\u5bc6\u7801" * 6, "a" * 1023 + "b"],
)
def test_no_kinds_of_characters_are_asked_for(good: str) -> None:
    assert check_new_password(good, "carol")


def test_every_common_password_is_refused_however_it_is_written() -> None:
    assert len(common_passwords()) > 400
    for common in common_passwords():
        for typed in (common, common.upper(), common.title()):
            with pytest.raises(InvalidRequest):
                check_new_password(typed, "carol")


def test_the_block_list_holds_what_could_be_chosen_and_names_its_source() -> None:
    assert all(len(common) >= 12 and common == common.casefold() for common in common_passwords())
    first = Path(passwords.__file__).with_name("common_passwords.txt").read_text("utf-8").splitlines()[0]
    assert first.startswith("#")


async def matches(hasher: PasswordHasher, password: bytes, password_hash: str | None) -> bool:
    with hasher.hold("192.0.2.7") as place:
        return await hasher.matches(password, password_hash, place)


@pytest.mark.requirement("R50")
async def test_a_hash_is_argon2id_with_its_own_salt_and_matches_its_password_alone(hasher: PasswordHasher) -> None:
    first, second = await hasher.hash(b"one"), await hasher.hash(b"one")
    assert first.startswith("$argon2id$v=19$m=64,t=1,p=1$")
    assert first != second
    assert await matches(hasher, b"one", first)
    assert not await matches(hasher, b"two", first)


@pytest.mark.requirement("R50")
async def test_a_hash_of_another_cost_is_outdated(pool: HashPool, hasher: PasswordHasher) -> None:
    dearer = PasswordHasher(HashParameters(memory_kib=128, iterations=1), pool, SystemRandomness())
    made = await hasher.hash(b"one")
    assert not hasher.is_outdated(made)
    assert dearer.is_outdated(made)
    assert await matches(dearer, b"one", made)


@pytest.mark.requirement("R50")
async def test_an_unknown_name_costs_a_real_hash_with_the_current_parameters(hasher: PasswordHasher) -> None:
    assert not await matches(hasher, b"one", None)
    assert hasher._dummy_hash().startswith("$argon2id$v=19$m=64,t=1,p=1$")


@pytest.mark.requirement("R52")
async def test_what_exceeds_the_queue_is_refused_at_once_with_a_delay(pool: HashPool, release: threading.Event) -> None:
    admitted = [asyncio.ensure_future(pool.run(release.wait)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refused:
        await pool.run(release.wait)
    assert refused.value.retry_after_seconds >= 1
    release.set()
    assert await asyncio.gather(*admitted) == [True, True, True]
    assert await pool.run(lambda: "free again") == "free again"


@pytest.mark.requirement("R51")
@pytest.mark.requirement("R52")
async def test_one_origin_holds_half_of_the_places_and_leaves_the_others_theirs(
    pool: HashPool, release: threading.Event
) -> None:
    flood = [asyncio.ensure_future(pool.run(release.wait, "192.0.2.7")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await pool.run(release.wait, "192.0.2.7")
    other = asyncio.ensure_future(pool.run(release.wait, "192.0.2.8"))
    await asyncio.sleep(0)
    assert pool.held == 3
    release.set()
    assert await asyncio.gather(*flood, other) == [True, True, True]
    assert await pool.run(lambda: "free again", "192.0.2.7") == "free again"
    assert not pool._held_by


@pytest.mark.requirement("R52")
async def test_a_caller_who_leaves_does_not_free_the_place_that_their_hash_still_takes(
    pool: HashPool, release: threading.Event
) -> None:
    started = threading.Event()

    def work() -> None:
        started.set()
        release.wait()

    caller = asyncio.ensure_future(pool.run(work))
    await asyncio.to_thread(started.wait)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert pool.held == 1
    release.set()
    assert await pool.run(lambda: True)
    assert pool.held == 0


@pytest.mark.requirement("R52")
async def test_a_place_that_is_left_unused_is_free_again(pool: HashPool) -> None:
    with pool.hold("192.0.2.7"):
        assert pool.held == 1
    assert pool.held == 0
    with pool.hold("192.0.2.7") as place:
        assert await place.run(lambda: True)
    assert pool.held == 0
    assert not pool._held_by
