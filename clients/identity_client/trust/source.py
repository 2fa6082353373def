"""Revocations that are asked for call by call, wherever they are kept: what a source answers, and how it is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from identity_client.errors import TokenOutdated, TokenRevoked
from identity_client.tokens.claims import Claims


class SourceDown(Exception):
    """The source gave no answer, or none that makes sense; the text says why, without addresses and secrets."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a source holds against one token. *age_seconds*: how long ago that was certainly all there was; infinite
    where nothing vouches for it. *server_time* (Unix seconds) is the source's, *entry_count* all that it holds."""

    age_seconds: float = math.inf
    server_time: float = 0.0
    entry_count: int = 0
    is_revoked: bool = False
    is_outdated: bool = False

    def check(self) -> None:
        """Raises TokenRevoked, TokenOutdated."""
        if self.is_revoked:
            raise TokenRevoked()
        if self.is_outdated:
            raise TokenOutdated()

    def later(self, seconds: float) -> Answer:
        """The same, when it is so many seconds older."""
        return replace(self, age_seconds=self.age_seconds + seconds)


class RevocationSource(Protocol):
    """Where `Identity` asks in place of following the stream. Used by one Identity, on its event loop."""

    async def ask(self, claims: Sequence[Claims]) -> tuple[Answer, list[Answer]]:
        """-> what holds for any token, and the answer about each of *claims*, in one round trip. Raises SourceDown."""

    async def close(self) -> None:
        """Close every connection."""
