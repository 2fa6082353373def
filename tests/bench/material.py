"""What the benches work with: many revocations, and a trust state that holds them."""

from __future__ import annotations

import random
from collections.abc import Iterator

from identity_client.clock import Clock
from identity_client.tokens.keys import PublicKey
from identity_client.trust.entries import Batch
from identity_client.trust.revocations import Revocations
from identity_client.trust.state import TrustState
from tests.clients.issuer import ISSUER

PART_ENTRIES = 2_500
LIFETIME_SECONDS = 1_230
"""How long an entry lives at the default lifetimes: token, leeway, and ten minutes."""


def records(count: int, now: int) -> Iterator[bytes]:
    """Packed records of random ids, 2,500 at a time, that expire over the next twenty minutes."""
    chance = random.Random(7)
    for _ in range(0, count, PART_ENTRIES):
        yield b"".join(
            chance.randbytes(16) + (now + chance.randrange(60, LIFETIME_SECONDS)).to_bytes(4, "big")
            for _ in range(PART_ENTRIES)
        )


def filled(count: int, clock: Clock, key: PublicKey) -> TrustState:
    """A fresh trust state with so many revoked tokens."""
    state = TrustState(clock)
    state.set_keys(ISSUER, [key])
    state.begin_snapshot("epoch", count, count)
    for part in sorted_parts(count, int(clock.now())):
        state.add_snapshot(part)
    state.touch(0)
    return state


def sorted_parts(count: int, now: int) -> Iterator[Batch]:
    """The same as a service sends it."""
    held = Revocations()
    for part in records(count, now):
        held.add(Batch(tokens=part))
    return held.batches(PART_ENTRIES)
