"""When a signing key is prepared, and when its time has come."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from identity.domain.signing_keys import (
    KEPT_SECONDS,
    MAXIMUM_PUBLISHED,
    PUBLISHED_SECONDS,
    Activate,
    Prepare,
    next_step,
    remove_time,
)
from identity.domain.values import KeyState, Seconds, SigningKeyRecord
from identity_client.trust.wire import MAXIMUM_KEYS

pytestmark = pytest.mark.requirement("R26")

LIFETIME = timedelta(days=30)
DAY = 86_400


def key(name: str, state: KeyState, create_time: int, **times: int) -> SigningKeyRecord:
    record = SigningKeyRecord(name, state, b"", b"", b"", Seconds(create_time))
    return replace(record, **times)  # type: ignore[arg-type]


ACTIVE = key("old", KeyState.ACTIVE, 0, activate_time=DAY)
NEXT = key("next", KeyState.PREPARED, DAY)
DUE = DAY + 30 * DAY


def test_the_next_key_is_prepared_as_soon_as_there_is_none() -> None:
    assert next_step([ACTIVE], Seconds(DAY), LIFETIME) == Prepare()


@pytest.mark.parametrize(("now", "step"), [(DAY, None), (DUE - 1, None), (DUE, Activate("next"))])
def test_a_key_signs_for_its_lifetime(now: int, step: Activate | None) -> None:
    assert next_step([ACTIVE, NEXT], Seconds(now), LIFETIME) == step


@pytest.mark.parametrize(("age", "step"), [(PUBLISHED_SECONDS - 1, None), (PUBLISHED_SECONDS, Activate("next"))])
def test_a_key_that_peers_may_not_know_waits_however_old_the_active_one_is(age: int, step: Activate | None) -> None:
    late = key("next", KeyState.PREPARED, 2 * DUE - age)
    assert next_step([ACTIVE, late], Seconds(2 * DUE), LIFETIME) == step


def test_a_key_from_before_rotation_is_as_old_as_it_was_made() -> None:
    assert next_step([key("old", KeyState.ACTIVE, 0), NEXT], Seconds(30 * DAY), LIFETIME) == Activate("next")


def test_nothing_is_prepared_that_peers_would_not_take() -> None:
    assert MAXIMUM_PUBLISHED == MAXIMUM_KEYS
    retired = [key(f"{n}", KeyState.RETIRED, 0, retire_time=1) for n in range(MAXIMUM_PUBLISHED - 1)]
    assert next_step([ACTIVE, *retired], Seconds(DUE), LIFETIME) is None
    assert next_step([ACTIVE, *retired[1:]], Seconds(DUE), LIFETIME) == Prepare()


def test_a_key_that_is_out_of_use_says_when_it_goes() -> None:
    assert remove_time(ACTIVE) is None
    assert remove_time(key("a", KeyState.RETIRED, 0, retire_time=5)) == 5 + KEPT_SECONDS
    assert remove_time(key("a", KeyState.REVOKED, 0, retire_time=5, revoke_time=9)) == 9 + KEPT_SECONDS
