"""Puts the figures of build/bench.json into README.md beside this file, and draws them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.bench import growth
from tests.bench.harness import OUTPUT
from tests.bench.plots import Bar, bars, number

README = Path(__file__).with_name("README.md")
PLOTS = README.with_name("figures")

Row = dict[str, Any]

MOST_SHARE = 4.0

_ECHO, _OTHER, _CPU = "echo of ", "oidc-provider beside ", ": CPU of the server"


def main() -> int:
    if not OUTPUT.exists():
        print(f"{OUTPUT} is not there: run make bench first", file=sys.stderr)
        return 1
    rows: list[Row] = json.loads(OUTPUT.read_text())
    drawn = dict(plots(rows))
    links = "\n\n".join(f"![{name}]({PLOTS.name}/{name}.svg)" for name in drawn)
    text = README.read_text()
    for name, content in (("figures", f"{table(rows)}\n\n{links}"), ("growth", growth.render(rows))):
        text = _between(text, name, content)
    README.write_text(text)
    PLOTS.mkdir(exist_ok=True)
    for name, svg in drawn.items():
        (PLOTS / f"{name}.svg").write_text(svg)
    return 0


def _between(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{content}\n{end}{after}"


def table(rows: Iterable[Row]) -> str:
    """The figures in Markdown, under the machines that they come from."""
    rows = list(rows)
    machines = sorted({_machine(row) for row in rows})
    lines = [f"Measured on: {'; '.join(machines)}.", ""]
    lines += ["| figure | median | lowest to highest round | reach | moonshot | verdict |", "|---|---|---|---|---|---|"]
    for settings in dict.fromkeys(row["settings"] for row in rows):
        lines.append(f"| **{settings or 'no database'}** | | | | | |")
        lines += [_line(row) for row in rows if row["settings"] == settings]
    return "\n".join(lines)


def _machine(row: Row) -> str:
    machine = row["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("grpcio", "protobuf", "cryptography", "sqlalchemy"))
    return f"{machine['cpu_count']} x {machine['processor']}, CPython {machine['python']}, {versions}"


def _line(row: Row) -> str:
    low, _, high = row["spread"]
    limits = " | ".join("" if row[name] is None else number(row[name]) for name in ("reach", "moonshot"))
    value = f"{number(row['value'])} {row['unit']}" if row["quotable"] else "not quotable"
    return f"| {row['name']} | {value} | {number(low)} to {number(high)} | {limits} | {_verdict(row)} |"


def _verdict(row: Row) -> str:
    is_within: Callable[[float], bool] = (
        (lambda limit: row["value"] >= limit) if row["more_is_better"] else (lambda limit: row["value"] <= limit)
    )
    if row["moonshot"] is not None and is_within(row["moonshot"]):
        return "moonshot"
    return {None: "", True: "reached", False: "**missed**"}[row["reached"]]


def plots(rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
    """Names and SVGs: calls a second and what each costs, beside an echo and oidc-provider; and what is reached."""
    rows = list(rows)
    beside = [row for row in rows if row["name"].startswith((_ECHO, _OTHER))]
    for database in ("SQLite", "PostgreSQL"):
        held = [row for row in rows if row["settings"].startswith(database) and row not in beside]
        if not held:
            continue
        echoes = [row["name"].removeprefix(_ECHO) for row in beside if row["name"].startswith(_ECHO)]
        calls = [name for name in echoes if ":" not in name]
        for name, unit, suffix, title in (
            ("rate", "per s", "", "calls a second, one process on one core"),
            ("cpu", "us", _CPU, "CPU of the server for one call"),
        ):
            wanted = [f"{before}{call}{suffix}" for call in calls for before in ("", _ECHO, _OTHER)]
            found = [_bar(row) for want in wanted for row in (*held, *beside) if _is(row, want, unit)]
            if found:
                yield f"{database.lower()}-{name}", bars(f"{database}: {title}", unit, found)
        due = [_share(row) for row in held if row["reach"] is not None]
        yield (
            f"{database.lower()}-reach",
            bars(f"{database}: how much of what must be reached, {MOST_SHARE:g} at most", "x", due),
        )


def _is(row: Row, name: str, unit: str) -> bool:
    return bool(row["name"] == name and row["unit"] == unit)


def _share(row: Row) -> Bar:
    """How many times what must be reached, so that more is better for every figure; drawn up to MOST_SHARE."""
    shares = [value / row["reach"] if row["more_is_better"] else row["reach"] / value for value in row["spread"]]
    low, value, high = sorted(min(share, MOST_SHARE) for share in shares)
    return Bar(row["name"], low, value, high, 1.0, row["reached"])


def _bar(row: Row) -> Bar:
    label = row["name"].removesuffix(_CPU).replace(_OTHER, "oidc-provider: ").replace(_ECHO, "echo: ")
    for detail in (" by client secret", ", warm access token"):
        label = label.removesuffix(detail)
    low, value, high = row["spread"]
    is_ours = not row["name"].startswith((_ECHO, _OTHER))
    return Bar(label, low, value, high, row["reach"], row["reached"], is_ours)


if __name__ == "__main__":
    sys.exit(main())
