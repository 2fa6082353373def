"""Runs the client tests at both ends of what a peer may have installed, on every Python here that runs.

python tests/packaging/versions.py [--ends]

The lowest versions are those that pyproject.toml names, the highest whatever the index has in its ranges. What a
peer has is installed, and no more: tests that start the service are left out. --ends: the lowest on the oldest Python
and the highest on the newest, in place of every pair. Environments are kept in .versions
until pyproject.toml, constraints.txt or this file change.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".versions"
TOOLS = ("pytest", "pytest-asyncio", "pytest-timeout")
SUITES = ("tests/clients", "tests/attacks/test_forgery.py")
OLDEST = (3, 11)
NEEDS_SERVER = re.compile(r"^from (identity\.(?!v1)|tests\.rpc\.api)", re.MULTILINE)

Version = tuple[int, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ends", action="store_true", help="two pairs only")
    pythons = dict(sorted(find_pythons()))
    pairs = [(version, level) for version in pythons for level in ("lowest", "highest")]
    if parser.parse_args().ends:
        pairs = [pairs[0], pairs[-1]]
    failed = [name for name in (check(pythons[version], version, level) for version, level in pairs) if name]
    if failed:
        sys.exit(f"the client tests failed with {', '.join(failed)}")


def find_pythons() -> Iterator[tuple[Version, str]]:
    """Every interpreter that is new enough, one a version. Names prove nothing: a shim may have nothing to start."""
    names = [f"python3.{minor}" for minor in range(OLDEST[1], 20)]
    managed = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = [*map(shutil.which, names), *map(str, managed.glob("3.*/bin/python")), sys.executable]
    for python in filter(None, found):
        probe = [python, "-c", "import sys, venv, ssl; print(*sys.version_info[:2])"]
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            major, minor = map(int, done.stdout.split())
            if (major, minor) >= OLDEST:
                yield (major, minor), python


def check(python: str, version: Version, level: str) -> str:
    """Run the tests; -> the name of the pair if they failed."""
    name = f"Python {version[0]}.{version[1]} and the {level} versions"
    environment = ENVIRONMENTS / f"{version[0]}.{version[1]}-{level}"
    prepare(environment, python, level)
    print(f"== {name}: {installed(environment)}", flush=True)
    tests = [f"{environment}/bin/python", "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", *SUITES]
    tests += [f"--ignore={path.relative_to(ROOT)}" for path in suites_with_server()]
    done = subprocess.run(tests, cwd=ROOT, env=os.environ | {"IDENTITY_TEST_MUTANTS": "2000"}, check=False)
    return name if done.returncode else ""


def prepare(environment: Path, python: str, level: str) -> None:
    """Make the environment, unless it is there and as it should be."""
    wanted = [*companions(), *tools()]
    if level == "lowest":
        wanted = [*lowest(), *map(_pinned, companions()), *tools()]
    written = "\n".join([python, level, *wanted, (ROOT / "pyproject.toml").read_text()])
    stamp, digest = environment / ".ready", hashlib.sha256(written.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    shutil.rmtree(environment, ignore_errors=True)
    subprocess.run([python, "-m", "venv", environment], check=True)
    pip = [f"{environment}/bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-e", ".", *wanted], cwd=ROOT, check=True)
    stamp.write_text(digest)


def suites_with_server() -> list[Path]:
    """The files with tests that start the service."""
    files = [path for suite in SUITES for path in sorted((ROOT / suite).glob("test_*.py"))]
    return [path for path in files if NEEDS_SERVER.search(path.read_text())]


def lowest() -> list[str]:
    """The base dependencies, each pinned to the lowest version that pyproject.toml admits."""
    return [_pinned(requirement) for requirement in _project()["dependencies"]]


def companions() -> list[str]:
    """The standard services that a peer may register."""
    server = _project()["optional-dependencies"]["server"]
    return [requirement for requirement in server if requirement.startswith("grpcio-")]


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def _pinned(requirement: str) -> str:
    return re.sub(r">=([\d.]+).*", r"==\1", requirement)


def tools() -> list[str]:
    """What the tests run with, as everywhere else."""
    pinned = (ROOT / "constraints.txt").read_text().split()
    return [line for line in pinned if line.partition("==")[0] in TOOLS]


def installed(environment: Path) -> str:
    """What was chosen, for the reader."""
    names = [re.split(r"[<>=]", requirement)[0] for requirement in lowest()]
    code = "import sys, importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    command = [f"{environment}/bin/python", "-c", code, *names]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
