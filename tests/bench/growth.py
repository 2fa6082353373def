"""What a larger service would need, from what one stream, one session and one revocation were measured to cost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.bench.plots import number

PEERS, SESSIONS, REVOCATIONS = 10_000, 10_000_000, 1_000
ENTRY_SECONDS = 1_230
"""How long a revocation lives at the default lifetimes."""

COALESCED = 200
"""The most messages a second to each stream: changes wait at least 2 ms for one another, and a read takes about as long
again."""

Row = dict[str, Any]


def render(rows: Iterable[Row]) -> str:
    """A paragraph for each; one whose unit costs were not measured says so."""
    costs = _Costs(rows)
    parts = (_peers(costs), _sessions(costs), _revocations(costs))
    return "\n".join(f"- {part}" for part in parts)


class _Costs:
    """Medians by the end of a figure's name; None for what was not measured."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._values = {row["name"]: float(row["value"]) for row in rows}

    def find(self, *words: str) -> float | None:
        for name, value in self._values.items():
            if all(word in name for word in words):
                return value
        return None


def _peers(costs: _Costs) -> str:
    kilobytes, microseconds = costs.find("streams: memory"), costs.find("streams: CPU", "a second")
    if kilobytes is None or microseconds is None:
        return f"**{PEERS:,} peers**: not measured (`make bench B=fleet`)."
    return (
        f"**{PEERS:,} peers**, a stream each: {number(PEERS * kilobytes / 1e6)} GB of memory at {number(kilobytes)} KB,"
        f" and {number(PEERS * microseconds / 1e6)} cores for their heartbeats, at {number(microseconds)} us a second"
        f" each: spread them over as many replicas as keep that below half of a core."
    )


def _sessions(costs: _Costs) -> str:
    size, ratio = costs.find("a session and its share"), costs.find("introspect:", "over")
    if size is None or ratio is None:
        return f"**{SESSIONS:,} sessions**: not measured (`make bench B=sessions`)."
    return (
        f"**{SESSIONS:,} sessions**: {number(SESSIONS * size / 1e9)} GB on the disk at {number(size)} bytes each, none"
        f" of it in the memory of the service. Introspection of a session token among a million costs {number(ratio)}"
        f" times as much as among a thousand, so that the next factor of ten is a matter of the database's cache."
    )


def _revocations(costs: _Costs) -> str:
    alone, many = costs.find("refused, 1 stream: CPU"), costs.find("refused, 200 streams: CPU")
    memory = costs.find("revocations held")
    if alone is None or many is None or memory is None:
        return f"**{REVOCATIONS:,} revocations a second**: not measured (`make bench B='delivery revocations'`)."
    live, delivery = REVOCATIONS * ENTRY_SECONDS, (many - alone) / 199
    return (
        f"**{REVOCATIONS:,} revocations a second**: {number(live / 1e6)} million are live at a time, which are"
        f" {number(memory * live / 1e6)} MB in every peer. Each costs the service {number(alone / 1e3)} ms one by one,"
        f" so that {number(REVOCATIONS * alone / 1e6)} cores are kept busy by single calls; ended many at a time"
        f" (RevokeSessions) they share their commits. To each stream goes a message of {number(delivery)} us, at most"
        f" {COALESCED} a second however many there are: {number(COALESCED * delivery / 1e3)} cores for 1,000 peers."
    )
