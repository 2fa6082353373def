"""The fence: after a restore or a breach nothing that was issued before is accepted any more.

A database that was set back has forgotten revocations, and sessions that were ended since. So all sessions end, every
signing key is replaced, every account's generation is raised, and the feed begins a new epoch: peers drop what they
hold and take a new snapshot. What an administrator chose, a password or a credential, stays, unless credentials are to
end as well: those that were revoked after the restored copy was made are live again in it, and nobody can tell which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from identity_client.clock import Clock

from .values import Act, Seconds, SigningKeyRecord


@dataclass(frozen=True, slots=True)
class Fenced:
    """What a fence ended."""

    grant_count: int
    account_count: int  # whose generation was raised
    key_count: int  # revoked
    active_key_id: str


class FenceStore(Protocol):
    """Ends everything at once."""

    async def fence(self, new_key: SigningKeyRecord, act: Act, *, with_credentials: bool) -> Fenced:
        """End all sessions (*with_credentials*: all grants), revoke all keys, sign with *new_key*, raise every
        account's generation, begin a new epoch.
        """

    async def renew_epoch(self, epoch: str, act: Act) -> bool:
        """Begin a new epoch unless another has begun one since *epoch*; whether it did."""


class Fencer:
    """Draws the fence."""

    def __init__(self, store: FenceStore, make_key: Callable[[Seconds], SigningKeyRecord], clock: Clock) -> None:
        self._store = store
        self._make_key = make_key
        self._clock = clock

    async def fence(self, act: Act, *, with_credentials: bool) -> Fenced:
        """End what was issued before, in one transaction. Replicas that run follow within a second.

        *with_credentials*: API keys, client secrets, public keys and certificate identities, too.
        """
        new_key = self._make_key(Seconds(int(self._clock.now())))
        return await self._store.fence(new_key, act, with_credentials=with_credentials)
