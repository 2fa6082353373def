"""Background work: a list of jobs, each run again and again until the service stops.

Of several replicas one does each job, the one that holds its lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from identity_client.errors import RetryLater

from .domain.meters import Meter, NoMeter
from .domain.ports import LeaseStore, Sweeper
from .domain.sealer import Sealer
from .domain.signing_keys import SigningKeyKeeper

_log = logging.getLogger(__name__)

SWEEP_SECONDS = 10.0
SWEEP_ROWS = 2_000
"""Rows looked at in one run: a million grants are gone through in an hour and a half."""


SEAL_SECONDS = 1.0
RETENTION_SECONDS = 60.0
NOTE_SECONDS = 0.25
ROTATION_SECONDS = 30.0

LEASE_RUNS = 3
SHORTEST_LEASE_SECONDS = 15.0
"""A lease lasts for a few runs of its job: so long the job rests when the replica that did it is killed."""


@dataclass(frozen=True, slots=True)
class Job:
    """*work* is run every *interval_seconds*; an outage of the database is waited out."""

    name: str
    interval_seconds: float
    work: Callable[[], Awaitable[None]]


class Jobs:
    """Runs jobs on the event loop, each in a task of its own."""

    def __init__(self, *jobs: Job, meter: Meter | None = None) -> None:
        self._jobs = jobs
        self._meter = meter or NoMeter()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(_run(job, self._meter)) for job in self._jobs]

    async def stop(self) -> None:
        """End them where they wait."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


def sweep_job(sweeper: Sweeper) -> Job:
    """Goes through the grants, a part in each run."""
    after = ""

    async def sweep() -> None:
        nonlocal after
        after = await sweeper.sweep(after, SWEEP_ROWS)

    return Job("sweep", SWEEP_SECONDS, sweep)


def seal_job(sealer: Sealer) -> Job:
    """Seals what was added to the audit log."""
    return Job("seal", SEAL_SECONDS, sealer.seal)


def note_job(note_failures: Callable[[], Awaitable[None]]) -> Job:
    """Has SQL know of the failed log-ins that Redis has counted."""
    return Job("note", NOTE_SECONDS, note_failures)


def retention_job(sealer: Sealer) -> Job:
    """Removes audit events that are older than they are kept."""
    return Job("retention", RETENTION_SECONDS, sealer.remove_old)


def rotation_job(keeper: SigningKeyKeeper) -> Job:
    """Prepares, activates and removes signing keys."""
    return Job("rotation", ROTATION_SECONDS, keeper.tend)


def led(job: Job, leases: LeaseStore, holder: str) -> Job:
    """*job*, run only while *holder* has its lease."""
    seconds = max(LEASE_RUNS * job.interval_seconds, SHORTEST_LEASE_SECONDS)

    async def work() -> None:
        if await leases.take(job.name, holder, seconds):
            await job.work()

    return Job(job.name, job.interval_seconds, work)


async def _run(job: Job, meter: Meter) -> None:
    while True:
        await asyncio.sleep(job.interval_seconds)
        try:
            await job.work()
            meter.job_succeeded(job.name)
        except RetryLater as error:
            _log.warning("%s waits: %s", job.name, error.reason)
        except Exception:
            # A defect in one job must neither end it for good nor reach the calls.
            _log.exception("%s failed and is tried again", job.name)
