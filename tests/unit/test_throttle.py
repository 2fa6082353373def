"""How long a log-in waits: the decision alone, over made-up times."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.config import Settings
from identity.domain.origins import LOCAL, is_within, parse_networks, unit_of
from identity.domain.throttle import Bucket, Counter, Limit, admit
from identity_client.errors import Throttled

HOUR = 3_600_000
NOW = 1_900_000_000_000
NAME = Limit(free=10, interval_ms=900_000)
EMPTY = Bucket()


def hammered(limit: Limit, span_ms: int, now_ms: int = NOW, bucket: Bucket = EMPTY) -> tuple[list[int], Bucket]:
    """Who never stops for *span_ms*, and tries again in the very millisecond that an attempt is due.

    -> when the attempts were let through, and the bucket then.
    """
    times: list[int] = []
    end = now_ms + span_ms
    while now_ms <= end and len(times) < 1_000:
        if wait := bucket.wait_ms(limit, now_ms):
            now_ms += wait
            continue
        bucket = bucket.counted(limit, now_ms)
        times.append(now_ms)
    return times, bucket


@pytest.mark.requirement("R51")
def test_ten_failures_are_free_and_then_each_doubles_the_delay_up_to_a_quarter_of_an_hour() -> None:
    times, _ = hammered(NAME, 4 * HOUR)
    gaps = [(after - before) / 1_000 for before, after in itertools.pairwise(times)]
    assert gaps[:9] == [0] * 9
    assert gaps[9:16] == [14.062, 28.125, 56.25, 112.5, 225, 450, 900]
    assert max(gaps) == 900
    assert sum(gaps[15:]) / len(gaps[15:]) > 600


@pytest.mark.requirement("R51")
@pytest.mark.parametrize("failures", [3, 50])
@pytest.mark.parametrize("delay_seconds", [120, 3_600])
def test_at_the_widest_settings_an_hour_allows_fewer_than_a_hundred_guesses(failures: int, delay_seconds: int) -> None:
    settings = Settings(throttle_name_failures=failures, throttle_delay_seconds=delay_seconds)
    assert settings.problems() == []
    times, _ = hammered(Limit(failures, delay_seconds * 1_000), HOUR)
    assert len(times) < 100


def test_of_two_attempts_at_once_neither_waits_for_the_other_whichever_took_the_time_first() -> None:
    assert EMPTY.counted(NAME, NOW + 1).wait_ms(NAME, NOW) == 0


@pytest.mark.requirement("R51")
def test_a_pause_of_one_interval_forgets_one_failure() -> None:
    _, bucket = hammered(NAME, 0)
    assert bucket.wait_ms(NAME, NOW) > 0
    later = NOW + 2 * NAME.interval_ms
    times, _ = hammered(NAME, 0, later, bucket)
    assert len(times) == 2


@pytest.mark.requirement("R51")
def test_an_attempt_given_back_was_never_counted() -> None:
    bucket = EMPTY
    for _ in range(1_000):
        counted = bucket.counted(NAME, NOW)
        bucket = counted.given_back(NAME, counted.next_ms)
        assert bucket.wait_ms(NAME, NOW) == 0
    assert bucket.drained_ms <= NOW


@pytest.mark.requirement("R51")
def test_giving_back_leaves_the_delay_that_a_later_failure_set() -> None:
    bucket = EMPTY
    for _ in range(9):
        bucket = bucket.counted(NAME, NOW)
    first = bucket.counted(NAME, NOW)
    later = first.next_ms
    second = first.counted(NAME, later)
    assert second.given_back(NAME, first.next_ms).wait_ms(NAME, later) == second.wait_ms(NAME, later) > 0


limits = st.builds(Limit, st.integers(1, 100), st.integers(1, HOUR))
steps = st.lists(st.integers(-100 * HOUR, 100 * HOUR), max_size=30)


@pytest.mark.requirement("R51")
@given(limits, steps)
def test_whatever_the_clock_did_the_next_attempt_is_at_most_one_interval_away(limit: Limit, jumps: list[int]) -> None:
    bucket, now = EMPTY, NOW
    for jump in jumps:
        now += jump
        for _ in range(limit.free + 1):
            if bucket.wait_ms(limit, now):
                break
            bucket = bucket.counted(limit, now)
        wait = bucket.wait_ms(limit, now)
        assert 0 <= wait <= limit.interval_ms
        assert bucket.wait_ms(limit, now + wait) == 0


@pytest.mark.requirement("R51")
@given(st.integers(-1_000 * HOUR, -HOUR))
def test_a_clock_set_back_opens_a_full_bucket_for_one_attempt_and_no_more(jump: int) -> None:
    _, bucket = hammered(NAME, HOUR)
    now = NOW + HOUR + jump
    assert bucket.wait_ms(NAME, now) == 0
    assert bucket.counted(NAME, now).wait_ms(NAME, now) == NAME.interval_ms


@pytest.mark.requirement("R51")
def test_failures_counted_before_a_clock_was_set_back_are_forgotten_as_if_they_were_new() -> None:
    _, bucket = hammered(NAME, HOUR)
    now = NOW - 1_000 * HOUR
    times, _ = hammered(NAME, 0, now + NAME.longest_debt_ms, bucket.counted(NAME, now))
    assert len(times) == NAME.free


@pytest.mark.requirement("R51")
def test_a_clock_set_forward_by_years_gives_what_a_new_name_has() -> None:
    _, bucket = hammered(NAME, HOUR)
    times, _ = hammered(NAME, 0, NOW + 100_000 * HOUR, bucket)
    assert len(times) == NAME.free


@pytest.mark.requirement("R51")
@pytest.mark.parametrize(
    ("wait_ms", "told"), [(0, 0), (1, 15), (14_062, 15), (14_063, 29), (449_000, 450), (450_001, 900), (900_000, 900)]
)
def test_a_wait_is_told_in_whole_steps(wait_ms: int, told: int) -> None:
    assert NAME.told_seconds(wait_ms) == told


@pytest.mark.requirement("R51")
def test_an_attempt_waits_for_the_slowest_of_its_buckets_and_counts_in_all_or_none() -> None:
    origin = Limit(free=1, interval_ms=36_000)
    full = Bucket().counted(origin, NOW)
    with pytest.raises(Throttled) as refused:
        admit([(Counter(b"n", NAME), Bucket()), (Counter(b"o", origin), full)], NOW)
    assert refused.value.retry_after_seconds == 1
    _, full_name = hammered(NAME, 0)
    with pytest.raises(Throttled) as refused:
        admit([(Counter(b"n", NAME), full_name), (Counter(b"o", origin), full)], NOW)
    assert refused.value.retry_after_seconds == 15
    admitted = admit([(Counter(b"n", NAME), Bucket()), (Counter(b"o", origin), Bucket())], NOW)
    assert [bucket.drained_ms - NOW for _, bucket in admitted] == [900_000, 36_000]


@pytest.mark.requirement("R51")
@pytest.mark.parametrize(
    ("origin", "unit"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", LOCAL),
        ("", LOCAL),
        ("no address", LOCAL),
    ],
)
def test_an_origin_is_an_ipv4_address_or_an_ipv6_network_or_the_machine_itself(origin: str, unit: str) -> None:
    assert unit_of(origin) == unit


@pytest.mark.requirement("R51")
def test_networks_contain_addresses_of_their_own_kind() -> None:
    networks = parse_networks(("10.1.0.0/16", "2001:db8::/32"))
    assert is_within("10.1.2.3", networks)
    assert is_within("::ffff:10.1.2.3", networks)
    assert is_within("2001:db8:9::1", networks)
    assert not is_within("10.2.0.1", networks)
    assert not is_within("unix", networks)
