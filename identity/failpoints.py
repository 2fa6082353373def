"""Points at which a test can kill the process or hold a call, named in IDENTITY_FAILPOINTS and read once at import.

`IDENTITY_FAILPOINTS=rotate.before_commit=kill@3` sends SIGKILL to the process when the point is passed for the third
time. `identity serve` refuses to start with the variable set.
"""

from __future__ import annotations

import itertools
import os
import signal

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
