"""The keys of the mirror: one description for the service that writes them and for all who read them.

With the default prefix `identity:`, every key a plain text:

    identity:jti:<jti>    exists while this token is revoked
    identity:sid:<sid>    exists while this session or credential is ended: every token of it
    identity:kid:<kid>    exists while this signing key is revoked: every token it signed
    identity:gen:<sub>    lowest good `gen` of the account's tokens
    identity:pol:<role>   lowest good `pol` of tokens that carry the role
    identity:trust        the sentinel, JSON: epoch, version, count (of entries), time_ms, run_id, beat_ms
    identity:fresh        exists while the sentinel is less than 30 s old
    identity:builder      exists while a process builds the mirror anew: its name, and how far it is

An entry's key expires with the entry: when no token that it concerns can be alive. Invariant: with the sentinel's epoch
and version, every entry of the feed up to that version that has not expired is here. The sentinel is written in one
transaction with what it vouches for, at least each second, and is missing while the mirror is built anew. *time_ms* is
by the clock of Redis itself (TIME): the feed was read after that. So nobody's clocks are compared. Without a sentinel,
or with one that is too old, nothing is known: an absent entry says nothing then.

A clock of Redis that is ahead for a while makes it drop entries for good. So the sentinel expires as well, five minutes
after it was written: sooner than any entry that a living token needs. And the service goes on from a sentinel only
where it was written in the same run of Redis (*run_id* of INFO) and, by *beat_ms*, less than 30 s ago; else it builds
the mirror anew.

A prefix with a hash tag, such as `{identity}:`, keeps all keys in one slot of a cluster.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from identity_client.tokens.claims import Claims
from identity_client.trust.entries import Entry, EntryKind

DEFAULT_PREFIX = "identity:"
FRESH_SECONDS = 30
TRUST_SECONDS = 300
"""An entry is kept ten minutes longer than any token needs it. The service vouches for a Redis whose clock is up to
five of them ahead: five are left, and a clock that makes an entry expire too early takes the sentinel first."""

_PREFIX = re.compile(r"[A-Za-z0-9:._{}-]{1,64}")  # nothing that has a meaning in a pattern of SCAN
_NAMES = {
    EntryKind.TOKEN: "jti",
    EntryKind.GRANT: "sid",
    EntryKind.ACCOUNT: "gen",
    EntryKind.ROLE: "pol",
    EntryKind.KEY: "kid",
}
_REVOKING = (EntryKind.TOKEN, EntryKind.GRANT, EntryKind.KEY)


@dataclass(frozen=True, slots=True)
class Sentinel:
    """What vouches for the rest. *run_id* is empty and *beat_ms* 0 where they are not told."""

    epoch: str
    version: int
    count: int
    time_ms: int
    run_id: str
    beat_ms: int

    def text(self) -> str:
        """The value of the key."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def parse(cls, text: str | None) -> Sentinel | None:
        """None where there is none, or none that makes sense."""
        try:
            value = json.loads(text or "")
            return cls(
                epoch=str(value["epoch"]),
                version=int(value["version"]),
                count=int(value["count"]),
                time_ms=int(value["time_ms"]),
                run_id=str(value.get("run_id", "")),
                beat_ms=int(value.get("beat_ms", 0)),
            )
        except (ValueError, KeyError, TypeError, OverflowError):
            return None


class Schema:
    """The keys below one *prefix*. Raises ValueError for one that does not do."""

    def __init__(self, prefix: str = DEFAULT_PREFIX) -> None:
        if not is_prefix(prefix):
            raise ValueError("a prefix is 1-64 of A-Z, a-z, 0-9, ':', '.', '_', '-', '{' and '}'")
        self.prefix = prefix
        self.trust = f"{prefix}trust"
        self.fresh = f"{prefix}fresh"
        self.builder = f"{prefix}builder"
        self.entries = tuple(f"{prefix}{name}:" for name in _NAMES.values())

    def key(self, kind: EntryKind, name: str) -> str:
        """The key of an entry."""
        return f"{self.prefix}{_NAMES[kind]}:{name}"

    def value(self, entry: Entry) -> str:
        """The value of an entry's key."""
        return "1" if entry.kind in _REVOKING else str(entry.minimum)

    def keys(self, claims: Claims) -> list[str]:
        """What is to be read for one token, the sentinel first."""
        named = [(EntryKind.GRANT, claims.grant_id)]
        if claims.token_id:  # an opaque text has neither an id of its own nor a key
            named += [(EntryKind.TOKEN, claims.token_id), (EntryKind.KEY, claims.key_id)]
        named += [(EntryKind.ACCOUNT, claims.account_id), *((EntryKind.ROLE, role) for role in claims.roles)]
        return [self.trust, *(self.key(kind, name) for kind, name in named)]

    def standing(self, claims: Claims, values: Sequence[str | None]) -> tuple[bool, bool]:
        """-> whether the token is revoked, whether it is outdated, by the *values* of `keys`."""
        ends = 4 if claims.token_id else 2
        revoking, generation, policies = values[1:ends], values[ends], values[ends + 1 :]
        is_revoked = any(value is not None for value in revoking)
        is_outdated = claims.generation < _minimum(generation)
        is_outdated |= any(claims.policy_version < _minimum(value) for value in policies)
        return is_revoked, is_outdated


def _minimum(text: str | None) -> float:
    """What is no number is above every token, and harms no other one's answer."""
    try:
        return int(text or 0)
    except ValueError:
        return math.inf


def is_prefix(text: str) -> bool:
    """Whether *text* can be a prefix."""
    return _PREFIX.fullmatch(text) is not None
