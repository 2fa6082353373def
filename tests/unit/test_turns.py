"""Turns at the snapshot: bounded, fair between connections, and never all for one credential."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from identity.feed.turns import TURNS, TURNS_OF_A_GRANT, Peer, Turns


class Queue:
    """Streams that keep their turn until they are told to end."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.order: list[Peer] = []
        self._ends: list[tuple[Peer, asyncio.Event]] = []
        self._tasks: list[asyncio.Task[None]] = []

    def join(self, peer: Peer) -> asyncio.Task[None]:
        task = asyncio.create_task(self._take_turn(peer))
        self._tasks.append(task)
        return task

    async def end(self, peer: Peer) -> None:
        """End the turn of *peer* that has lasted longest."""
        held = next(each for each in self._ends if each[0] == peer)
        self._ends.remove(held)
        held[1].set()
        await self.settle()

    async def settle(self) -> None:
        """Let everybody act who can."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take_turn(self, peer: Peer) -> None:
        async with self.turns.turn(peer):
            end = asyncio.Event()
            self.order.append(peer)
            self._ends.append((peer, end))
            await end.wait()


@asynccontextmanager
async def queue_of(*peers: Peer) -> AsyncIterator[Queue]:
    queue = Queue()
    for peer in peers:
        queue.join(peer)
    await queue.settle()
    yield queue
    await queue.close()


FAULTY = Peer("faulty", "1")
OTHERS = [Peer(f"other {number}", str(number)) for number in range(3)]


async def test_one_credential_never_has_all_turns() -> None:
    async with queue_of(*[FAULTY] * 50) as queue:
        assert queue.order == [FAULTY] * TURNS_OF_A_GRANT
        queue.join(OTHERS[0])
        await queue.settle()
        assert queue.order[-1] == OTHERS[0]


async def test_many_connections_of_a_credential_have_no_more_turns_than_one() -> None:
    async with queue_of(*(Peer("faulty", str(number)) for number in range(50))) as queue:
        assert len(queue.order) == TURNS_OF_A_GRANT < TURNS


async def test_a_free_turn_goes_to_whom_has_waited_longest_since_the_last() -> None:
    async with queue_of(FAULTY, *OTHERS, *[FAULTY] * 9, *OTHERS) as queue:
        assert queue.order == [FAULTY, *OTHERS]
        for peer in (FAULTY, *OTHERS):
            await queue.end(peer)
        assert queue.order[TURNS:] == [FAULTY, *OTHERS]


async def test_connections_of_one_credential_take_turns() -> None:
    calm, faulty = Peer("orders", "calm"), Peer("orders", "faulty")
    async with queue_of(*[faulty] * 20, calm) as queue:
        await queue.end(faulty)
        await queue.end(faulty)
        assert calm in queue.order


@pytest.mark.parametrize("is_served", [True, False])
async def test_who_leaves_gives_the_turn_or_the_place_back(is_served: bool) -> None:
    async with queue_of() as queue:
        first = queue.join(FAULTY)
        await queue.settle()
        waiting = [queue.join(peer) for peer in (FAULTY, FAULTY, FAULTY)]
        await queue.settle()
        assert len(queue.order) == TURNS_OF_A_GRANT
        (first if is_served else waiting[-1]).cancel()
        await queue.settle()
        assert len(queue.order) == TURNS_OF_A_GRANT + is_served
        for peer in OTHERS:
            queue.join(peer)
        await queue.settle()
        assert queue.order[-1] == OTHERS[0]


async def test_who_left_while_waiting_is_passed_over() -> None:
    async with queue_of(*OTHERS, FAULTY) as queue:
        leaving, staying = queue.join(FAULTY), queue.join(FAULTY)
        await queue.settle()
        leaving.cancel()
        await queue.settle()
        await queue.end(OTHERS[0])
        assert queue.order[TURNS:] == [FAULTY]
        assert not staying.done()


async def test_who_is_cancelled_at_the_moment_of_the_turn_gives_it_back() -> None:
    async with queue_of(*OTHERS) as queue:
        async with queue.turns.turn(FAULTY):
            unlucky = queue.join(FAULTY)
            await queue.settle()
        unlucky.cancel()  # its turn is granted, but it has not run since
        await queue.settle()
        assert queue.order == OTHERS
        queue.join(FAULTY)
        await queue.settle()
        assert queue.order == [*OTHERS, FAULTY]


async def test_turns_come_back_from_work_that_fails() -> None:
    async with queue_of() as queue:
        for _ in range(TURNS + 1):  # with one lost in each round none would be left
            with pytest.raises(ValueError, match="its own"):
                async with queue.turns.turn(FAULTY):
                    raise ValueError("its own")
        for peer in (*OTHERS, FAULTY):
            queue.join(peer)
        await queue.settle()
        assert queue.order == [*OTHERS, FAULTY]
