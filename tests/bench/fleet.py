"""2,500 peers' streams lose their service and find it again, while others log in; and what an idle stream costs."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from contextlib import ExitStack

from tests.bench import service
from tests.bench.harness import Figure, percentile, resident_megabytes
from tests.bench.load import cpu_seconds_of
from tests.bench.probing import probing
from tests.bench.service import Caller, Metadata, Place
from tests.bench.streams import watching

PROBES_PER_SECOND = 50


def run(quick: bool) -> Iterable[Figure]:
    count, rounds, idle_seconds = (250, 2, 2.0) if quick else (2_500, 5, 10.0)
    taken: dict[str, list[float]] = {}
    # All streams share one credential here, which is a measure's convenience: a fleet has one for each service.
    with service.placed(**service.CHEAP_HASH, trust_streams_per_grant=2 * count) as place:
        for _ in range(rounds):
            for name, value in _restarted(place, count, idle_seconds).items():
                taken.setdefault(name, []).append(value)
    name, settings = f"{count:,} streams", place.durability
    for figure in (
        Figure(f"{name}: all back after a restart", "s", taken["back"], reach=10),
        Figure(f"{name}: Authenticate p99 meanwhile", "ms", taken["during"]),
        Figure(f"{name}: Authenticate p99 afterwards", "ms", taken["afterwards"]),
        Figure(f"{name}: memory of the service for each", "KB", taken["memory"]),
        Figure(f"{name}: CPU of the service for each, a second", "us", taken["cpu"]),
    ):
        yield figure.over(settings)


def _restarted(place: Place, count: int, idle_seconds: float) -> dict[str, float]:
    """Seconds, milliseconds, kB of 1,000 bytes, microseconds."""
    port = _free_port()
    with ExitStack() as streams:
        with service.running(place, port) as first:
            before = resident_megabytes(first.process_id)
            fleet = streams.enter_context(watching(first.address, _peer(first), count))
            fleet.joined()
            memory = (resident_megabytes(first.process_id) - before) * 1e3 / count
            cpu = _idle_cpu(first.process_id, idle_seconds) * 1e6 / count
        with service.running(place, port) as second:
            start = time.monotonic()
            request = service.by_secret(service.PEER, place.peer_secret)
            load = second.load("AuthenticationService/Authenticate", request)
            with probing(load, PROBES_PER_SECOND) as probe:
                back = fleet.joined() - start
                during = probe.latencies()
            with probing(load, PROBES_PER_SECOND) as probe:
                time.sleep(idle_seconds)
                afterwards = probe.latencies()
            streams.close()
    p99, p99_afterwards = (percentile(latencies, 0.99) * 1e3 for latencies in (during, afterwards))
    return {"back": back, "during": p99, "afterwards": p99_afterwards, "memory": memory, "cpu": cpu}


def _peer(running: service.Service) -> Metadata:
    with Caller(running) as caller:
        return caller.bearer()


def _idle_cpu(process_id: int, seconds: float) -> float:
    """CPU seconds a second of a service whose streams bring heartbeats alone."""
    cpu, start = cpu_seconds_of(process_id), time.perf_counter()
    time.sleep(seconds)
    return (cpu_seconds_of(process_id) - cpu) / (time.perf_counter() - start)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
