"""Runs the benches: `python -m tests.bench [--quick] [--database URL] [name ...]`.

A bench is a module here with a function `run(quick) -> iterable of Figure`; name it in BENCHES. Run them on a machine
that does nothing else; the figures go into build/bench.json.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from importlib import import_module

from tests.bench import database
from tests.bench.harness import OUTPUT, QUICK_OUTPUT, Figure, write

BENCHES = (
    "verify",
    "revocations",
    "peer",
    "guards",
    "issuing",
    "introspection",
    "refreshing",
    "passwords",
    "delivery",
    "fleet",
    "sessions",
)


def main() -> int:
    """Exit 1 where a figure misses what it must reach; a quick run only shows that all of them run."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHES)}; all without any")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: does it run, is anything far off")
    parser.add_argument(
        "--database",
        default=os.environ.get(database.VARIABLE, ""),
        help=f"postgresql://USER@HOST:PORT, or {database.OWN} for one of this run's own; SQLite without",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHES):
        parser.error(f"no bench is called {', '.join(sorted(unknown))}")
    figures = []
    with database.chosen(arguments.database):
        for name in arguments.names or BENCHES:
            run: Callable[[bool], Iterable[Figure]] = import_module(f"tests.bench.{name}").run
            for figure in run(arguments.quick):
                print(figure, flush=True)
                figures.append(figure)
            write(figures, QUICK_OUTPUT if arguments.quick else OUTPUT)
    return not arguments.quick and any(figure.reached is False for figure in figures)


if __name__ == "__main__":
    sys.exit(main())
