"""What clients saw, call by call, and which of the five invariants it breaks.

Times are seconds of one monotonic clock. A call that was answered OK did what it asked between its start and its end;
one that was refused did nothing; of one that got no answer nobody knows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

OK = "OK"

UNDECIDED = frozenset(
    {"DEPENDENCY_DOWN", "OVERLOADED", "STATE_CONFLICT", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}
)
"""Outcomes after which a client repeats its call: nothing is said about what it presented."""


@dataclass(frozen=True, slots=True)
class Refresh:
    """A refresh token of rotation *count* was presented; *successor* is the text that came back."""

    session: str
    start: float
    end: float
    outcome: str
    count: int
    successor: str = ""


@dataclass(frozen=True, slots=True)
class Revoke:
    """A session was to be ended, by whatever call."""

    session: str
    start: float
    end: float
    outcome: str


@dataclass(frozen=True, slots=True)
class Use:
    """An access token was shown to *place*, which may go on accepting a revoked one for *bound* seconds."""

    session: str
    start: float
    end: float
    outcome: str
    token: str
    place: str
    bound: float = 0.0


@dataclass(frozen=True, slots=True)
class Issued:
    """An access token that a client received."""

    audience: str
    expire_time: float


@dataclass
class History:
    """Every call of a run, in the order of their ends."""

    refreshes: list[Refresh] = field(default_factory=list)
    revokes: list[Revoke] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    crashes: list[float] = field(default_factory=list)
    issued: dict[str, Issued] = field(default_factory=dict)
    audiences: dict[str, frozenset[str]] = field(default_factory=dict)
    """What each place may accept."""

    def acknowledged(self) -> dict[str, float]:
        """Session -> when its end was first acknowledged."""
        ends: dict[str, float] = {}
        for call in self.revokes:
            if call.outcome == OK:
                ends[call.session] = min(call.end, ends.get(call.session, math.inf))
        return ends

    def attempted(self) -> dict[str, float]:
        """Session -> when its end was first asked for."""
        starts: dict[str, float] = {}
        for call in self.revokes:
            starts[call.session] = min(call.start, starts.get(call.session, math.inf))
        return starts

    def __len__(self) -> int:
        return len(self.refreshes) + len(self.revokes) + len(self.uses)


def now() -> float:
    """The time of a history."""
    return time.monotonic()


def expiry(wall_seconds: float) -> float:
    """A time of day as the time of a history."""
    return wall_seconds - time.time() + time.monotonic()


def problems(history: History, ended: Iterable[str], leeway: float = 5.0) -> list[str]:
    """What is broken, a sentence each. *ended*: the sessions that the database holds for ended when all is over."""
    return [
        *one_live_successor(history),
        *refused_once_revoked(history),
        *newest_continues(history),
        *accepted_is_good(history, leeway),
        *revocations_survive(history, frozenset(ended)),
    ]


def one_live_successor(history: History) -> Iterator[str]:
    """I1: a rotation has one successor, and once that was used its predecessor is no longer accepted."""
    for session, calls in _accepted_by_session(history.refreshes):
        successors: dict[int, str] = {}
        for call in calls:
            if successors.setdefault(call.count, call.successor) != call.successor:
                yield f"I1: rotation {call.count} of {session} has two successors"
        by_end = sorted(calls, key=lambda call: call.end)
        at, newest = 0, -1
        for call in calls:
            while by_end[at].end < call.start:
                newest = max(newest, by_end[at].count)
                at += 1
            if call.count < newest:
                yield f"I1: rotation {call.count} of {session} was accepted after a newer one"


def refused_once_revoked(history: History) -> Iterator[str]:
    """I2: what starts later than the bound after an acknowledged revocation is not accepted."""
    acknowledged = history.acknowledged()
    calls: list[Refresh | Use] = [*history.refreshes, *history.uses]
    for call in calls:
        bound = call.bound if isinstance(call, Use) else 0.0
        late = call.start - acknowledged.get(call.session, math.inf) - bound
        if call.outcome == OK and late > 0:
            place = call.place if isinstance(call, Use) else "the service"
            yield f"I2: {place} accepted {call.session} {late:.3f} s too late"


def newest_continues(history: History) -> Iterator[str]:
    """I3: clients present their newest refresh token: nothing but a revocation may refuse it, and the last is good."""
    attempted = history.attempted()
    for session, calls in _by_session(history.refreshes):
        for call in calls:
            is_refused = call.outcome != OK and call.outcome not in UNDECIDED
            if is_refused and call.end < attempted.get(session, math.inf):
                yield f"I3: the newest token of {session} was refused: {call.outcome}"
        if session not in attempted and calls[-1].outcome != OK:
            yield f"I3: {session} could not go on: {calls[-1].outcome}"


def accepted_is_good(history: History, leeway: float) -> Iterator[str]:
    """I4: what was accepted had been issued, was for that place, and had not expired."""
    for call in history.uses:
        if call.outcome != OK:
            continue
        token = history.issued.get(call.token)
        if token is None:
            yield f"I4: {call.place} accepted a token that was never issued"
        elif token.audience not in history.audiences[call.place]:
            yield f"I4: {call.place} accepted a token for {token.audience}"
        elif call.start >= token.expire_time + leeway:
            yield f"I4: {call.place} accepted a token {call.start - token.expire_time:.3f} s after its expiry"


def revocations_survive(history: History, ended: frozenset[str]) -> Iterator[str]:
    """I5: an acknowledged revocation is there after every crash, and at the end."""
    last_crash = max(history.crashes, default=-math.inf)
    for session, end in history.acknowledged().items():
        if session not in ended:
            yield f"I5: the acknowledged end of {session} is lost"
        elif end < last_crash and any(
            call.outcome == OK and call.session == session and call.start > last_crash for call in history.refreshes
        ):
            yield f"I5: {session} lives again after a crash"


def _by_session(calls: list[Refresh]) -> Iterator[tuple[str, list[Refresh]]]:
    for session, group in groupby(
        sorted(calls, key=lambda call: (call.session, call.start)), lambda call: call.session
    ):
        yield session, list(group)


def _accepted_by_session(calls: list[Refresh]) -> Iterator[tuple[str, list[Refresh]]]:
    return _by_session([call for call in calls if call.outcome == OK])
