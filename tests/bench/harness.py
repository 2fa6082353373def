"""What every bench needs: figures with their spread, ratios taken in turns, and children to measure memory in."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

OUTPUT = Path("build/bench.json")


@dataclass(frozen=True)
class Figure:
    """One measured figure: the median of its rounds. Less is better, unless *more_is_better*."""

    name: str
    unit: str
    rounds: Sequence[float]
    reach: float | None = None
    moonshot: float | None = None
    more_is_better: bool = False

    @property
    def value(self) -> float:
        return statistics.median(self.rounds)

    @property
    def reached(self) -> bool | None:
        """Whether the figure is as good as it must be; None where nothing is demanded."""
        return None if self.reach is None else self.is_within(self.reach)

    def is_within(self, limit: float) -> bool:
        return self.value >= limit if self.more_is_better else self.value <= limit

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": round(self.value, 4),
            "unit": self.unit,
            "spread": [round(value, 4) for value in (min(self.rounds), self.value, max(self.rounds))],
            "rounds": len(self.rounds),
            "reach": self.reach,
            "moonshot": self.moonshot,
            "reached": self.reached,
        }

    def __str__(self) -> str:
        marks = {None: "", True: "reached", False: "MISSED"}
        if self.moonshot is not None and self.is_within(self.moonshot):
            marks[True] = "moonshot"
        limits = f"reach {self.reach:g}" if self.reach is not None else ""
        limits += f", moonshot {self.moonshot:g}" if self.moonshot is not None else ""
        spread = f"{min(self.rounds):.3f} .. {max(self.rounds):.3f}"
        return f"{self.name:58} {self.value:9.3f} {self.unit:5} ({spread})  {limits:26} {marks[self.reached]}"


@dataclass(frozen=True)
class Machine:
    """Where the figures come from."""

    cpu_count: int | None
    python: str
    cryptography: str
    grpcio: str
    protobuf: str

    @classmethod
    def this(cls) -> Machine:
        versions = (version(name) for name in ("cryptography", "grpcio", "protobuf"))
        return cls(os.cpu_count(), platform.python_version(), *versions)


def seconds(work: Callable[[], object]) -> float:
    """How long *work* takes, once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cpu_seconds(work: Callable[[], object]) -> float:
    """How long *work* has a core, once: for what only computes, in this thread."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def in_turns(rounds: int, *works: Callable[[], object]) -> list[list[float]]:
    """CPU seconds of each work, round by round (A B C, A B C): what slows the machine down slows all of them."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for work, times in zip(works, taken, strict=True):
            times.append(cpu_seconds(work))
    return taken


def ratios(rounds: int, work: Callable[[], object], over: Callable[[], object]) -> list[float]:
    """How many times as long as *over* does *work* take, round by round."""
    return [mine / theirs for mine, theirs in zip(*in_turns(rounds, work, over), strict=True)]


def in_child(work: Callable[..., T], *arguments: object) -> T:
    """What *work* returns in a fresh process: a fork would fill what its parent has freed, and seem to need nothing."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def resident_megabytes() -> float:
    """How much memory this process has in use (VmRSS), in MB of 10^6 bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("no VmRSS in /proc/self/status")


def write(figures: Iterable[Figure], output: Path = OUTPUT) -> None:
    """Append a run to *output*, a JSON list of runs."""
    runs = json.loads(output.read_text()) if output.exists() else []
    runs.append(
        {
            "time": int(time.time()),
            "machine": asdict(Machine.this()),
            "figures": [figure.as_json() for figure in figures],
        }
    )
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(runs, indent=1))
