"""`identity serve` as a process of its own, one of several on one database."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

from tests.postgres_server import free_port

READY_SECONDS = 60


class Replica:
    """One process; its address stays the same over restarts. *settings* are lines of TOML."""

    def __init__(self, folder: Path, name: str, settings: str) -> None:
        self.name = name
        self.address = f"127.0.0.1:{free_port()}"
        self.log = folder / f"{name}.log"
        self._config = folder / f"{name}.toml"
        self._config.write_text(f'{settings}\nlisten = "{self.address}"\n')
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Return once it says that it is ready."""
        command = [sys.executable, "-m", "identity.cli", "serve", "--config", str(self._config)]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert self._process.stderr is not None
        is_ready = threading.Event()
        threading.Thread(target=self._keep_log, args=(self._process.stderr, is_ready), daemon=True).start()
        if not is_ready.wait(READY_SECONDS) or self._process.poll() is not None:
            raise AssertionError(f"{self.name} did not start:\n{self.log.read_text()}")

    def kill(self) -> None:
        """SIGKILL; return once it is dead."""
        assert self._process is not None
        self._process.kill()
        assert self._process.wait(30) == -signal.SIGKILL

    def stop(self) -> None:
        """End it as an operator would, however it stands."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def unplanned_errors(self) -> list[str]:
        """The lines of its log that tell of what nobody had foreseen."""
        return [line for line in self.log.read_text().splitlines() if '"level": "error"' in line or "Traceback" in line]

    def _keep_log(self, lines: IO[str], is_ready: threading.Event) -> None:
        with lines, self.log.open("a") as log:
            for line in lines:
                log.write(line)
                log.flush()
                if "identity is ready on" in line:
                    is_ready.set()
        is_ready.set()  # it ended: whoever waits looks at the process
