"""The refresh decision as a table: held count, presented count, time -> what happens."""

from __future__ import annotations

import pytest

from identity.domain.grants import SessionRecord
from identity.domain.refresh import End, Refuse, Repeat, Rotate, decide
from identity.domain.values import Seconds
from identity_client.errors import RefreshReused, SessionEnded, SessionExpired, StoreSetBack

NOW = 1_000
GRACE_UNTIL = Seconds(NOW + 60)


def session(count: int = 5, end_time: int | None = None, expire_time: int = NOW + 500) -> SessionRecord:
    return SessionRecord(
        grant_id="A" * 22,
        account_id="B" * 22,
        count=count,
        salt=bytes(16),
        grace_until=GRACE_UNTIL,
        expire_time=Seconds(expire_time),
        end_time=None if end_time is None else Seconds(end_time),
    )


@pytest.mark.requirement("R25")
@pytest.mark.parametrize(
    ("held", "presented", "now", "expected", "error"),
    [
        (session(), 5, NOW, Rotate, None),
        (session(count=0), 0, NOW, Rotate, None),
        (session(), 4, NOW, Repeat, None),
        (session(), 4, GRACE_UNTIL - 0.001, Repeat, None),
        (session(), 4, GRACE_UNTIL, End, RefreshReused),
        (session(), 3, NOW, End, RefreshReused),
        (session(), 0, NOW, End, RefreshReused),
        (session(), 6, NOW, Refuse, StoreSetBack),
        (session(end_time=NOW - 1), 5, NOW, Refuse, SessionEnded),
        (session(end_time=NOW - 1), 3, NOW, Refuse, SessionEnded),
        (session(expire_time=NOW), 5, NOW, Refuse, SessionExpired),
        (session(expire_time=NOW + 1), 5, NOW, Rotate, None),
        (session(expire_time=NOW), 3, NOW, Refuse, SessionExpired),
    ],
)
def test_the_decision_follows_the_count_and_the_grace(
    held: SessionRecord, presented: int, now: float, expected: type, error: type | None
) -> None:
    decision = decide(held, presented, now)
    assert type(decision) is expected
    if error is not None:
        assert type(decision.error) is error  # type: ignore[union-attr]
