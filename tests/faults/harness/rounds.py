"""How much is done: a little in every run of the tests, all of it by `make faults`; and by which seed."""

from __future__ import annotations

import os
import random

ROUNDS = int(os.environ.get("IDENTITY_TEST_ROUNDS", "1"))
_WHOLE_ROUNDS = 10

SEED = int(os.environ.get("IDENTITY_TEST_SEED") or random.SystemRandom().randrange(1_000_000))

RECOVERY_SECONDS = 6.0 if ROUNDS == 1 else 2.0
"""Within which all is normal after the database's return. An ordinary run shares its machine with others."""


def times(short: int, whole: int) -> int:
    """*short* in an ordinary run; *whole* at ten rounds, and a share of it between."""
    return short if ROUNDS == 1 else max(short, whole * ROUNDS // _WHOLE_ROUNDS)
