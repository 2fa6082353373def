"""Background work: run again and again, each run going on where the last one ended, whatever fails in between."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from identity.jobs import SWEEP_ROWS, Job, Jobs, led, sweep_job
from identity_client.errors import DependencyDown
from tests.rpc.api import Api


class ScriptedSweeper:
    """Answers what the script says, and tells when it has come to its end."""

    def __init__(self, *script: str | Exception) -> None:
        self._script = list(script)
        self.calls: list[tuple[str, int]] = []
        self.is_done = asyncio.Event()

    async def sweep(self, after: str, limit: int) -> str:
        self.calls.append((after, limit))
        if not self._script:
            self.is_done.set()
            return ""
        step = self._script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step


async def run(sweeper: ScriptedSweeper) -> Sequence[str]:
    """Where each run went on, until the script was over."""
    jobs = Jobs(replace(sweep_job(sweeper), interval_seconds=0))
    jobs.start()
    async with asyncio.timeout(10):
        await sweeper.is_done.wait()
    await jobs.stop()
    assert {limit for _, limit in sweeper.calls} == {SWEEP_ROWS}
    return [after for after, _ in sweeper.calls]


@pytest.mark.requirement("R12")
async def test_a_sweep_goes_on_where_the_last_one_ended_and_begins_anew_at_the_end() -> None:
    assert await run(ScriptedSweeper("f", "m", "", "f")) == ["", "f", "m", "", "f"]


@pytest.mark.requirement("R12")
@pytest.mark.parametrize("failure", [DependencyDown(), ValueError("a defect")])
async def test_a_run_that_failed_is_tried_again_at_the_same_place(failure: Exception) -> None:
    assert await run(ScriptedSweeper("f", failure, failure, "m")) == ["", "f", "f", "f", "m"]


async def test_jobs_that_were_stopped_run_no_more() -> None:
    sweeper = ScriptedSweeper()
    await run(sweeper)
    count = len(sweeper.calls)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(sweeper.calls) == count


@pytest.mark.requirement("R12")
async def test_a_running_service_sweeps(api: Api) -> None:
    assert api.server.house is not None
    jobs = api.server.house.jobs
    assert {job.name for job in jobs._jobs} == {"sweep", "seal", "retention", "rotation"}
    assert len(jobs._tasks) == len(jobs._jobs)
    assert not any(task.done() for task in jobs._tasks)


class Lease:
    """A lease that the test gives away."""

    def __init__(self) -> None:
        self.holder = "one"
        self.asked: list[tuple[str, float]] = []

    async def take(self, name: str, holder: str, seconds: float) -> bool:
        self.asked.append((name, seconds))
        return self.holder == holder

    async def release(self, holder: str) -> None:
        raise AssertionError


async def test_a_job_is_done_by_the_replica_that_holds_its_lease_as_long_as_it_does() -> None:
    lease, done = Lease(), list[str]()

    def job(holder: str) -> Job:
        async def work() -> None:
            done.append(holder)

        return led(Job("job", 60.0, work), lease, holder)

    one, other = job("one"), job("other")
    for holder in ("one", "other", "nobody"):
        lease.holder = holder
        await one.work()
        await other.work()
    assert done == ["one", "other"]
    assert set(lease.asked) == {("job", 180.0)}
