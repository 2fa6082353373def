"""`identity serve` with several workers: a process that starts them, replaces those that die, and speaks for all.

It loads neither grpc nor a database. It reserves the port by a bound socket that does not listen, so that the kernel
shares new connections among the workers, which listen; each worker is a fresh interpreter, since a process that has
begun to use grpc must not be forked. Workers show their pages on sockets in a private folder, where their metrics lie
as well, and end when their standard input does, so that none outlives its supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from . import logs
from .config import ConfigurationError, Settings, load
from .http_listener import Answer, HttpListener

_log = logging.getLogger(__name__)

METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

STOP_SECONDS = 5.0
"""What a worker has beyond drain_seconds to close its stores, before it is killed."""

ASK_SECONDS = 2.0

_FIRST_DELAY_SECONDS = 0.5
_LONGEST_DELAY_SECONDS = 30.0
_STEADY_SECONDS = 60.0

Command = Callable[[int], Sequence[str]]
"""The command line of a worker, by its number from 0."""


class Workers:
    """*count* processes, kept alive until they are stopped."""

    def __init__(self, command: Command, count: int, on_exit: Callable[[int], None] = lambda _: None) -> None:
        self._command = command
        self._count = count
        self._on_exit = on_exit
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    @property
    def process_ids(self) -> dict[int, int]:
        """Those that run now, by number."""
        return {number: process.pid for number, process in self._running.items()}

    def start(self) -> None:
        """Begin."""
        self._keepers = [asyncio.create_task(self._keep(number)) for number in range(self._count)]

    async def stop(self, drain_seconds: float) -> None:
        """Ask all to end at once, and kill those that have not after *drain_seconds*."""
        self._stopping.set()
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        _, late = await asyncio.wait(self._keepers, timeout=drain_seconds) if self._keepers else ((), ())
        for number, process in self._running.items():
            _log.error("worker %d did not end in time and is killed", number)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for keeper in late:
            await keeper

    async def _keep(self, number: int) -> None:
        delay = _FIRST_DELAY_SECONDS
        while not self._stopping.is_set():
            began = time.monotonic()
            status = await self._run(number)
            if self._stopping.is_set():
                return
            if time.monotonic() - began >= _STEADY_SECONDS:
                delay = _FIRST_DELAY_SECONDS
            _log.error("worker %d ended with status %d and is started again in %.1f seconds", number, status, delay)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)

    async def _run(self, number: int) -> int:
        process = await asyncio.create_subprocess_exec(*self._command(number), stdin=asyncio.subprocess.PIPE)
        self._running[number] = process
        if self._stopping.is_set():  # it was on its way when the others were told
            process.terminate()
        try:
            return await process.wait()
        finally:
            del self._running[number]
            self._on_exit(process.pid)


class Pages:
    """What the supervisor answers for all. *folder* has the workers' sockets and their metrics."""

    def __init__(self, folder: Path, workers: Workers) -> None:
        self._folder = folder
        self._workers = workers

    async def metrics(self) -> Answer:
        """Added up over the workers."""
        from .metrics import CONTENT_TYPE, text_of_workers

        return Answer(text_of_workers(str(self._folder)), CONTENT_TYPE)

    async def alive(self) -> Answer:
        """200 unless a worker that runs hangs; one that is being started is waited for."""
        silent = [number for number, status in (await self._statuses("/livez")).items() if status is None]
        lines = [f"- worker {number} does not answer" for number in silent]
        return _answer("alive", "not alive", lines if silent else [], is_good=not silent)

    async def ready(self) -> Answer:
        """200 where a worker is ready; the others get no connections, or lose theirs to it."""
        statuses = await self._statuses("/readyz")
        lines = [f"- worker {number} is not ready" for number, status in statuses.items() if status != HTTPStatus.OK]
        return _answer("ready", "not ready", lines, is_good=HTTPStatus.OK in statuses.values())

    async def keys(self) -> Answer:
        """A worker's answer: all have the same keys."""
        for number in self._workers.process_ids:
            with contextlib.suppress(OSError, TimeoutError, ValueError):
                status, headers, body = await self._ask(number, "/.well-known/jwks.json")
                if status == HTTPStatus.OK:
                    return Answer(body, headers["content-type"], cache_control=headers["cache-control"])
        return _answer("", "not ready", ["- no worker is ready"], is_good=False)

    async def _statuses(self, path: str) -> dict[int, int | None]:
        """Of each worker that runs; 0 for one that does not listen yet, None for one that does not answer."""
        numbers = sorted(self._workers.process_ids)
        return dict(
            zip(numbers, await asyncio.gather(*(self._status(number, path) for number in numbers)), strict=True)
        )

    async def _status(self, number: int, path: str) -> int | None:
        try:
            return (await self._ask(number, path))[0]
        except (TimeoutError, ValueError):
            return None
        except OSError:
            return 0

    async def _ask(self, number: int, path: str) -> tuple[int, dict[str, str], bytes]:
        """Raises OSError, TimeoutError, ValueError (no answer)."""
        async with asyncio.timeout(ASK_SECONDS):
            reader, writer = await asyncio.open_unix_connection(page_socket(self._folder, number))
            try:
                writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
            finally:
                writer.close()
        status_line, *lines = head.decode("ascii").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return int(status_line.split(" ")[1]) if status_line else _no_answer(), headers, body


def page_socket(folder: Path, number: int) -> Path:
    """Where worker *number* shows its pages."""
    return folder / f"worker-{number}.sock"


def _no_answer() -> int:
    raise ValueError("the connection ended without an answer")


def _answer(good: str, bad: str, lines: Sequence[str], *, is_good: bool) -> Answer:
    status = HTTPStatus.OK if is_good else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer("".join(f"{line}\n" for line in (good if is_good else bad, *lines)).encode(), status=status)


def reserve(listen: str) -> socket.socket:
    """A bound socket that does not listen: the port stays ours while workers come and go. Raises ConfigurationError."""
    host, _, port = listen.rpartition(":")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with _bound(family, kind, address, socket.SO_REUSEADDR) as probe:  # fails where anybody listens, sharing or not
            address = probe.getsockname()
        return _bound(family, kind, address, socket.SO_REUSEADDR, socket.SO_REUSEPORT)
    except OSError:
        raise ConfigurationError([f"listen: {listen} cannot be bound: is another server running there?"]) from None


def _bound(family: int, kind: int, address: Any, *options: int) -> socket.socket:
    bound = socket.socket(family, kind)
    try:
        for option in options:
            bound.setsockopt(socket.SOL_SOCKET, option, 1)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


async def supervise(settings: Settings, command: Callable[[Path, str, int], Sequence[str]]) -> None:
    """Run until SIGTERM or SIGINT. *command* builds a worker's command line: folder, address, number."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with (
        tempfile.TemporaryDirectory(prefix="identity-", ignore_cleanup_errors=True) as name,
        reserve(settings.listen) as reserved,
    ):
        folder, address = Path(name), f"{settings.listen.rpartition(':')[0]}:{reserved.getsockname()[1]}"
        os.environ[METRICS_VARIABLE] = name  # before the metrics are imported, here and in every worker
        from .metrics import forget_worker

        workers = Workers(
            lambda worker: command(folder, address, worker), settings.workers, lambda pid: forget_worker(name, pid)
        )
        pages = Pages(folder, workers)
        await _serve(settings, workers, pages, address, stop)


async def _serve(settings: Settings, workers: Workers, pages: Pages, address: str, stop: asyncio.Event) -> None:
    routes = {
        "/metrics": pages.metrics,
        "/livez": pages.alive,
        "/readyz": pages.ready,
        "/.well-known/jwks.json": pages.keys,
    }
    listener = HttpListener(settings.http_listen, routes) if settings.http_listen else None
    try:
        if listener is not None:
            _log.info("metrics and probes are on %s", await listener.start())
    except OSError:
        problem = f"http_listen: {settings.http_listen} cannot be bound: is another server running there?"
        raise ConfigurationError([problem]) from None
    _log.info("%d workers serve %s", settings.workers, address)
    workers.start()
    await stop.wait()
    _log.info("draining for at most %s seconds", settings.drain_seconds)
    await workers.stop(settings.drain_seconds + STOP_SECONDS)
    if listener is not None:
        await listener.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m identity.supervisor [FILE]`: what `identity serve` becomes where `workers` is more than one."""
    config = list(sys.argv[1:] if arguments is None else arguments)
    try:
        settings = load(Path(config[0]) if config else None, os.environ)
        logs.configure(settings.log_level)
        for warning in settings.warnings():
            _log.warning(warning)

        def command(folder: Path, address: str, number: int) -> Sequence[str]:
            pages = f"unix:{page_socket(folder, number)}"
            return [sys.executable, "-m", "identity.worker", address, pages, *config]

        asyncio.run(supervise(settings, command))
    except ConfigurationError as error:
        print("identity cannot do this:", *(f"  - {problem}" for problem in error.problems), sep="\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
