"""What every bench needs: figures with their spread, ratios taken in turns, and children to measure memory in.

build/bench.json is a list of figures. One that is measured again replaces the older one of the same name over the same
database; each says by itself which machine it comes from.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

OUTPUT = Path("build/bench.json")
QUICK_OUTPUT = Path("build/bench-quick.json")
QUOTABLE_SPREAD = 0.3
"""A figure whose rounds lie further apart, as a share of its value, says something about the machine alone."""


@dataclass(frozen=True)
class Figure:
    """One measured figure: the median of its rounds. Less is better, unless *more_is_better*.

    *settings*: what the rate holds for, its durability above all. *note*: what is to be known of this very run.
    """

    name: str
    unit: str
    rounds: Sequence[float]
    reach: float | None = None
    moonshot: float | None = None
    more_is_better: bool = False
    settings: str = ""
    note: str = ""

    @property
    def value(self) -> float:
        return statistics.median(self.rounds)

    @property
    def reached(self) -> bool | None:
        """Whether the figure is as good as it must be; None where nothing is demanded."""
        return None if self.reach is None else self.is_within(self.reach)

    def is_within(self, limit: float) -> bool:
        return self.value >= limit if self.more_is_better else self.value <= limit

    @property
    def is_quotable(self) -> bool:
        """Whether its rounds agree well enough to be quoted."""
        return max(self.rounds) - min(self.rounds) <= QUOTABLE_SPREAD * abs(self.value)

    def over(self, settings: str) -> Figure:
        """The same, measured with *settings*."""
        return replace(self, settings=settings)

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
            "more_is_better": self.more_is_better,
            "quotable": self.is_quotable,
            "settings": self.settings,
            "note": self.note,
        }

    def __str__(self) -> str:
        marks = {None: "", True: "reached", False: "MISSED"}
        if self.moonshot is not None and self.is_within(self.moonshot):
            marks[True] = "moonshot"
        limits = f"reach {self.reach:g}" if self.reach is not None else ""
        limits += f", moonshot {self.moonshot:g}" if self.moonshot is not None else ""
        spread = f"{min(self.rounds):.3f} .. {max(self.rounds):.3f}"
        doubt = "" if self.is_quotable else " (spread: not to be quoted)"
        return f"{self.name:58} {self.value:9.3f} {self.unit:5} ({spread})  {limits:26} {marks[self.reached]}{doubt}"


@dataclass(frozen=True)
class Machine:
    """Where the figures come from."""

    processor: str
    cpu_count: int | None
    kernel: str
    python: str
    cryptography: str
    grpcio: str
    protobuf: str
    sqlalchemy: str

    @classmethod
    def this(cls) -> Machine:
        versions = (version(name) for name in ("cryptography", "grpcio", "protobuf", "SQLAlchemy"))
        return cls(_processor(), os.cpu_count(), platform.release(), platform.python_version(), *versions)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


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


def resident_megabytes(process_id: int | None = None) -> float:
    """How much memory a process, or this one, has in use (VmRSS), in MB of 10^6 bytes."""
    for line in Path(f"/proc/{process_id or 'self'}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("no VmRSS in /proc/PID/status")


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest of *values* that *share* of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(len(ordered) * share) - 1)]


def write(figures: Iterable[Figure], output: Path = OUTPUT) -> None:
    """Put a run into *output*."""
    machine, now = asdict(Machine.this()), int(time.time())
    rows = [figure.as_json() | {"time": now, "machine": machine} for figure in figures]
    names = {_name(row) for row in rows}
    held = json.loads(output.read_text()) if output.exists() else []
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps([row for row in held if _name(row) not in names] + rows, indent=1))


def _name(row: dict[str, Any]) -> tuple[str, str]:
    return row["name"], row["settings"]
