"""What a ThrottleStore promises: nothing gets past a limit, in parallel and over several processes' stores included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from identity.domain.throttle import Attempt, Counter, Limit, Reservation
from identity.storage.database import Stores, open_stores
from identity.storage.sql.throttle import KNOWN_SECONDS, SqlThrottleStore
from identity_client.errors import Throttled
from tests.clients.issuer import FixedClock
from tests.contract.builders import count_rows

NAME = Limit(free=10, interval_ms=900_000)
ORIGIN = Limit(free=100, interval_ms=36_000)

pytestmark = pytest.mark.requirement("R51")


@pytest.fixture
async def other(stores: Stores, url: str, clock: FixedClock) -> AsyncIterator[Stores]:
    """The same database, opened a second time."""
    opened = await open_stores(url, clock)
    yield opened
    await opened.close()


def attempt(name: str = "carol", origin: str = "home") -> Attempt:
    """Keys of the real form: one byte for what is counted, then a digest."""
    return Attempt(
        name=Counter(b"n" + name.encode().ljust(16, b"."), NAME),
        origin=Counter(b"o" + origin.encode().ljust(16, b"."), ORIGIN),
        place=Counter(b"p" + f"{name}@{origin}".encode().ljust(16, b"."), NAME),
    )


async def guesses(store: SqlThrottleStore, many: int, what: Attempt | None = None) -> list[Reservation]:
    """So many failed attempts, one after the other; -> those that were let through."""
    admitted = []
    for _ in range(many):
        try:
            admitted.append(await store.reserve(what or attempt()))
        except Throttled:
            continue
    return admitted


async def test_what_is_free_is_let_through_and_the_rest_is_told_when_to_come_back(
    stores: Stores, clock: FixedClock
) -> None:
    assert len(await guesses(stores.throttle, 20)) == 10
    with pytest.raises(Throttled) as refused:
        await stores.throttle.reserve(attempt())
    assert refused.value.retry_after_seconds == 15
    clock.advance(15)
    assert len(await guesses(stores.throttle, 20)) == 1


async def test_of_200_guesses_at_once_over_two_stores_exactly_the_free_ones_are_let_through(
    stores: Stores, other: Stores
) -> None:
    calls = [store.throttle.reserve(attempt()) for store in (stores, other) for _ in range(100)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(outcome, Reservation) for outcome in outcomes) == 10
    assert sum(isinstance(outcome, Throttled) for outcome in outcomes) == 190


async def test_an_origin_is_stopped_however_many_names_it_tries_and_other_origins_are_not(stores: Stores) -> None:
    admitted = [len(await guesses(stores.throttle, 1, attempt(f"name-{number}"))) for number in range(150)]
    assert sum(admitted) == 100
    assert len(await guesses(stores.throttle, 1, attempt("name-149", "elsewhere"))) == 1


async def test_a_refused_attempt_counts_nowhere(stores: Stores) -> None:
    await guesses(stores.throttle, 10)
    await guesses(stores.throttle, 500)
    others = [len(await guesses(stores.throttle, 1, attempt(f"name-{number}"))) for number in range(100)]
    assert sum(others) == 90


async def test_counts_survive_a_restart(stores: Stores, url: str, clock: FixedClock) -> None:
    await guesses(stores.throttle, 10)
    await stores.close()
    again = await open_stores(url, clock)
    assert await guesses(again.throttle, 20) == []
    await again.close()


async def test_what_is_given_back_was_not_counted_and_leaves_no_row(stores: Stores, url: str) -> None:
    for _ in range(300):
        await stores.throttle.give_back(await stores.throttle.reserve(attempt()))
    assert count_rows(url, "throttle_buckets") == 0
    assert len(await guesses(stores.throttle, 20)) == 10


async def test_a_late_give_back_does_not_open_what_others_have_filled(stores: Stores) -> None:
    [early] = await guesses(stores.throttle, 1)
    assert len(await guesses(stores.throttle, 20)) == 9
    await stores.throttle.give_back(early)
    assert await guesses(stores.throttle, 20) == []


async def test_giving_back_what_is_forgotten_changes_nothing(stores: Stores, clock: FixedClock, url: str) -> None:
    [early] = await guesses(stores.throttle, 1)
    clock.advance(10 * 86_400)
    await stores.sweeper.sweep("", 100)
    await stores.throttle.give_back(early)
    assert count_rows(url, "throttle_buckets") == 0


async def test_where_the_owner_logged_in_lately_guesses_from_elsewhere_do_not_count(
    stores: Stores, clock: FixedClock
) -> None:
    [at_home] = await guesses(stores.throttle, 1)
    await stores.throttle.succeeded(at_home)
    assert len(await guesses(stores.throttle, 20, attempt(origin="elsewhere"))) == 10
    assert len(await guesses(stores.throttle, 20)) == 10
    clock.advance(KNOWN_SECONDS - 1)
    assert len(await guesses(stores.throttle, 20, attempt(origin="elsewhere"))) == 10
    clock.advance(1)
    assert await guesses(stores.throttle, 20) == []


async def test_a_success_forgets_the_failures_of_its_own_place_alone(stores: Stores) -> None:
    [first] = await guesses(stores.throttle, 1)
    await stores.throttle.succeeded(first)
    assert len(await guesses(stores.throttle, 9)) == 9
    [right] = await guesses(stores.throttle, 1)
    await guesses(stores.throttle, 20, attempt(origin="elsewhere"))
    await stores.throttle.succeeded(right)
    assert len(await guesses(stores.throttle, 20)) == 10
    assert await guesses(stores.throttle, 20, attempt(origin="elsewhere")) == []


@pytest.mark.parametrize("jump", [-86_400 * 365, -3_600, 3_600, 86_400 * 365])
async def test_a_clock_that_is_set_neither_locks_for_good_nor_opens_for_good(
    stores: Stores, clock: FixedClock, jump: int
) -> None:
    await guesses(stores.throttle, 20)
    clock.wall += jump
    assert len(await guesses(stores.throttle, 200)) <= 10
    for _ in range(10):
        clock.advance(900)
        assert 1 <= len(await guesses(stores.throttle, 20)) <= 2


async def test_drained_buckets_and_forgotten_places_are_swept(stores: Stores, clock: FixedClock, url: str) -> None:
    for number in range(50):
        [reservation] = await guesses(stores.throttle, 1, attempt(f"name-{number}"))
        if number % 2:
            await stores.throttle.succeeded(reservation)
    assert (count_rows(url, "throttle_buckets"), count_rows(url, "known_places")) == (26, 25)
    await stores.sweeper.sweep("", 100)
    assert (count_rows(url, "throttle_buckets"), count_rows(url, "known_places")) == (26, 25)
    clock.advance(KNOWN_SECONDS)
    await stores.sweeper.sweep("", 100)
    assert (count_rows(url, "throttle_buckets"), count_rows(url, "known_places")) == (0, 0)


async def test_the_table_shrinks_while_it_is_used(stores: Stores, clock: FixedClock, url: str) -> None:
    for number in range(40):
        await guesses(stores.throttle, 1, attempt(f"name-{number}", f"origin-{number}"))
    clock.advance(3_600)
    for number in range(40):
        await guesses(stores.throttle, 1, attempt(f"later-{number}", f"site-{number}"))
    assert count_rows(url, "throttle_buckets") == 80


async def test_invented_names_and_origins_beyond_the_row_limit_share_buckets_and_still_meet_their_limit(
    stores: Stores, clock: FixedClock, url: str
) -> None:
    small = SqlThrottleStore(stores.throttle._access, row_limit=20)
    [right] = await guesses(small, 1)
    await small.succeeded(right)
    for number in range(10):
        await guesses(small, 1, attempt(f"name-{number}", f"site-{number}"))
    clock.advance(10)
    admitted = [len(await guesses(small, 1, attempt(f"xx-{number}", f"yy-{number}"))) for number in range(60)]
    assert sum(admitted) == 10
    assert count_rows(url, "throttle_buckets") == 22
    assert len(await guesses(small, 1)) == 1
    assert len(await guesses(small, 20, attempt("name-0", "site-0"))) == 9
