"""The snapshot that new streams begin with: built once, shared by all, a little old if need be."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from identity.feed import events
from identity.feed.log import Log
from identity_client.clock import Clock
from identity_client.trust.state import TrustState

LONGEST_AGE_SECONDS = 60.0
"""An older one would carry many entries that have expired since."""

_FEW_CHANGES = 1_000
_CHANGED_SHARE = 10  # one in so many


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state at *version* as events; what came later is in the log."""

    epoch: str
    version: int
    events: tuple[bytes, ...]
    entry_count: int
    time: float


class Snapshots:
    """Builds on demand, part by part, so that the event loop is never held for longer than a part takes."""

    def __init__(self, state: TrustState, log: Log, clock: Clock) -> None:
        self._state = state
        self._log = log
        self._clock = clock
        self._newest: Snapshot | None = None
        self._building: asyncio.Task[Snapshot] | None = None

    async def current(self) -> Snapshot:
        """A snapshot from which the log leads on to now; whoever asks while it is built waits for the same one."""
        if self._newest is None or not self._is_good(self._newest):
            if self._building is None:
                self._building = asyncio.create_task(self._build())
                self._building.add_done_callback(self._built)
            self._newest = await asyncio.shield(self._building)
        return self._newest

    def _is_good(self, snapshot: Snapshot) -> bool:
        return (
            snapshot.epoch == self._state.epoch
            and self._log.holds_since(snapshot.version)
            and self._log.head - snapshot.version <= max(_FEW_CHANGES, snapshot.entry_count // _CHANGED_SHARE)
            and self._clock.monotonic() - snapshot.time <= LONGEST_AGE_SECONDS
        )

    async def _build(self) -> Snapshot:
        # All of this is of one moment: the batches are those of now, whatever changes while they are packed.
        state, time = self._state, self._clock.monotonic()
        epoch, version, (entry_count, digest) = state.epoch, state.version, state.digest()
        batches = state.batches(events.PART_ENTRIES)
        built = [events.snapshot_start(epoch, version, entry_count, digest)]
        for batch in batches:
            built.append(events.snapshot_part(batch))
            await asyncio.sleep(0)
        return Snapshot(epoch, version, tuple(built), entry_count, time)

    def _built(self, _: asyncio.Task[Snapshot]) -> None:
        self._building = None
