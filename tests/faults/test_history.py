"""The judge of the fault runs is judged: a good history passes, and each way to break an invariant is found."""

from __future__ import annotations

from copy import deepcopy

import pytest

from tests.faults.harness.history import OK, History, Issued, Refresh, Revoke, Use, problems

PEER = "peer"


def good() -> History:
    """A session that is renewed, once after a lost answer, and used; then revoked, refused, and not revived."""
    return History(
        refreshes=[
            Refresh("s", 1.0, 1.1, OK, 0, "one"),
            Refresh("s", 2.0, 2.1, "UNAVAILABLE", 1),
            Refresh("s", 2.2, 2.3, OK, 1, "two"),
            Refresh("s", 2.2, 2.4, OK, 1, "two"),
            Refresh("s", 6.0, 6.1, "SESSION_ENDED", 2),
            Refresh("t", 8.0, 8.1, OK, 0, "first"),
        ],
        revokes=[Revoke("s", 4.0, 4.5, "UNAVAILABLE"), Revoke("s", 5.0, 5.5, OK)],
        uses=[Use("s", 3.0, 3.1, OK, "token", PEER), Use("s", 5.6, 5.7, OK, "token", PEER, bound=0.25)],
        crashes=[7.0],
        issued={"token": Issued("internal", 10.0), "for others": Issued("billing", 10.0)},
        audiences={PEER: frozenset({"internal"})},
    )


def test_a_good_history_has_no_problems() -> None:
    assert problems(good(), ended=["s"]) == []


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (Refresh("s", 2.2, 2.3, OK, 1, "fork"), "I1: rotation 1 of s has two successors"),
        (Refresh("s", 2.35, 2.4, OK, 0, "one"), "I1: rotation 0 of s was accepted after a newer one"),
        (Refresh("s", 5.6, 5.7, OK, 2, "three"), "I2: the service accepted s 0.100 s too late"),
        (Use("s", 5.8, 5.9, OK, "token", PEER, bound=0.25), "I2: peer accepted s 0.050 s too late"),
        (Refresh("s", 3.0, 3.1, "REFRESH_REUSED", 2), "I3: the newest token of s was refused: REFRESH_REUSED"),
        (Refresh("t", 9.0, 9.1, "UNAVAILABLE", 1), "I3: t could not go on: UNAVAILABLE"),
        (Use("t", 9.0, 9.1, OK, "forged", PEER), "I4: peer accepted a token that was never issued"),
        (Use("t", 9.0, 9.1, OK, "for others", PEER), "I4: peer accepted a token for billing"),
        (Use("t", 15.0, 15.1, OK, "token", PEER), "I4: peer accepted a token 5.000 s after its expiry"),
    ],
)
def test_one_bad_call_is_found(call: Refresh | Use, said: str) -> None:
    history = deepcopy(good())
    if isinstance(call, Refresh):
        history.refreshes.append(call)
    else:
        history.uses.append(call)
    assert problems(history, ended=["s"]) == [said]


def test_a_lost_revocation_is_found() -> None:
    assert problems(good(), ended=[]) == ["I5: the acknowledged end of s is lost"]


def test_a_session_that_lives_again_after_a_crash_is_found() -> None:
    history = good()
    history.refreshes.append(Refresh("s", 7.1, 7.2, OK, 2, "three"))
    assert problems(history, ended=["s"]) == [
        "I2: the service accepted s 1.600 s too late",
        "I5: s lives again after a crash",
    ]
