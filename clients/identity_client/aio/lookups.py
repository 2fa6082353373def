"""Between the guards of a peer and its source of revocations: asks for each call, and again for calls that run on."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, replace

from identity_client.clock import Clock
from identity_client.tokens.claims import Claims
from identity_client.trust.source import Answer, RevocationSource, SourceDown
from identity_client.trust.state import LONGEST_SKEW_SECONDS

INTERVAL_SECONDS = 0.1
"""How often the source is asked about running calls; without any, whether it still vouches."""

_FORGET_SECONDS = 2.0  # a call that was not recalled for so long has ended
_PART = 100  # tokens a round trip
_LOG_SECONDS = 60.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Memory:
    """The newest answer about the token of a running call, when it was asked for, and when it was last wanted."""

    answer: Answer
    asked_at: float
    wanted_at: float


class Lookups:
    """Lives on one event loop; `recall`, `staleness` and `is_ready` may be used from any thread.

    A source that does not answer knows nothing about a new call. About a running one its last word stands, and grows
    old. Nor does it count while its clock and ours are further apart than LONGEST_SKEW_SECONDS: its entries could end
    before the tokens that they concern.
    """

    def __init__(self, source: RevocationSource, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._fresh_at = -math.inf
        self._entry_count = 0
        self._memories: dict[Claims, _Memory] = {}
        self._logged_at = -math.inf
        self._is_closed = False
        self.clock_skew_seconds = 0.0
        """How far the source's clock is ahead of ours."""
        self.ready = asyncio.Event()
        """Set once the source has vouched for what it holds."""
        self.problem = ""
        """Why it does not; empty while it does."""

    @property
    def is_ready(self) -> bool:
        """Whether the source has ever vouched for what it holds."""
        return self.ready.is_set()

    def staleness(self) -> float:
        """How old the source's knowledge is; infinite while it does not vouch for it."""
        return self._clock.monotonic() - self._fresh_at

    def entry_count(self) -> int:
        """How many revocations the source holds."""
        return self._entry_count

    async def look(self, claims: Claims) -> Answer:
        """The answer about one token; without one, an answer that knows nothing."""
        try:
            _, [answer] = await self._ask([claims])
        except SourceDown as error:
            self._note_problem(str(error))
            return Answer()
        return answer

    def recall(self, claims: Claims) -> Answer:
        """The newest answer about the token of a running call. The first time: it was judged a moment ago."""
        now = self._clock.monotonic()
        memory = self._memories.get(claims)
        if memory is None:
            memory = self._memories[claims] = _Memory(Answer(self.staleness()), now, now)
        memory.wanted_at = now
        return memory.answer.later(now - memory.asked_at)

    async def run(self) -> None:
        """Ask until cancelled; no failure ends it."""
        while True:
            try:
                await self._round()
            except SourceDown as error:
                self._note_problem(str(error))
            except Exception:
                _log.exception("running calls could not be looked up")
            await asyncio.sleep(INTERVAL_SECONDS)

    async def close(self) -> None:
        """Close the source; from now on nothing is known."""
        self._is_closed = True
        await self._source.close()

    async def _round(self) -> None:
        now = self._clock.monotonic()
        for claims, memory in tuple(self._memories.items()):
            if now - memory.wanted_at > _FORGET_SECONDS:
                del self._memories[claims]
        running = tuple(self._memories)
        for at in range(0, max(1, len(running)), _PART):
            part = running[at : at + _PART]
            asked_at = self._clock.monotonic()
            _, answers = await self._ask(part)
            for claims, answer in zip(part, answers, strict=True):
                self._remember(claims, answer, asked_at)

    def _remember(self, claims: Claims, answer: Answer, asked_at: float) -> None:
        memory = self._memories[claims]
        if answer.is_revoked or answer.is_outdated or answer.age_seconds < math.inf:
            memory.answer, memory.asked_at = answer, asked_at

    async def _ask(self, claims: tuple[Claims, ...] | list[Claims]) -> tuple[Answer, list[Answer]]:
        if self._is_closed:
            raise SourceDown("it is closed")
        asked_at = self._clock.monotonic()
        state, answers = await self._source.ask(claims)
        self.clock_skew_seconds = state.server_time - self._clock.now()
        if abs(self.clock_skew_seconds) > LONGEST_SKEW_SECONDS:
            state, answers = _unvouched(state), [_unvouched(answer) for answer in answers]
            self._note_problem("its clock and ours are too far apart to judge expiry: set both by NTP")
        elif state.age_seconds == math.inf:
            self._note_problem("it is empty, or being filled")
        else:
            self.problem = ""
            self.ready.set()
        self._fresh_at, self._entry_count = asked_at - state.age_seconds, state.entry_count
        return state, answers

    def _note_problem(self, problem: str) -> None:
        """One line for each new problem, and for a lasting one a line a minute."""
        now = self._clock.monotonic()
        if problem != self.problem or now - self._logged_at >= _LOG_SECONDS:
            _log.warning("the source of revocations does not count: %s", problem)
            self._logged_at = now
        self.problem = problem


def _unvouched(answer: Answer) -> Answer:
    return replace(answer, age_seconds=math.inf)
