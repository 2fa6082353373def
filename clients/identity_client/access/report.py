"""Report-only mode: who would have been refused, and why. No token text ever comes here."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import NamedTuple

from identity_client.clock import Clock
from identity_client.errors import IdentityError

UNAUTHENTICATED = "unauthenticated"
OTHERS = "others"

_WARNING_SECONDS = 60.0
_MAXIMUM_LINES = 1_000

_log = logging.getLogger(__name__)


class WouldBeRefusal(NamedTuple):
    """What calls have in common that would have been refused. *caller* is an account id if the token was genuine,
    `unauthenticated` if not; *address* is the caller's host."""

    method: str
    reason: str
    caller: str
    address: str


class Report:
    """Counts the refusals that were not enforced. Each new kind is logged at once, and each minute in which calls come,
    a warning names the methods. At most 1,000 kinds are told apart; further ones are counted together by reason.
    Safe to use from several threads."""

    def __init__(self, name: str, clock: Clock) -> None:
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[WouldBeRefusal] = Counter()
        self._recent: Counter[tuple[str, str]] = Counter()  # since the last warning, by method and reason
        self._minute_start = clock.monotonic()

    def counts(self) -> dict[WouldBeRefusal, int]:
        """How many calls of each kind would have been refused since the guard was made."""
        with self._lock:
            return dict(self._counts)

    def note(self, method: str, error: IdentityError, address: str) -> None:
        """A call of *method* would have been refused with *error*."""
        kind = WouldBeRefusal(method, error.reason, error.account_id or UNAUTHENTICATED, address)
        with self._lock:
            if kind not in self._counts and len(self._counts) >= _MAXIMUM_LINES:
                kind = WouldBeRefusal(OTHERS, error.reason, OTHERS, OTHERS)
            is_new = kind not in self._counts
            self._counts[kind] += 1
            self._recent[kind.method, kind.reason] += 1
        if is_new:
            _log.warning(
                "the guard of %s would have refused %s with %s: caller %s at %s", self._name, *kind[:2], *kind[2:]
            )

    def tick(self) -> None:
        """Warns if a minute has passed. To be called with every call that is not enforced."""
        with self._lock:
            now = self._clock.monotonic()
            if now - self._minute_start < _WARNING_SECONDS:
                return
            self._minute_start = now
            recent, self._recent = self._recent, Counter()
        _log.warning(
            "the guard of %s only reports; in the last minute it would have refused %s", self._name, _told(recent)
        )


def host_of(peer: str) -> str:
    """The host in what grpc calls a peer: 127.0.0.1, 2001:db8::1, unix, or empty."""
    kind, _, address = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    return address.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")


def _told(recent: Counter[tuple[str, str]]) -> str:
    if not recent:
        return "no call"
    return ", ".join(f"{method} {count} x {reason}" for (method, reason), count in sorted(recent.items()))
