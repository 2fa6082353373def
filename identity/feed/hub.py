"""The trust state on its way out: one copy for this replica's own guard, and the same bytes for every stream.

One task reads the feed from SQL, when the doorbell rings and at least four times a second, applies it to the state and
hands each stream the change, serialised once. Each second it sends a heartbeat that lets receivers prove that they
missed nothing. A stream that does not keep up is cut: its peer comes back and resumes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Iterable

from identity.domain.ports import RevocationStore
from identity.v1 import trust_pb2
from identity_client.clock import Clock
from identity_client.errors import DependencyDown
from identity_client.tokens.keys import PublicKey
from identity_client.trust import wire
from identity_client.trust.entries import Entry
from identity_client.trust.state import TrustGap, TrustState

_log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
HEARTBEAT_SECONDS = 1.0
PUBLISH_WAIT_SECONDS = 1.0
COALESCE_SECONDS = 0.002

_READ_LIMIT = 5_000
_PART_ENTRIES = 2_500  # at 20 bytes each, a part stays below the 64 KiB message limit
_RESUME_ENTRIES = 100_000
_QUEUED_EVENTS = 1_000


class Subscription:
    """One stream's queue of serialised events."""

    def __init__(self, opening: Iterable[bytes]) -> None:
        self._events: asyncio.Queue[bytes] = asyncio.Queue()
        for event in opening:
            self._events.put_nowait(event)
        self._limit = self._events.qsize() + _QUEUED_EVENTS
        self._is_cut = False

    def put(self, event: bytes) -> None:
        """Queue an event, or cut the stream when it is too far behind."""
        if self._is_cut:
            return
        if self._events.qsize() >= self._limit:
            self.cut()
        else:
            self._events.put_nowait(event)

    def cut(self) -> None:
        """End the stream: what waits is dropped, and whoever waits for the next event is told."""
        self._is_cut = True
        while not self._events.empty():
            self._events.get_nowait()
        self._events.put_nowait(b"")

    async def next(self) -> bytes:
        """The next event, in order. Raises DependencyDown once the stream was cut."""
        event = await self._events.get()
        if self._is_cut:
            raise DependencyDown("The service ended this stream: open it again with the version you hold.")
        return event


class Hub:
    """Reads the feed, keeps the trust state, serves the streams. Lives on one event loop."""

    def __init__(self, store: RevocationStore, state: TrustState, clock: Clock) -> None:
        self.state = state
        self._store = store
        self._clock = clock
        self._doorbell = asyncio.Event()
        self._advanced = asyncio.Condition()
        self._subscriptions: set[Subscription] = set()
        self._recent: deque[tuple[int, Entry]] = deque(maxlen=_RESUME_ENTRIES)
        self._snapshot: tuple[str, int, list[bytes]] | None = None
        self._keys_event = b""
        self._read_time = -math.inf
        self._is_ending = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, issuer: str, keys: list[PublicKey]) -> None:
        """Load keys and revocations, then follow. Raises DependencyDown."""
        self.state.set_keys(issuer, keys)
        event = trust_pb2.WatchTrustResponse(keys=wire.key_set_message(issuer, keys))
        self._keys_event = event.SerializeToString()
        await self._load()
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._beat())]

    def end_streams(self) -> None:
        """End every stream, and refuse new ones: the service is about to stop, and its peers come back elsewhere."""
        self._is_ending = True
        for subscription in self._subscriptions:
            subscription.cut()

    async def stop(self) -> None:
        """End the tasks; streams end with their RPCs."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def ring(self) -> None:
        """The doorbell: something was committed."""
        self._doorbell.set()

    async def published(self, version: int | None) -> None:
        """Return once *version* is in force here (see domain.feed.Feed)."""
        if version is None:
            return
        self.ring()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PUBLISH_WAIT_SECONDS), self._advanced:
                await self._advanced.wait_for(lambda: self.state.version >= version)

    def subscribe(self, epoch: str, version: int) -> Subscription:
        """A stream that starts from what its peer holds, or from a snapshot. Raises DependencyDown while stopping."""
        if self._is_ending:
            raise DependencyDown("The service is stopping: open the stream again.")
        opening = (self._keys_event, *self._opening_events(epoch, version), self._heartbeat())
        subscription = Subscription(opening)
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a stream."""
        self._subscriptions.discard(subscription)

    # -- reading -----------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        read_time = self._clock.monotonic()
        epoch, version, entries = await self._store.live_entries()
        self.state.begin_snapshot(epoch, version, len(entries))
        self.state.add_snapshot(entries)
        self._note_read(read_time)

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                # Not asyncio.wait_for: before Python 3.12 it can swallow the cancellation that stop() waits for.
                async with asyncio.timeout(POLL_SECONDS):
                    await self._doorbell.wait()
            self._doorbell.clear()
            try:
                while await self._read() == _READ_LIMIT:
                    pass  # more is waiting
            except DependencyDown:
                # data_age grows in every heartbeat, so peers learn how old the state is.
                _log.warning("the feed cannot be read; peers see the age of the data grow")
            except TrustGap:
                _log.error("the feed has a gap: it is loaded anew, and every stream with it")
                await self._start_over()
            except Exception:
                # Whatever it is, following goes on: a hub that stands still would close every guard in a while.
                _log.exception("the feed could not be followed")
            await asyncio.sleep(COALESCE_SECONDS)  # what is committed meanwhile shares the next message

    async def _start_over(self) -> None:
        for subscription in self._subscriptions:
            subscription.cut()
        self._recent.clear()
        with contextlib.suppress(DependencyDown):  # then the next read finds the gap again
            await self._load()

    async def _read(self) -> int:
        read_time = self._clock.monotonic()
        changes = await self._store.entries_since(self.state.version, _READ_LIMIT)
        self._note_read(read_time)
        if not changes:
            return 0
        first, last = changes[0][0], changes[-1][0]
        self.state.apply(first, last, [entry for _, entry in changes])
        self._recent.extend(changes)
        for event in _change_events(changes):
            self._send(event)
        async with self._advanced:
            self._advanced.notify_all()
        return len(changes)

    def _note_read(self, read_time: float) -> None:
        self._read_time = read_time
        self.state.touch(self._clock.monotonic() - read_time)

    # -- sending -----------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self._send(self._heartbeat())

    def _send(self, event: bytes) -> None:
        for subscription in self._subscriptions:
            subscription.put(event)

    def _heartbeat(self) -> bytes:
        now = self._clock.now()
        # The clock may step back; what was forgotten stays forgotten.
        self.state.expire(max(int(now), self.state.expired_through))
        count, digest = self.state.digest()
        heartbeat = trust_pb2.Heartbeat(
            epoch=self.state.epoch, version=self.state.version, entry_count=count, digest=digest
        )
        heartbeat.server_time.FromMicroseconds(int(now * 1_000_000))
        heartbeat.expired_through.FromSeconds(self.state.expired_through)
        heartbeat.data_age.FromMicroseconds(int((self._clock.monotonic() - self._read_time) * 1_000_000))
        return trust_pb2.WatchTrustResponse(heartbeat=heartbeat).SerializeToString()

    def _opening_events(self, epoch: str, version: int) -> Iterable[bytes]:
        if epoch != self.state.epoch or not self._holds_since(version):
            return self._snapshot_events()
        return _change_events([change for change in self._recent if change[0] > version])

    def _holds_since(self, version: int) -> bool:
        if version > self.state.version:
            _log.error("a peer holds version %d, the feed ends at %d: SQL was set back", version, self.state.version)
            return False
        oldest = self._recent[0][0] if self._recent else self.state.version + 1
        return version >= oldest - 1

    def _snapshot_events(self) -> list[bytes]:
        state = self.state
        if self._snapshot is None or self._snapshot[:2] != (state.epoch, state.version):
            entries = list(state.entries())
            start = trust_pb2.SnapshotStart(epoch=state.epoch, version=state.version, entry_count=len(entries))
            parts = [_part_event(part) for part in _split(entries)]
            events = [trust_pb2.WatchTrustResponse(snapshot_start=start).SerializeToString(), *parts]
            self._snapshot = (state.epoch, state.version, events)
        return self._snapshot[2]


def _split(entries: list[Entry]) -> Iterable[list[Entry]]:
    return (entries[at : at + _PART_ENTRIES] for at in range(0, len(entries), _PART_ENTRIES))


def _part_event(entries: list[Entry]) -> bytes:
    return trust_pb2.WatchTrustResponse(snapshot_part=wire.pack(entries)).SerializeToString()


def _change_events(changes: list[tuple[int, Entry]]) -> list[bytes]:
    events = []
    for at in range(0, len(changes), _PART_ENTRIES):
        part = changes[at : at + _PART_ENTRIES]
        message = trust_pb2.RevocationChanges(
            first_version=part[0][0], last_version=part[-1][0], entries=wire.pack([entry for _, entry in part])
        )
        events.append(trust_pb2.WatchTrustResponse(changes=message).SerializeToString())
    return events
