"""The demo on the big setting ends well, and says so of each part that it takes away."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MEASURED = re.compile(r"^  (token revoked|role given or taken) +p50 \d+\.\d ms   p99 \d+\.\d ms", re.MULTILINE)
WITHOUT_FAILURE = re.compile(r"^  (alice's calls of orders all the while|her refreshes) +\d+ ok$", re.MULTILINE)


@pytest.mark.requirement("R3")
@pytest.mark.requirement("R9")
@pytest.mark.requirement("R4")
@pytest.mark.timeout(240)
def test_the_story_holds_over_two_replicas_that_lose_redis_and_one_of_them() -> None:
    paths = [str(ROOT), str(ROOT / "clients" / "examples"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "clients" / "examples" / "demo_big.py")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "DEMO_RUNS": "3"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert MEASURED.findall(done.stdout) == ["token revoked", "role given or taken"]
    calls, refreshes = "alice's calls of orders all the while", "her refreshes"
    assert WITHOUT_FAILURE.findall(done.stdout) == [calls, refreshes, calls]
    assert len(re.findall(r"revoked at replica A, is refused +TOKEN_REVOKED after", done.stdout)) == 2
