"""Can an attacker tell unknown, wrong and disabled apart? `make attacks` times 2,000 log-ins of each.

Replies and trailers are compared byte by byte in every run. Times are judged in the long run alone: a classifier that
knows nothing but how long each call took must do no better than a coin. Hashes are as cheap as they can be, so that
they hide nothing; throttling is effectively off.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from identity.domain.values import AccountRef
from identity.house import LOCAL_ACT
from identity.server import Server
from tests.rpc.api import USER_PASSWORD, Api, MakeSettings
from tests.rpc.refusals import refused

LOG_INS = int(os.environ.get("IDENTITY_TEST_LOG_INS", "100"))
FEWEST_TO_JUDGE = 2_000
NAMES = 10
WRONG = "not the password at all"
KINDS = {"unknown": USER_PASSWORD, "wrong": WRONG, "disabled": USER_PASSWORD}
UNLIMITED = 1_000_000


@pytest.fixture
async def api(make_settings: MakeSettings) -> AsyncIterator[Api]:
    server = Server(make_settings(throttle_name_failures=UNLIMITED, throttle_shared_origin_failures=UNLIMITED))
    api = Api(server, await server.start())
    assert server.house is not None
    for number in range(NAMES):
        for kind in ("wrong", "disabled"):
            await server.house.accounts.create_user(f"{kind}-{number}", USER_PASSWORD, (), LOCAL_ACT)
        await server.house.accounts.disable(AccountRef(username=f"disabled-{number}"), LOCAL_ACT)
    yield api
    await api.channel.close()
    await server.stop()


@pytest.mark.requirement("R50")
@pytest.mark.timeout(600)
async def test_neither_bytes_nor_times_tell_unknown_wrong_and_disabled_apart(api: Api) -> None:
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    answers: set[Any] = set()
    order = random.Random(1)
    for number in range(LOG_INS):
        for kind in order.sample(list(KINDS), len(KINDS)):
            begin = time.perf_counter()
            error = await refused(api.login(f"{kind}-{number % NAMES}", KINDS[kind]))
            times[kind].append(time.perf_counter() - begin)
            answers.add(answer(error))
    assert len(answers) == 1
    found = {pair: area_under_curve(times[pair[0]], times[pair[1]]) for pair in itertools.combinations(KINDS, 2)}
    print(*(f"{first} against {second}: AUC {area:.3f}" for (first, second), area in found.items()), sep="\n")
    if LOG_INS >= FEWEST_TO_JUDGE:
        assert all(0.45 < area < 0.55 for area in found.values()), found


def answer(error: grpc.aio.AioRpcError) -> tuple[Any, ...]:
    """All that a caller sees of a refusal but its time."""
    return error.code(), error.details(), tuple(error.trailing_metadata() or ()), tuple(error.initial_metadata() or ())


def area_under_curve(first: list[float], second: list[float]) -> float:
    """How often a time of *second* is the longer one of a pair, ties counting half (Mann and Whitney's statistic)."""
    ranked = sorted([(value, 0) for value in first] + [(value, 1) for value in second])
    total, position = 0.0, 0
    for _, tied in itertools.groupby(ranked, key=lambda item: item[0]):
        members = [of for _, of in tied]
        total += sum(members) * (position + (len(members) + 1) / 2)
        position += len(members)
    return (total - len(second) * (len(second) + 1) / 2) / (len(first) * len(second))


def test_the_classifier_would_see_a_difference() -> None:
    assert area_under_curve([1, 2, 3], [1, 2, 3]) == 0.5
    assert area_under_curve([1, 2, 3], [4, 5, 6]) == 1
    assert area_under_curve([1, 1], [1, 0]) == 0.25
