"""`identity serve` as processes over one PostgreSQL, of this tree or of another one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections import deque
from pathlib import Path

from identity.storage.sealing import MasterKey

ROOT = Path(__file__).parents[1]

_START_SECONDS = 60


class Program:
    """What a tree holds, run with its own modules in place of those that are installed."""

    def __init__(self, tree: Path = ROOT) -> None:
        self.tree = tree

    async def start(self, *command: str, **environment: str) -> asyncio.subprocess.Process:
        """A Python module as a process; both outputs are one pipe."""
        paths = [self.tree, self.tree / "clients", self.tree / "clients" / "examples"]
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *command,
            cwd=self.tree,  # -m puts it before everything else
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))} | environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=2**20,
        )

    async def run(self, *command: str, text: str = "", **environment: str) -> str:
        """Run a module to its end, with *text* for its input; -> its output."""
        process = await self.start(*command, **environment)
        output, _ = await process.communicate(text.encode())
        assert process.returncode == 0, output.decode()
        return output.decode()


class Service:
    """One long-running process of a program, started, stopped and started again."""

    def __init__(self, name: str, program: Program, command: tuple[str, ...], environment: dict[str, str]) -> None:
        self.name = name
        self.program = program
        self.address = ""
        self._command = command
        self._environment = environment
        self.lines: deque[str] = deque(maxlen=200)
        """What it said last."""

    async def start(self) -> None:
        """Start, and return once it says that it is ready."""
        self._process = await self.program.start(*self._command, **self._environment)
        async with asyncio.timeout(_START_SECONDS):
            while f"{self.name} is ready on " not in (line := await self._line()):
                assert line, f"{self.name} ended before it was ready: {''.join(self.lines)}"
        self.address = line.partition(" is ready on ")[2].split('"')[0].strip()
        self._reading = asyncio.create_task(self._read())

    async def stop(self) -> None:
        """SIGTERM; return once it has ended, which it must in order."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        await self._reading
        assert await self._process.wait() in (0, -signal.SIGKILL), "".join(self.lines)

    async def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        await self._process.wait()

    async def _read(self) -> None:
        while await self._line():
            pass  # a pipe that nobody empties would stop it

    async def _line(self) -> str:
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode()
        self.lines.append(line)
        return line


def replica(program: Program, listen: str, settings: dict[str, str]) -> Service:
    """`identity serve` on the address *listen*."""
    return Service("identity", program, ("identity.cli", "serve"), settings | {"IDENTITY_LISTEN": listen})


def settings_over(database: str, folder: Path, **more: object) -> dict[str, str]:
    """Variables for replicas over one database; their master key is made in *folder*."""
    key_file = folder / "master.key"
    MasterKey.generate(key_file)
    values = {
        "HTTP_LISTEN": "",
        "ISSUER": "https://identity.localhost",
        "DATABASE": database,
        "DATABASE_CONNECTIONS": 6,
        "MASTER_KEY_FILE": key_file,
    }
    return {f"IDENTITY_{name}": str(value) for name, value in (values | more).items()}


def free_address() -> str:
    """Somewhere on loopback where nobody listens: a replica comes back to the address that its peers know."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"
