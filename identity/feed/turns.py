"""Whose snapshot is sent next. Each connection in its turn, and never all of them for one credential: a peer that asks
for snapshots in a loop waits for itself, not others for it."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

TURNS = 4
TURNS_OF_A_GRANT = TURNS - 1
"""The last one is always for the holders of another credential."""


class Peer(NamedTuple):
    """Who opens a stream: the grant behind the token, and the connection it comes by."""

    grant_id: str
    connection: str


class Turns:
    """TURNS at a time; a free one goes to the connection that has waited longest since its last."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()  # by grant
        self._waiting: dict[Peer, deque[asyncio.Future[None]]] = {}  # in the order of their next turns

    @asynccontextmanager
    async def turn(self, peer: Peer) -> AsyncIterator[None]:
        """Around what is done in a turn."""
        await self._take(peer)
        try:
            yield
        finally:
            self._give_back(peer)

    async def _take(self, peer: Peer) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(peer, deque()).append(mine)
        self._hand_out()
        try:
            await mine
        except asyncio.CancelledError:
            if not mine.cancelled():  # it came at the same moment
                self._give_back(peer)
            raise

    def _give_back(self, peer: Peer) -> None:
        self._taken[peer.grant_id] -= 1
        if not self._taken[peer.grant_id]:
            del self._taken[peer.grant_id]
        self._hand_out()

    def _hand_out(self) -> None:
        for peer in tuple(self._waiting):
            if self._taken.total() >= TURNS:
                return
            if self._taken[peer.grant_id] < TURNS_OF_A_GRANT:
                self._next_of(peer)

    def _next_of(self, peer: Peer) -> None:
        waiting = self._waiting.pop(peer)
        while waiting:
            mine = waiting.popleft()
            if not mine.cancelled():
                mine.set_result(None)
                self._taken[peer.grant_id] += 1
                break
        if waiting:
            self._waiting[peer] = waiting  # behind the others
