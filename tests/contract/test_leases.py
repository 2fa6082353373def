"""Leases: one holder at a time, whoever asks at once; free again when they expire or are given back."""

from __future__ import annotations

import asyncio

import pytest

from identity.storage.database import Stores
from tests.clients.issuer import FixedClock
from tests.contract.builders import dump


async def test_of_many_who_ask_at_once_one_has_the_lease(stores: Stores) -> None:
    taken = await asyncio.gather(*(stores.leases.take("job", f"replica{n}", 30) for n in range(20)))
    assert sum(taken) == 1


async def test_a_lease_is_its_holders_until_it_expires(stores: Stores, clock: FixedClock) -> None:
    assert await stores.leases.take("job", "one", 30)
    clock.advance(29)
    assert not await stores.leases.take("job", "other", 30)
    clock.advance(1)
    assert await stores.leases.take("job", "other", 30)
    assert not await stores.leases.take("job", "one", 30)


async def test_a_holder_that_asks_in_time_keeps_the_lease(stores: Stores, clock: FixedClock) -> None:
    for _ in range(10):
        assert await stores.leases.take("job", "one", 30)
        clock.advance(20)
        assert not await stores.leases.take("job", "other", 30)


async def test_a_lease_in_the_first_half_of_its_time_costs_no_write(
    stores: Stores, clock: FixedClock, url: str
) -> None:
    await stores.leases.take("job", "one", 30)
    before = dump(url)
    clock.advance(14)
    assert await stores.leases.take("job", "one", 30)
    assert not await stores.leases.take("job", "other", 30)
    assert dump(url) == before


async def test_leases_of_different_jobs_are_apart_and_a_holder_that_stops_gives_all_back(stores: Stores) -> None:
    assert await stores.leases.take("job", "one", 30)
    assert await stores.leases.take("work", "other", 30)
    assert await stores.leases.take("more", "one", 30)
    await stores.leases.release("one")
    assert await stores.leases.take("job", "other", 30)
    assert await stores.leases.take("more", "other", 30)
    assert not await stores.leases.take("work", "one", 30)


@pytest.mark.parametrize("holder", ["one", "other"])
async def test_a_clock_that_is_behind_takes_no_lease_from_another(
    stores: Stores, clock: FixedClock, holder: str
) -> None:
    assert await stores.leases.take("job", "one", 30)
    clock.wall -= 100
    assert await stores.leases.take("job", holder, 30) == (holder == "one")
