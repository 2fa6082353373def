"""A limit on time that many calls share: each is ended by itself, and nobody else's cancellation is mistaken for it."""

from __future__ import annotations

import asyncio

import pytest

from identity.rpc.time_limits import TimeLimit

LONG = 3_600.0
SHORT = 0.02


async def stuck() -> None:
    await asyncio.Event().wait()


async def test_what_takes_too_long_is_ended_and_what_does_not_is_left_alone() -> None:
    limit = TimeLimit(SHORT)
    for _ in range(2):  # the timer is set anew for those that come after it
        late = [asyncio.create_task(limit.run(stuck())) for _ in range(3)]
        assert await limit.run(asyncio.sleep(0, "done")) == "done"
        assert [type(end) for end in await asyncio.gather(*late, return_exceptions=True)] == [TimeoutError] * 3
    assert not len(limit)


async def test_each_is_ended_at_its_own_time() -> None:
    limit, ended = TimeLimit(SHORT), list[int]()

    async def run(number: int) -> None:
        await asyncio.sleep(number * SHORT / 2)
        with pytest.raises(TimeoutError):
            await limit.run(stuck())
        ended.append(number)

    await asyncio.gather(*(run(number) for number in (1, 0)))
    assert ended == [0, 1]


async def test_a_task_goes_on_after_its_time_was_over() -> None:
    limit = TimeLimit(SHORT)

    async def run() -> int:
        with pytest.raises(TimeoutError):
            await limit.run(stuck())
        async with asyncio.timeout(LONG):  # would take a cancellation that was left over for its own
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert await asyncio.create_task(run()) == 0


async def test_a_caller_who_leaves_is_no_late_call() -> None:
    task = asyncio.create_task(TimeLimit(LONG).run(stuck()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_caller_who_leaves_at_the_very_end_has_left() -> None:
    limit = TimeLimit(LONG)
    task = asyncio.create_task(limit.run(stuck()))
    await asyncio.sleep(0)
    limit.end_longest(0.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_longest_gives_way_unless_it_has_just_begun() -> None:
    limit = TimeLimit(LONG)
    first, second = (asyncio.create_task(limit.run(stuck())) for _ in range(2))
    await asyncio.sleep(0)
    limit.end_longest(LONG)
    assert len(limit) == 2
    limit.end_longest(0.0)
    assert len(limit) == 1
    await asyncio.sleep(0)  # it is told so in the next turn of the loop
    assert isinstance(first.exception(), TimeoutError)
    assert not second.done()
    second.cancel()


async def test_what_fails_fails_as_it_does() -> None:
    async def fail() -> None:
        raise ValueError("its own")

    limit = TimeLimit(LONG)
    with pytest.raises(ValueError, match="its own"):
        await limit.run(fail())
    assert not len(limit)
