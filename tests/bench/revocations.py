"""A million live revocations in one peer: applied as they arrive, held, looked up."""

from __future__ import annotations

import gc
import random
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from identity.feed import events
from identity.v1 import trust_pb2 as pb
from identity_client.trust import wire
from identity_client.trust.entries import EntryKind, id_text
from identity_client.trust.revocations import Revocations
from identity_client.trust.state import TrustState
from tests.bench.harness import Figure, in_child, resident_megabytes, seconds
from tests.bench.material import sorted_parts
from tests.clients.issuer import ISSUER, FixedClock, Issuer

LOOK_UPS = 20_000


def run(quick: bool) -> Iterable[Figure]:
    count, rounds = (100_000, 2) if quick else (1_000_000, 5)
    clock = FixedClock()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "events"
        size = in_child(write_events, file, count, int(clock.now()))
        yield Figure(f"{count:,} revocations on the wire", "MB", [size / 1e6], reach=None if quick else 25)
        runs = [in_child(apply_events, file) for _ in range(rounds)]
    yield Figure(f"{count:,} revocations applied", "s", [run["apply"] for run in runs], reach=None if quick else 1.0)
    yield Figure(f"{count:,} revocations held", "MB", [run["memory"] for run in runs], reach=None if quick else 25)
    yield Figure("longest step of applying them", "ms", [run["step"] for run in runs], reach=20)
    yield Figure(f"look-up among {count:,}, hit", "us", [run["hit"] for run in runs], reach=1.0)
    yield Figure(f"look-up among {count:,}, miss", "us", [run["miss"] for run in runs], reach=1.0)
    yield Figure("one heartbeat with its expiry, digest and sweep", "ms", [run["beat"] for run in runs], reach=20)


def write_events(file: Path, count: int, now: int) -> int:
    """Every event of a snapshot, each after its length; -> bytes of the events."""
    parts = [events.snapshot_part(part) for part in sorted_parts(count, now)]
    with file.open("wb") as out:
        for event in (events.snapshot_start("epoch", 1, count, ""), *parts):
            out.write(len(event).to_bytes(4, "big") + event)
    return sum(map(len, parts))


def read_events(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while length := source.read(4):
            yield source.read(int.from_bytes(length, "big"))


def apply_events(file: Path) -> dict[str, float]:
    """Take in a snapshot as a peer does. Seconds, MB, milliseconds, microseconds."""
    clock = FixedClock()
    state, transit = TrustState(clock), wire.Transit(clock)
    state.set_keys(ISSUER, [Issuer(clock).public_key])
    gc.collect()
    before = resident_megabytes()
    steps = []
    for event in read_events(file):
        steps.append(seconds(lambda: wire.apply_event(state, pb.WatchTrustResponse.FromString(event), transit)))  # noqa: B023
    steps.append(seconds(state.digest))
    memory = resident_megabytes() - before
    held = state._held
    assert held is not None
    names = [entry.name for entry in state.entries()]
    chance = random.Random(3)
    hits = chance.sample(names, LOOK_UPS)
    misses = [id_text(chance.randbytes(16)) for _ in range(LOOK_UPS)]
    return {
        "apply": sum(steps),
        "step": max(steps) * 1e3,
        "memory": memory,
        "hit": look_up_microseconds(held, hits),
        "miss": look_up_microseconds(held, misses),
        "beat": max(seconds(lambda: beat(state, clock)) for _ in range(64)) * 1e3,
    }


def beat(state: TrustState, clock: FixedClock) -> None:
    clock.advance(5)
    state.expire(int(clock.now()))
    state.digest()


def look_up_microseconds(held: Revocations, names: list[str]) -> float:
    def look_up() -> None:
        for name in names:
            held.contains(EntryKind.TOKEN, name)

    def nothing() -> None:
        for name in names:
            _same(name)

    return (min(seconds(look_up) for _ in range(5)) - min(seconds(nothing) for _ in range(5))) / len(names) * 1e6


def _same(name: str) -> str:
    return name
