"""Points at which a test can kill the process or hold a call.

`IDENTITY_FAILPOINTS=rotate.before_commit=kill@3`, read once at import, sends SIGKILL to the process when the point is
passed for the third time. `identity serve` refuses to start with the variable set. A test in the same process holds
calls with `paused`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "IDENTITY_FAILPOINTS"


def _parse(text: str) -> dict[str, int]:
    points = {}
    for item in filter(None, text.split(",")):
        name, _, action = item.partition("=")
        verb, _, nth = action.partition("@")
        if verb != "kill":
            raise ValueError(f"{VARIABLE}: unknown action in {item!r}; use name=kill or name=kill@N")
        points[name] = int(nth or 1)
    return points


_KILL_AT = _parse(os.environ.get(VARIABLE, ""))
_PASSED = {name: itertools.count(1) for name in _KILL_AT}


def hit(name: str) -> None:
    """Pass the point *name*; nothing happens unless a test armed it."""
    if name in _KILL_AT and next(_PASSED[name]) == _KILL_AT[name]:
        os.kill(os.getpid(), signal.SIGKILL)


class Pause:
    """Holds the first call that comes to a point, until it is released."""

    def __init__(self) -> None:
        self.is_reached = asyncio.Event()
        self._is_released = asyncio.Event()

    def release(self) -> None:
        """Let the held call go on."""
        self._is_released.set()

    async def hold(self) -> None:
        """Be held, unless another call was before."""
        if not self.is_reached.is_set():
            self.is_reached.set()
            await self._is_released.wait()


_PAUSES: dict[str, Pause] = {}


@contextmanager
def paused(name: str) -> Iterator[Pause]:
    """Arm the point *name*, for a test in this process."""
    pause = _PAUSES[name] = Pause()
    try:
        yield pause
    finally:
        del _PAUSES[name]
        pause.release()


async def reach(name: str) -> None:
    """Come to the point *name*; nothing happens unless a test armed it."""
    if pause := _PAUSES.get(name):
        await pause.hold()
