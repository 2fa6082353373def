"""The streams of one replica, each with the same bytes: serialised once, and bounded.

Each change goes to every stream, and each second a heartbeat that lets receivers prove that they missed nothing. A
stream that does not keep up is cut: its peer comes back and resumes. One that cannot be resumed gets a snapshot, a few
streams at a time, and then what changed since; those that wait get a sign of life each second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Sequence
from typing import Protocol

from identity.feed import events
from identity.feed.events import Change
from identity.feed.log import Log
from identity.feed.snapshots import Snapshots
from identity.feed.subscription import Subscription
from identity.feed.turns import Peer, Turns
from identity.v1 import trust_pb2
from identity_client.clock import Clock
from identity_client.errors import DependencyDown
from identity_client.trust.state import TrustState

_log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
STALL_SECONDS = 10.0
"""A stream that takes nothing of its snapshot for so long gives its turn to another."""


class Reader(Protocol):
    """Who reads the feed into the trust state."""

    @property
    def data_age(self) -> float:
        """Seconds since the feed was read; infinite before it ever was."""

    async def catch_up(self, version: int) -> None:
        """Read on to *version*, which a peer holds already. Raises DependencyDown."""


class Streams:
    """Opens, feeds and cuts them. Lives on one event loop."""

    def __init__(self, reader: Reader, state: TrustState, clock: Clock) -> None:
        self._reader = reader
        self._state = state
        self._clock = clock
        self._subscriptions: set[Subscription] = set()
        self._openings: dict[Subscription, asyncio.Task[None]] = {}
        self._turns = Turns()
        self._recent = Log()
        self._snapshots = Snapshots(state, self._recent, clock)
        self._keys_event = b""
        self._beat_time = -math.inf
        self._beating: asyncio.Task[None] | None = None
        self._is_ending = False

    def __len__(self) -> int:
        """How many are open."""
        return len(self._subscriptions)

    @property
    def heartbeat_age(self) -> float:
        """Seconds since they had their last heartbeat."""
        return self._clock.monotonic() - self._beat_time

    def start(self) -> None:
        """Send heartbeats from now on."""
        self._beating = asyncio.create_task(self._beat())

    def end(self) -> None:
        """End every stream, and refuse new ones: the service is about to stop, and its peers come back elsewhere."""
        self._is_ending = True
        self._cut()

    async def stop(self) -> None:
        """End the tasks; streams end with their RPCs."""
        tasks = [*([self._beating] if self._beating else []), *self._openings.values()]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def subscribe(self, epoch: str, version: int, peer: Peer) -> Subscription:
        """A stream that starts from what *peer* holds, or from a snapshot. Raises DependencyDown while stopping."""
        if self._is_ending:
            raise DependencyDown("The service is stopping: open the stream again.")
        subscription = Subscription([self._keys_event])
        self._subscriptions.add(subscription)
        if epoch == self._state.epoch and self._recent.holds_since(version):
            self._join(subscription, version)
        else:
            opening = asyncio.create_task(self._open(subscription, epoch, version, peer))
            self._openings[subscription] = opening
            opening.add_done_callback(lambda _: self._openings.pop(subscription, None))
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a stream."""
        self._subscriptions.discard(subscription)
        opening = self._openings.get(subscription)
        if opening is not None:
            opening.cancel()

    # -- what is read ------------------------------------------------------------------------------------------

    def begin_anew(self, version: int) -> None:
        """The state was read as a whole: whoever follows what was held before is cut."""
        self._recent.start(version)
        self._cut()

    def tell_changes(self, changes: Sequence[Change]) -> None:
        """Send changes that follow, and remember them for those that come."""
        self._recent.extend(changes)
        for event in events.changes(changes):
            self._send(event)

    def tell_keys(self, event: bytes) -> None:
        """Send a set of keys, also to streams that wait for their snapshot, and first of all to those that come."""
        self._keys_event = event
        for subscription in self._subscriptions:
            subscription.put(event)

    # -- opening -----------------------------------------------------------------------------------------------

    async def _open(self, subscription: Subscription, epoch: str, version: int, peer: Peer) -> None:
        """Bring a stream to where it can follow: by a snapshot, in its turn, unless reading on is enough."""
        try:
            if epoch == self._state.epoch and version > self._state.version:
                await self._reader.catch_up(version)
            if epoch != self._state.epoch or not self._recent.holds_since(version):
                version = await self._transfer(subscription, peer)
            self._join(subscription, version)
        except DependencyDown:
            subscription.cut()
        except Exception:
            _log.exception("a stream could not be opened")
            subscription.cut()

    async def _transfer(self, subscription: Subscription, peer: Peer) -> int:
        """Send a snapshot; -> its version."""
        async with self._turns.turn(peer):
            snapshot = await self._snapshots.current()
            subscription.extend(snapshot.events)
            await subscription.drained(STALL_SECONDS)
        return snapshot.version

    def _join(self, subscription: Subscription, version: int) -> None:
        """What changed since *version*, then everything as it comes: nothing can happen in between."""
        if not self._recent.holds_since(version):  # changes came faster than the snapshot went
            subscription.cut()
            return
        subscription.extend([*self._recent.events_since(version), self._heartbeat()])
        subscription.is_live = True

    # -- sending -----------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self._send(self._heartbeat())
            self._beat_time = self._clock.monotonic()
            for subscription in self._subscriptions:
                if not subscription.is_live and subscription.is_idle:
                    subscription.put(events.SIGN_OF_LIFE)

    def _send(self, event: bytes) -> None:
        for subscription in self._subscriptions:
            if subscription.is_live:
                subscription.put(event)

    def _cut(self) -> None:
        for subscription in self._subscriptions:
            subscription.cut()

    def _heartbeat(self) -> bytes:
        now = self._clock.now()
        # The clock may step back; what was forgotten stays forgotten.
        self._state.expire(max(int(now), self._state.expired_through))
        count, digest = self._state.digest()
        heartbeat = trust_pb2.Heartbeat(
            epoch=self._state.epoch, version=self._state.version, entry_count=count, digest=digest
        )
        heartbeat.server_time.FromMicroseconds(int(now * 1_000_000))
        heartbeat.expired_through.FromSeconds(self._state.expired_through)
        heartbeat.data_age.FromMicroseconds(int(self._reader.data_age * 1_000_000))
        return trust_pb2.WatchTrustResponse(heartbeat=heartbeat).SerializeToString()
