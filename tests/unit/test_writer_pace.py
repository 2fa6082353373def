"""When the next transaction begins: at once for whoever writes alone, together with others in a crowd."""

from __future__ import annotations

import pytest

from identity.storage.writer import CROWD, INTERVAL_SECONDS, Pace

START = 0.0


def test_the_first_piece_does_not_wait() -> None:
    assert Pace().wait_seconds(START) == 0


def test_whoever_writes_one_piece_after_another_does_not_wait() -> None:
    pace = Pace()
    for number in range(20):
        now = START + number * INTERVAL_SECONDS / (CROWD - 1)
        assert pace.wait_seconds(now) == 0
        pace.begun(now, 1)


@pytest.mark.parametrize("batches", [[CROWD], [3 * CROWD], [1] * CROWD, [1, CROWD]])
def test_in_a_crowd_a_transaction_begins_an_interval_after_the_last(batches: list[int]) -> None:
    pace = Pace()
    for number, count in enumerate(batches):
        now = START + number * INTERVAL_SECONDS / 100
        pace.begun(now, count)
    later = now + INTERVAL_SECONDS / 4
    assert later + pace.wait_seconds(later) == pytest.approx(now + INTERVAL_SECONDS, abs=INTERVAL_SECONDS / 1_000)


def test_nobody_waits_longer_than_the_interval_and_a_crowd_that_is_gone_holds_nobody_up() -> None:
    pace = Pace()
    pace.begun(START, 100)
    assert 0 < pace.wait_seconds(START) <= INTERVAL_SECONDS
    for late in (1.01, 1.5):
        now = START + late * INTERVAL_SECONDS
        assert pace.wait_seconds(now) == 0
        pace.begun(now, 1)
