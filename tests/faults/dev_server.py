"""`identity dev` as a process of its own, to be killed without warning and started again over the same files."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any


class DevServer:
    """One embedded service in *directory*; its address stays the same over restarts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.address = f"127.0.0.1:{_free_port()}"
        self.log_lines: list[str] = []
        self._process: subprocess.Popen[str] | None = None

    def start(self, **environment: str) -> None:
        """Start, and return once it says that it is ready."""
        command = [sys.executable, "-m", "identity.cli", "dev", "--directory", str(self.directory)]
        self._process = subprocess.Popen(
            [*command, "--listen", self.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        threading.Thread(target=self._keep_log, args=(self._process,), daemon=True).start()
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("identity is ready on"):
                threading.Thread(target=self._process.stdout.read, daemon=True).start()
                return
        raise AssertionError("the server ended before it was ready:\n" + "".join(self.log_lines))

    def wait_killed(self) -> None:
        """Return once the process is dead; it must have died by SIGKILL."""
        assert self._process is not None
        assert self._process.wait(30) == -signal.SIGKILL

    def stop(self) -> None:
        """End the process as an operator would; does nothing when it is gone."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(30)
        self._process = None

    @property
    def secrets(self) -> dict[str, Any]:
        """What `.identity/dev.json` says."""
        return json.loads((self.directory / "dev.json").read_text())  # type: ignore[no-any-return]

    def _keep_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.log_lines.extend(process.stderr)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
