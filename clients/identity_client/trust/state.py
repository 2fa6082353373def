"""The trust state: an issuer's keys and revocations as of a version, and how old that knowledge is.

It is fed by three kinds of events (keys, snapshot, changes) and proved by a fourth, the heartbeat: versions leave no
gap, and the digest of what is held equals the sender's.

Pure, and without locks. One thread or event loop feeds it; any number of threads may judge by it meanwhile, with
`revision`, `expired_through`, `find_key`, `check`, `staleness` and `is_ready`. What they may rely on:
- Each entry appears wholly or not at all, and a snapshot all at once: what it replaces stays in force until then.
- Numbers follow the data they announce. Whoever reads `version` or `revision` and then judges, judges by all that the
  number stands for, and perhaps by more; so a judgement that is remembered with the revision read before it is never
  taken for newer than it is.
- `expired_through` moves before anything is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from identity_client.clock import Clock
from identity_client.errors import TokenOutdated, TokenRevoked
from identity_client.tokens.claims import Claims
from identity_client.tokens.keys import PublicKey
from identity_client.trust.entries import Batch, Entry, EntryKind
from identity_client.trust.revocations import Revocations

LONGEST_SKEW_SECONDS = 600.0
"""Clocks that differ by more cannot judge expiry: entries outlive the tokens they concern by ten minutes."""


class TrustGap(Exception):
    """An event does not follow what is held: a whole snapshot is needed."""


class TrustDiverged(Exception):
    """What is held differs from what the sender holds at the same version: a whole snapshot is needed."""


class TrustState:
    """Keys and revocations of one issuer. Admits nothing (is_ready is False) before keys and a snapshot are whole."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.issuer = ""
        self.epoch = ""
        self.version = 0
        self.expired_through = 0
        """Entries that expire at or before this (Unix seconds) are forgotten; never moves back."""
        self.revision = 0
        """Moves with every change that could change a judgement."""
        self.clock_skew_seconds = 0.0
        """How far the sender's clock was ahead of ours at its last heartbeat, give or take the way it took."""
        self._keys: dict[str, PublicKey] = {}
        self._held: Revocations | None = None
        self._arriving: _Snapshot | None = None
        self._fresh_at = -math.inf

    # -- what is known -----------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether keys and a whole snapshot are held, and its age is known."""
        return self._held is not None and bool(self._keys) and self._fresh_at > -math.inf

    @property
    def keys(self) -> tuple[PublicKey, ...]:
        """The published keys."""
        return tuple(self._keys.values())

    def find_key(self, key_id: str) -> PublicKey | None:
        """The published key of this name."""
        return self._keys.get(key_id)

    def is_key_revoked(self, key_id: str) -> bool:
        """Whether no token of this key is accepted, whoever else is its subject."""
        held = self._held
        return held is not None and held.contains(EntryKind.KEY, key_id)

    def entries(self) -> Iterator[Entry]:
        """Every live revocation."""
        return iter(self._held or ())

    @property
    def is_arriving(self) -> bool:
        """Whether a snapshot is on its way."""
        return self._arriving is not None

    def entry_count(self) -> int:
        """How many revocations are live."""
        return len(self._held or ())

    def batches(self, size: int) -> Iterator[Batch]:
        """What is held now, at most *size* entries at a time, in the order a snapshot is sent; later changes do not
        show."""
        return (self._held or Revocations()).batches(size)

    def digest(self) -> tuple[int, str]:
        """Count and folded records of the live revocations."""
        return (self._held or Revocations()).digest()

    def staleness(self) -> float:
        """How many seconds ago what is held was certainly all there was; infinite before the first time."""
        if self._held is None or not self._keys:
            return math.inf
        return self._clock.monotonic() - self._fresh_at

    def check(self, claims: Claims) -> None:
        """Whether anything *claims* rest on was taken back. Raises TokenRevoked, TokenOutdated."""
        held = self._held
        if not held:
            return  # nothing is revoked, or nothing is known yet: then staleness is infinite
        if held.contains(EntryKind.GRANT, claims.grant_id):
            raise TokenRevoked()
        is_signed = claims.token_id != ""  # an opaque text has neither an id of its own nor a key
        if is_signed and (
            held.contains(EntryKind.TOKEN, claims.token_id) or held.contains(EntryKind.KEY, claims.key_id)
        ):
            raise TokenRevoked()
        if claims.generation < held.minimum(EntryKind.ACCOUNT, claims.account_id):
            raise TokenOutdated()
        if any(claims.policy_version < held.minimum(EntryKind.ROLE, role) for role in claims.roles):
            raise TokenOutdated()

    # -- what arrives ------------------------------------------------------------------------------------------

    def set_keys(self, issuer: str, keys: Iterable[PublicKey]) -> None:
        """Replace issuer and keys; every stream begins with them, so mostly nothing changes."""
        by_name = {key.key_id: key for key in keys}
        if (issuer, by_name) != (self.issuer, self._keys):
            self.issuer, self._keys = issuer, by_name
            self.revision += 1

    def begin_snapshot(self, epoch: str, version: int, count: int, digest: str = "") -> None:
        """A snapshot of *count* entries follows; what it had begun before is dropped.

        It may be older than what is held, and is completed by changes. So what is held stays in force until all the
        entries are here, have the *digest* that was announced, if one was, and a heartbeat agrees (or `swap` is
        called); only where nothing is held it comes into force when it is whole. Raises TrustDiverged.
        """
        self._arriving = _Snapshot(epoch, version, count, digest)
        self._take_in(Batch())

    def add_snapshot(self, entries: Iterable[Entry]) -> None:
        """A part of it. Raises TrustGap: more came than was announced, or nothing was announced; TrustDiverged: it is
        whole, and not what was announced."""
        part = Batch.of(entries)
        if part:
            self._take_in(part)

    def swap(self) -> None:
        """Put a whole snapshot into force: whoever calls this knows that it is all there is."""
        snapshot = self._arriving
        if snapshot is None or snapshot.missing:
            raise TrustGap("no whole snapshot has arrived")
        snapshot.revocations.expire(self.expired_through)
        self._held = snapshot.revocations
        self.epoch, self.version = snapshot.epoch, snapshot.version
        self._arriving = None
        self.revision += 1

    def drop_snapshot(self) -> None:
        """Forget a snapshot on its way: the stream that brought it has ended."""
        self._arriving = None

    def apply(self, first: int, last: int, entries: Iterable[Entry]) -> None:
        """The changes of the versions *first* to *last*; those that are held already are no harm.

        Raises TrustGap: one before *first* is missing.
        """
        arriving = self._arriving
        version = arriving.version if arriving is not None else self.version
        held = arriving.revocations if arriving is not None else self._held
        if held is None or (arriving is not None and arriving.missing) or first > version + 1 or last < first:
            raise TrustGap(f"changes {first}-{last} do not follow version {version}")
        if last <= version:
            return
        held.add(entries)
        if arriving is not None:
            arriving.version = last
        else:
            self.version = last
            self.revision += 1

    def expire(self, through: int) -> None:
        """Forget what expires at or before *through*; an earlier time than the last is ignored.

        Forgetting refuses nothing that was accepted, so the revision stays.
        """
        if through > self.expired_through:
            self.expired_through = through
            if self._held is not None:
                self._held.expire(through)

    def heartbeat(
        self,
        *,
        epoch: str,
        version: int,
        server_time: float,
        expired_through: int,
        entry_count: int,
        digest: str,
        data_age_seconds: float,
    ) -> None:
        """The sender's own account of what it holds. Raises TrustGap (another version), TrustDiverged.

        Only a heartbeat that agrees makes the state fresh, and none does while the clocks (*server_time* in Unix
        seconds, and ours) are further apart than LONGEST_SKEW_SECONDS.
        """
        self.clock_skew_seconds = server_time - self._clock.now()
        if abs(self.clock_skew_seconds) > LONGEST_SKEW_SECONDS:
            return
        if self._arriving is not None:
            self._prove(self._arriving, epoch, version, expired_through, entry_count, digest)
        if self._held is None or (epoch, version) != (self.epoch, self.version):
            raise TrustGap(f"the sender is at version {version}, we are at {self.version}")
        self.expire(expired_through)
        # A sender whose clock is behind the last one's still counts entries that are forgotten here.
        if expired_through == self.expired_through and self.digest() != (entry_count, digest):
            raise TrustDiverged(f"at version {version} the digests differ")
        self.touch(data_age_seconds)

    def touch(self, data_age_seconds: float) -> None:
        """What is held was all there was *data_age_seconds* ago."""
        self._fresh_at = max(self._fresh_at, self._clock.monotonic() - data_age_seconds)

    def _take_in(self, part: Batch) -> None:
        snapshot = self._arriving
        if snapshot is None or len(part) > snapshot.missing:
            raise TrustGap("more entries came than a snapshot announced")
        snapshot.add(part)
        if snapshot.missing:
            return
        if snapshot.digest and snapshot.revocations.digest()[1] != snapshot.digest:
            self._arriving = None
            raise TrustDiverged(f"the snapshot of version {snapshot.version} has another digest than announced")
        if self._held is None:
            self.swap()

    def _prove(
        self, snapshot: _Snapshot, epoch: str, version: int, expired_through: int, entry_count: int, digest: str
    ) -> None:
        """Put *snapshot* into force if the sender holds the same."""
        self._arriving = None
        if snapshot.missing or (epoch, version) != (snapshot.epoch, snapshot.version):
            raise TrustGap(f"the sender is at version {version}, its snapshot at {snapshot.version}")
        snapshot.revocations.expire(expired_through)
        if snapshot.revocations.digest() != (entry_count, digest):
            raise TrustDiverged(f"at version {version} the snapshot has another digest")
        self._arriving = snapshot
        self.swap()


class _Snapshot:
    """A snapshot on its way in."""

    def __init__(self, epoch: str, version: int, count: int, digest: str) -> None:
        self.epoch = epoch
        self.version = version
        self.missing = count
        self.digest = digest
        self.revocations = Revocations()

    def add(self, part: Batch) -> None:
        self.missing -= len(part)
        self.revocations.add(part)
