"""The trust state on its way out: one copy for this replica's own guard, and the same bytes for every stream.

One task reads the feed from SQL, when the doorbell rings and at least four times a second, applies it to the state and
gives it to the streams (see streams.Streams).

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
from identity.feed.streams import Streams
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
PUBLISH_WAIT_SECONDS = 1.0
COALESCE_SECONDS = 0.002

_READ_LIMIT = events.PART_ENTRIES


ReadKeys = Callable[[], Awaitable[list[PublicKey]]]
"""Answers the published keys as they are committed. Raises DependencyDown."""


class Hub:
    """Reads the feed, keeps the trust state, feeds the streams. Lives on one event loop."""

    def __init__(
        self,
        store: RevocationStore,
        state: TrustState,
        clock: Clock,
        renew_epoch: Callable[[str], Awaitable[bool]],
    ) -> None:
        """*renew_epoch* begins a new epoch after the one given. Raises DependencyDown."""
        self.state = state
        self.streams = Streams(self, state, clock)
        self._renew_epoch = renew_epoch
        self._renewed_at = -math.inf
        self._store = store
        self._clock = clock
        self._issuer = ""
        self._doorbell = asyncio.Event()
        self._advanced = asyncio.Condition()
        self._read_keys: ReadKeys
        self._keys_turn = asyncio.Lock()
        self._looked_at = -math.inf
        self._read_time = -math.inf
        self._following: asyncio.Task[None] | None = None

    async def start(self, issuer: str, read_keys: ReadKeys) -> None:
        """Load keys and revocations, then follow. Raises DependencyDown."""
        self._issuer, self._read_keys = issuer, read_keys
        await self._load_keys()
        await self._load()
        self._following = asyncio.create_task(self._follow())
        self.streams.start()

    @property
    def data_age(self) -> float:
        """Seconds since the feed was read; infinite before it ever was."""
        return self._clock.monotonic() - self._read_time

    async def stop(self) -> None:
        """End the tasks; streams end with their RPCs."""
        if self._following is not None:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following
        await self.streams.stop()

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

    async def catch_up(self, version: int) -> None:
        """A peer comes from another replica, which has read more than we have: read on before it is sent anything.

        Raises DependencyDown where we cannot read: an older snapshot would revive what the peer knows to be revoked.
        """
        await self.published(version)
        if version > self.state.version:
            if self.data_age > PUBLISH_WAIT_SECONDS:
                raise DependencyDown
            _log.error("a peer holds version %d, the feed ends at %d", version, self.state.version)
            await self.set_back()

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
        self.streams.begin_anew(version)
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
            self.streams.tell_keys(event.SerializeToString())

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
        self.streams.tell_changes(changes)
        async with self._advanced:
            self._advanced.notify_all()
        return len(changes)

    def _note_read(self, read_time: float) -> None:
        self._read_time = read_time
        self.state.touch(self._clock.monotonic() - read_time)
