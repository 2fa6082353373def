"""`identity dev` as a process of its own, to be killed without warning and started again over the same files."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


class DevServer:
    """One embedded service in *directory*; its address stays the same over restarts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.address = f"127.0.0.1:{_free_port()}"
        self._log = directory / "log.jsonl"
        self._process: subprocess.Popen[str] | None = None

    def start(self, **environment: str) -> None:
        """Start, and return once it says that it is ready."""
        self.stop()
        command = [sys.executable, "-m", "identity.cli", "dev", "--directory", str(self.directory)]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [*command, "--listen", self.address],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | environment,
            )
        assert self._process.stdout is not None
        if not any(line.startswith("identity is ready on") for line in self._process.stdout):
            raise AssertionError(f"the server ended before it was ready:\n{self._log.read_text()}")

    def kill(self) -> None:
        """SIGKILL, at once."""
        assert self._process is not None
        self._process.kill()

    def wait_killed(self) -> None:
        """Return once the process is dead; it must have died by SIGKILL."""
        assert self._process is not None
        assert self._process.wait(30) == -signal.SIGKILL

    def stop(self) -> None:
        """End the process as an operator would; does nothing when it is gone."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
        self._process.communicate(timeout=30)
        self._process = None

    @property
    def memory_mb(self) -> float:
        """How much memory the process has in use (VmRSS), in MB of 10^6 bytes."""
        assert self._process is not None
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024 / 1e6

    @property
    def secrets(self) -> dict[str, Any]:
        """What `.identity/dev.json` says."""
        return json.loads((self.directory / "dev.json").read_text())  # type: ignore[no-any-return]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
