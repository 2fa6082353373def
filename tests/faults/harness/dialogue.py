"""A server as a process of its own that answers lines: its address at first, then one line for each that it is sent."""

from __future__ import annotations

import subprocess
import sys


class Dialogue:
    """Begins `python -m MODULE ARGUMENTS`. `stop` ends its input, and waits until it has ended."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.address = self._answer()

    def ask(self, line: str = "") -> str:
        """-> what it answers."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        self._process.communicate(timeout=30)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server has ended"
        return line.strip()
