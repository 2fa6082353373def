"""The trust state on its way out: one copy for this replica's own guard, and the same bytes for every stream.

One task reads the feed from SQL, when the doorbell rings and at least four times a second, applies it to the state and
hands each stream the change, serialised once. Each second it sends a heartbeat that lets receivers prove that they
missed nothing. A stream that does not keep up is cut: its peer comes back and resumes. One that cannot be resumed gets
a snapshot, a few streams at a time, and then what changed since; those that wait get a sign of life each second.

Keys ride the same streams. The set is read twice a second, whenever this replica has changed it, and before anybody is
told of a revoked key.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable

from identity.domain.ports import RevocationStore
from identity.feed import events
from identity.feed.log import Log
from identity.feed.snapshots import Snapshots
from identity.feed.subscription import Subscription
from identity.feed.turns import Peer, Turns
from identity.v1 import trust_pb2
from identity_client.clock import Clock
from identity_client.errors import DependencyDown
from identity_client.tokens.keys import PublicKey
from identity_client.trust import wire
from identity_client.trust.entries import EntryKind
from identity_client.trust.state import TrustGap, TrustState

_log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
RENEWAL_SECONDS = 60.0
"""A new epoch cuts every stream: whoever claims to know more than we do has one at most so often."""

KEYS_SECONDS = 0.5
"""How often the keys and the epoch are read: what another replica changes is known here within a second."""
HEARTBEAT_SECONDS = 1.0
PUBLISH_WAIT_SECONDS = 1.0
COALESCE_SECONDS = 0.002
STALL_SECONDS = 10.0
"""A stream that takes nothing of its snapshot for so long gives its turn to another."""

_READ_LIMIT = events.PART_ENTRIES


ReadKeys = Callable[[], Awaitable[list[PublicKey]]]
"""Answers the published keys as they are committed. Raises DependencyDown."""


class Hub:
    """Reads the feed, keeps the trust state, serves the streams. Lives on one event loop."""

    def __init__(
        self,
        store: RevocationStore,
        state: TrustState,
        clock: Clock,
        renew_epoch: Callable[[str], Awaitable[bool]],
    ) -> None:
        """*renew_epoch* begins a new epoch after the one given. Raises DependencyDown."""
        self.state = state
        self._renew_epoch = renew_epoch
        self._renewed_at = -math.inf
        self._store = store
        self._clock = clock
        self._issuer = ""
        self._doorbell = asyncio.Event()
        self._advanced = asyncio.Condition()
        self._subscriptions: set[Subscription] = set()
        self._openings: dict[Subscription, asyncio.Task[None]] = {}
        self._turns = Turns()
        self._recent = Log()
        self._snapshots = Snapshots(state, self._recent, clock)
        self._read_keys: ReadKeys
        self._keys_event = b""
        self._keys_turn = asyncio.Lock()
        self._looked_at = -math.inf
        self._read_time = self._beat_time = -math.inf
        self._is_ending = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, issuer: str, read_keys: ReadKeys) -> None:
        """Load keys and revocations, then follow. Raises DependencyDown."""
        self._issuer, self._read_keys = issuer, read_keys
        await self._load_keys()
        await self._load()
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._beat())]

    @property
    def data_age(self) -> float:
        """Seconds since the feed was read; infinite before it ever was."""
        return self._clock.monotonic() - self._read_time

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the streams had their last heartbeat."""
        return self._clock.monotonic() - self._beat_time

    @property
    def subscriber_count(self) -> int:
        """How many streams are open."""
        return len(self._subscriptions)

    def end_streams(self) -> None:
        """End every stream, and refuse new ones: the service is about to stop, and its peers come back elsewhere."""
        self._is_ending = True
        self._cut_streams()

    async def stop(self) -> None:
        """End the tasks; streams end with their RPCs."""
        tasks = [*self._tasks, *self._openings.values()]
        for task in tasks:
            task.cancel()
        for task in tasks:
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

    async def keys_changed(self) -> None:
        """Return once the committed set of keys is in force here (see domain.feed.Feed)."""
        with contextlib.suppress(DependencyDown, TimeoutError):
            async with asyncio.timeout(PUBLISH_WAIT_SECONDS):
                await self._load_keys()

    async def set_back(self) -> None:
        """SQL knows less than was said before: a new epoch, and an alarm (see domain.feed.Feed)."""
        now = asyncio.get_running_loop().time()
        if now - self._renewed_at < RENEWAL_SECONDS:
            return
        self._renewed_at = now
        _log.error(
            "the database was set back: what was revoked since is forgotten. Run `identity fence`, unless it was done"
        )
        with contextlib.suppress(DependencyDown):
            await self._renew_epoch(self.state.epoch)
            self._looked_at = -math.inf
            self.ring()

    def subscribe(self, epoch: str, version: int, peer: Peer) -> Subscription:
        """A stream that starts from what *peer* holds, or from a snapshot. Raises DependencyDown while stopping."""
        if self._is_ending:
            raise DependencyDown("The service is stopping: open the stream again.")
        subscription = Subscription([self._keys_event])
        self._subscriptions.add(subscription)
        if epoch == self.state.epoch and self._recent.holds_since(version):
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

    # -- reading -----------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        """Read everything anew; streams that follow what was held before are cut."""
        read_time = self._clock.monotonic()
        epoch, version, batches = await self._store.live_entries()
        self.state.begin_snapshot(epoch, version, sum(map(len, batches)))
        for batch in batches:
            self.state.add_snapshot(batch)
            await asyncio.sleep(0)  # a million entries take a second: in between, others have their turn
        if self.state.is_arriving:
            self.state.swap()
        self._recent.start(version)
        self._cut_streams()
        self._note_read(read_time)

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                # Not asyncio.wait_for: before Python 3.12 it can swallow the cancellation that stop() waits for.
                async with asyncio.timeout(POLL_SECONDS):
                    await self._doorbell.wait()
            self._doorbell.clear()
            try:
                await self._look()
                while await self._read() == _READ_LIMIT:
                    pass  # more is waiting
            except DependencyDown:
                # data_age grows in every heartbeat, so peers learn how old the state is.
                _log.warning("the feed cannot be read; peers see the age of the data grow")
            except TrustGap:
                _log.error("the feed has a gap: it is loaded anew, and every stream with it")
                with contextlib.suppress(DependencyDown):  # then the next read finds the gap again
                    await self._load()
            except Exception:
                # Whatever it is, following goes on: a hub that stands still would close every guard in a while.
                _log.exception("the feed could not be followed")
            await asyncio.sleep(COALESCE_SECONDS)  # what is committed meanwhile shares the next message

    async def _look(self) -> None:
        """See whether another replica, or a command, has changed the keys or the epoch."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at < KEYS_SECONDS:
            return
        self._looked_at = now
        await self._load_keys()
        epoch, version = await self._store.head()
        if epoch != self.state.epoch:
            _log.warning("the feed has a new epoch: it is loaded anew, and every stream with it")
            await self._load()
        elif version < self.state.version:
            raise TrustGap(f"the feed ends at {version}, and was at {self.state.version}")

    async def _load_keys(self) -> None:
        """Read the keys; tell every stream of a set that is another. One at a time: the last to begin has the last
        word."""
        async with self._keys_turn:
            keys = await self._read_keys()
            revision = self.state.revision
            self.state.set_keys(self._issuer, keys)
            if self.state.revision == revision:
                return
            event = trust_pb2.WatchTrustResponse(keys=wire.key_set_message(self._issuer, keys))
            self._keys_event = event.SerializeToString()
            for subscription in self._subscriptions:
                subscription.put(self._keys_event)

    async def _read(self) -> int:
        read_time = self._clock.monotonic()
        changes = await self._store.entries_since(self.state.version, _READ_LIMIT)
        self._note_read(read_time)
        if not changes:
            return 0
        if any(entry.kind is EntryKind.KEY for _, entry in changes):
            # The key's successor comes first: from now on it signs here, and its tokens shall be known.
            await self.keys_changed()
        self.state.apply(changes[0][0], changes[-1][0], [entry for _, entry in changes])
        self._recent.extend(changes)
        for event in events.changes(changes):
            self._send(event)
        async with self._advanced:
            self._advanced.notify_all()
        return len(changes)

    def _note_read(self, read_time: float) -> None:
        self._read_time = read_time
        self.state.touch(self._clock.monotonic() - read_time)

    # -- opening -----------------------------------------------------------------------------------------------

    async def _open(self, subscription: Subscription, epoch: str, version: int, peer: Peer) -> None:
        """Bring a stream to where it can follow: by a snapshot, in its turn, unless reading on is enough."""
        try:
            if epoch == self.state.epoch and version > self.state.version:
                await self._catch_up(version)
            if epoch != self.state.epoch or not self._recent.holds_since(version):
                version = await self._transfer(subscription, peer)
            self._join(subscription, version)
        except DependencyDown:
            subscription.cut()
        except Exception:
            _log.exception("a stream could not be opened")
            subscription.cut()

    async def _catch_up(self, version: int) -> None:
        """A peer comes from another replica, which has read more than we have: read on before it is sent anything.

        Raises DependencyDown where we cannot read: an older snapshot would revive what the peer knows to be revoked.
        """
        await self.published(version)
        if version > self.state.version:
            if self.data_age > PUBLISH_WAIT_SECONDS:
                raise DependencyDown
            _log.error("a peer holds version %d, the feed ends at %d", version, self.state.version)
            await self.set_back()

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

    def _cut_streams(self) -> None:
        for subscription in self._subscriptions:
            subscription.cut()

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
        heartbeat.data_age.FromMicroseconds(int(self.data_age * 1_000_000))
        return trust_pb2.WatchTrustResponse(heartbeat=heartbeat).SerializeToString()
