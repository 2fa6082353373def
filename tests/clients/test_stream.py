"""The peer's stream: at another endpoint when one fails, succeeded without a gap, and watched by clock and caller."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from unittest.mock import Mock

import grpc
import pytest

from identity_client.aio import endpoints as endpoints_module
from identity_client.aio import stream as stream_module
from identity_client.aio.environment import ConfigurationError, Connection
from identity_client.aio.identity import Identity, StartError
from identity_client.errors import DependencyDown
from identity_client.principal import Principal
from identity_client.trust.entries import Entry, EntryKind
from identity_client.trust.metrics import TrustMetrics
from tests.clients.fake_identity import CLIENT_ID, CLIENT_SECRET, FakeIdentity
from tests.clients.issuer import FixedClock, new_id
from tests.clients.probe import until

SILENCE_SECONDS = stream_module.SILENCE_SECONDS


@dataclass
class Counted(TrustMetrics):
    """Keeps what it is told."""

    seen: list[tuple[float, int, float]] = field(default_factory=list)
    snapshots: list[int] = field(default_factory=list)
    changes: list[int] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    renewals: int = 0

    def observed(self, staleness_seconds: float, entry_count: int, clock_skew_seconds: float) -> None:
        self.seen.append((staleness_seconds, entry_count, clock_skew_seconds))

    def snapshot_applied(self, entry_count: int) -> None:
        self.snapshots.append(entry_count)

    def changes_applied(self, count: int) -> None:
        self.changes.append(count)

    def stream_ended(self, reason: str) -> None:
        self.ends.append(reason)

    def stream_renewed(self) -> None:
        self.renewals += 1


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is too busy to run this process for three seconds ends no stream here."""
    monkeypatch.setattr(stream_module, "SILENCE_SECONDS", 30.0)


@pytest.fixture
def metrics() -> Counted:
    return Counted()


@pytest.fixture
async def other(fake: FakeIdentity) -> AsyncIterator[FakeIdentity]:
    """A second replica of the service."""
    service = fake.replica()
    await service.start()
    yield service
    await service.stop()


Connect = Callable[..., Identity]


@pytest.fixture
def connect(clock: FixedClock, metrics: Counted) -> Connect:
    def connect(*services: FakeIdentity, **options: object) -> Identity:
        connection = Connection(",".join(service.address for service in services), CLIENT_ID, CLIENT_SECRET)
        options = {"clock": clock, "metrics": metrics, "start_timeout_seconds": 10} | options
        return Identity(connection, **options)  # type: ignore[arg-type]

    return connect


def an_entry(clock: FixedClock) -> Entry:
    return Entry(EntryKind.GRANT, new_id(), int(clock.now()) + 1_200)


async def equal(identity: Identity, fake: FakeIdentity) -> None:
    """Wait until the peer holds what the service does."""
    await until(lambda: identity.trust.version == fake.state.version)
    assert identity.trust.digest() == fake.state.digest()


# -- several endpoints ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("R71")
async def test_when_an_endpoint_fails_the_next_one_resumes_where_it_stopped(
    fake: FakeIdentity, other: FakeIdentity, connect: Connect, clock: FixedClock
) -> None:
    async with connect(fake, other) as identity:
        fake.revoke(an_entry(clock))
        await equal(identity, fake)
        await fake.stop()
        await until(lambda: other.stream_count == 1)
        assert other.resumes == [("epoch-1", 8)]
        other.revoke(an_entry(clock))
        await equal(identity, other)


async def test_a_peer_starts_though_the_first_endpoint_is_down(
    fake: FakeIdentity, other: FakeIdentity, connect: Connect
) -> None:
    await fake.stop()
    async with connect(fake, other) as identity:
        assert identity.is_ready
        assert other.calls["Authenticate"] == 1


async def test_with_several_endpoints_every_one_is_tried_before_there_is_a_delay(
    fake: FakeIdentity, other: FakeIdentity, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[int] = []

    def delay_seconds(failures: int) -> float:
        delays.append(failures)
        return 0.0

    monkeypatch.setattr(stream_module, "delay_seconds", delay_seconds)
    third = fake.replica()
    await third.start()
    async with connect(fake, other, third):
        await fake.stop()
        await other.stop()
        await until(lambda: third.stream_count == 1)
        assert delays and max(delays) <= 1
    await third.stop()


@pytest.mark.requirement("R28")
async def test_a_confirmation_is_asked_of_the_next_endpoint_when_one_is_down(
    fake: FakeIdentity, other: FakeIdentity, connect: Connect
) -> None:
    claims = fake.issuer.claims()
    principal = Principal(claims, fake.issuer.sign(claims))
    async with connect(fake, other) as identity:
        await fake.stop()
        await identity.confirm(principal)
        assert other.calls["CheckRevocation"] == 1
        await other.stop()
        with pytest.raises(DependencyDown):
            await identity.confirm(principal)


@pytest.mark.parametrize("refusal", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
async def test_a_refusal_is_an_answer_and_is_not_asked_for_again_elsewhere(
    fake: FakeIdentity, other: FakeIdentity, connect: Connect, refusal: grpc.StatusCode
) -> None:
    fake.refuses_watchers, fake.refusal = True, refusal
    async with asyncio.timeout(10):
        with pytest.raises(StartError):
            async with connect(fake, other, start_timeout_seconds=0.5):
                pass
    assert len(fake.resumes) > 1
    assert other.resumes == []


@pytest.mark.requirement("R48")
def test_each_of_several_addresses_is_checked() -> None:
    secure = Connection("127.0.0.1:1, localhost:2,unix:/run/identity.sock", CLIENT_ID, CLIENT_SECRET)
    assert secure.addresses == ("127.0.0.1:1", "localhost:2", "unix:/run/identity.sock")
    with pytest.raises(ConfigurationError, match=r"^10\.0\.0\.7:1 is no loopback address[^;]*; 10\.0\.0\.8:1 is no"):
        Connection("127.0.0.1:1,10.0.0.7:1,10.0.0.8:1", CLIENT_ID, CLIENT_SECRET)
    with pytest.raises(ConfigurationError, match="remove a comma"):
        Connection("127.0.0.1:1,", CLIENT_ID, CLIENT_SECRET)


# -- successors ----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R71")
async def test_the_old_stream_feeds_the_state_until_its_successor_has_brought_a_heartbeat(
    fake: FakeIdentity, connect: Connect, clock: FixedClock, metrics: Counted
) -> None:
    async with connect(fake) as identity:
        fake.admits_watchers.clear()
        clock.advance(0.8 * fake.token_lifetime_seconds)
        await until(lambda: fake.stream_count == 2)
        for _ in range(3):  # both streams will bring these
            fake.revoke(an_entry(clock))
            await equal(identity, fake)
        await until(lambda: identity.trust.staleness() == 0)
        assert metrics.renewals == 0
        fake.admits_watchers.set()
        await until(lambda: metrics.renewals == 1 and fake.stream_count == 1)
        fake.revoke(an_entry(clock))
        await equal(identity, fake)
        assert fake.resumes == [("", 0), ("epoch-1", 7)]
        assert metrics.ends == []
        assert fake.calls["Authenticate"] == 2


async def test_a_successor_that_cannot_be_opened_leaves_the_old_stream_alone_and_is_tried_again(
    fake: FakeIdentity, connect: Connect, clock: FixedClock, metrics: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_SUCCESSOR_RETRY_SECONDS", 0.05)
    async with connect(fake) as identity:
        fake.refuses_watchers = True
        clock.advance(0.8 * fake.token_lifetime_seconds)
        await until(lambda: len(fake.resumes) >= 4)
        fake.revoke(an_entry(clock))
        await equal(identity, fake)
        fake.refuses_watchers = False
        await until(lambda: metrics.renewals == 1)
        assert metrics.ends == []


async def test_a_successor_that_begins_with_a_snapshot_takes_over_with_it(
    fake: FakeIdentity, connect: Connect, clock: FixedClock, metrics: Counted
) -> None:
    async with connect(fake) as identity:
        fake.revoke(an_entry(clock), an_entry(clock))
        await equal(identity, fake)
        fake.resumes_streams = False
        fake.admits_watchers.clear()
        clock.advance(0.8 * fake.token_lifetime_seconds)
        await until(lambda: metrics.renewals == 1)
        fake.admits_watchers.set()
        await until(lambda: metrics.snapshots == [0, 2])
        await until(lambda: identity.trust.staleness() == 0)
        assert (metrics.renewals, metrics.ends) == (1, [])


async def test_a_snapshot_that_the_old_stream_was_bringing_is_dropped_when_another_takes_over(
    fake: FakeIdentity, connect: Connect
) -> None:
    async with connect(fake) as identity:
        identity.trust.begin_snapshot("epoch-1", 99, 5)
        successor = Mock(unapplied=[])
        assert identity._stream._hand_over(Mock(), successor) is successor
        assert not identity.trust.is_arriving


async def test_leaving_ends_a_successor_that_is_on_its_way(
    fake: FakeIdentity, connect: Connect, clock: FixedClock
) -> None:
    async with connect(fake):
        fake.admits_watchers.clear()
        clock.advance(0.8 * fake.token_lifetime_seconds)
        await until(lambda: fake.stream_count == 2)
    fake.admits_watchers.set()
    await until(lambda: fake.stream_count == 0)


async def test_a_stream_that_breaks_off_takes_the_successor_with_it_that_was_on_its_way(
    fake: FakeIdentity, connect: Connect, clock: FixedClock
) -> None:
    async with connect(fake) as identity:
        fake.admits_watchers.clear()
        clock.advance(0.8 * fake.token_lifetime_seconds)
        await until(lambda: fake.stream_count == 2)
        fake.cut_oldest()
        await until(lambda: len(fake.resumes) == 3)
        fake.admits_watchers.set()
        await until(lambda: fake.stream_count == 1)
        fake.revoke(an_entry(clock))
        await equal(identity, fake)


async def test_a_stream_is_succeeded_before_its_connection_is_closed_for_its_age(
    clock: FixedClock, connect: Connect, metrics: Counted
) -> None:
    ageing = FakeIdentity(
        clock, options=(("grpc.max_connection_age_ms", 400), ("grpc.max_connection_age_grace_ms", 5_000))
    )
    await ageing.start()
    async with connect(ageing):
        await until(lambda: metrics.renewals >= 2)
        assert metrics.ends == []
    await ageing.stop()


# -- clocks --------------------------------------------------------------------------------------------------------


async def test_clocks_half_a_minute_apart_raise_an_alarm_once_a_minute(
    fake: FakeIdentity, connect: Connect, metrics: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    fake.skew_seconds = -31
    async with connect(fake) as identity:
        heartbeats = fake.heartbeats
        await until(lambda: fake.heartbeats > heartbeats + 5)
        assert identity.trust.staleness() == 0
    assert caplog.text.count("clock is -31 s from ours") == 1
    assert metrics.seen[-1][2] == -31


async def test_clocks_ten_minutes_apart_leave_the_state_to_grow_stale(
    fake: FakeIdentity, connect: Connect, clock: FixedClock
) -> None:
    async with connect(fake) as identity:
        fake.skew_seconds = 601
        await until(lambda: identity.trust.clock_skew_seconds == 601)
        clock.advance(31)
        heartbeats = fake.heartbeats
        await until(lambda: fake.heartbeats > heartbeats + 3)
        assert identity.trust.staleness() >= 31
        fake.skew_seconds = 0
        await until(lambda: identity.trust.staleness() == 0)


async def test_a_start_with_clocks_ten_minutes_apart_fails_and_says_so(fake: FakeIdentity, connect: Connect) -> None:
    fake.skew_seconds = 3_600
    with pytest.raises(StartError, match=r"clock is \+3600 s from ours"):
        async with connect(fake, start_timeout_seconds=0.5):
            pass


# -- readiness and metrics -----------------------------------------------------------------------------------------


@pytest.mark.requirement("R71")
async def test_the_peers_health_is_told_when_the_state_becomes_fresh_too_old_and_fresh_again(
    fake: FakeIdentity, connect: Connect, clock: FixedClock
) -> None:
    told: list[bool] = []

    async def on_ready(is_ready: bool) -> None:
        told.append(is_ready)

    async with connect(fake, on_ready=on_ready):
        assert told == [True]
        await fake.stop()
        clock.advance(31)
        await until(lambda: told == [True, False])
        await fake.start()
        await until(lambda: told == [True, False, True])
    assert told == [True, False, True, False]


async def test_a_health_service_that_fails_is_logged_and_told_again(
    fake: FakeIdentity, connect: Connect, clock: FixedClock, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[bool] = []

    def on_ready(is_ready: bool) -> None:
        told.append(is_ready)
        raise RuntimeError("no health service")

    async with connect(fake, on_ready=on_ready):
        await fake.stop()
        clock.advance(31)
        await until(lambda: told == [True, False])
    assert "no health service" in caplog.text


async def test_what_happens_to_the_state_is_counted(
    fake: FakeIdentity, connect: Connect, clock: FixedClock, metrics: Counted
) -> None:
    fake.lose(*(an_entry(clock) for _ in range(3)))
    async with connect(fake) as identity:
        assert metrics.snapshots == [3]
        fake.revoke(an_entry(clock), an_entry(clock))
        await equal(identity, fake)
        fake.cut()
        await until(lambda: len(fake.resumes) == 2)
        await until(lambda: metrics.seen[-1][1] == 5)
    assert metrics.changes == [1]
    assert metrics.ends == ["DEPENDENCY_DOWN"]
    assert all(staleness < math.inf for staleness, *_ in metrics.seen)


def test_a_black_hole_is_given_up_before_the_stream_would_be_dead() -> None:
    options = dict(endpoints_module.CHANNEL_OPTIONS)
    assert options["grpc.min_reconnect_backoff_ms"] / 1000 < SILENCE_SECONDS
