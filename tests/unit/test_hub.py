"""The hub's streams: bounded, ordered, and begun with whatever the peer lacks."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from identity.feed import events
from identity.feed import hub as hub_module
from identity.feed import log as log_module
from identity.feed import streams as streams_module
from identity.feed import subscription as subscription_module
from identity.feed.hub import Hub
from identity.feed.log import Log
from identity.feed.subscription import Subscription
from identity.feed.turns import Peer
from identity.v1.trust_pb2 import WatchTrustResponse
from identity_client.errors import DependencyDown
from identity_client.tokens.keys import PublicKey
from identity_client.trust import wire
from identity_client.trust.entries import Batch, Entry, EntryKind, id_text
from identity_client.trust.state import TrustState
from tests.clients.issuer import ISSUER, FixedClock, Issuer
from tests.clients.probe import until

SIGN_OF_LIFE = "None"


def peer_of(number: int) -> Peer:
    """One that has a grant and a connection to itself."""
    return Peer(f"grant {number}", f"ipv4:127.0.0.1:{40_000 + number}")


PEER = peer_of(-1)


class Feed:
    """A revocation store that holds what the test appends."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._chance = random.Random(23)
        self.is_down = False
        self.keys = [Issuer(FixedClock()).public_key]
        self.epoch = "epoch"
        self.hidden = 0
        """How many of the changes after what was asked for are missing."""

    def append(self, count: int) -> None:
        names = (id_text(self._chance.randbytes(16)) for _ in range(count))
        self.entries += [Entry(EntryKind.TOKEN, name, 1_900_001_000) for name in names]

    async def entries_since(self, version: int, limit: int) -> list[tuple[int, Entry]]:
        if self.is_down:
            raise DependencyDown()
        first = version + self.hidden
        return list(enumerate(self.entries[first : version + limit], start=first + 1))

    async def live_entries(self) -> tuple[str, int, list[Batch]]:
        return self.epoch, len(self.entries), [Batch.of(self.entries)]

    async def head(self) -> tuple[str, int]:
        if self.is_down:
            raise DependencyDown()
        return self.epoch, len(self.entries)

    async def renew_epoch(self, epoch: str) -> bool:
        self.epoch = f"after {epoch}"
        return True

    async def read_keys(self) -> list[PublicKey]:
        if self.is_down:
            raise DependencyDown()
        return self.keys


@pytest.fixture
def feed() -> Feed:
    return Feed()


@asynccontextmanager
async def running(feed: Feed, clock: FixedClock) -> AsyncIterator[Hub]:
    hub = Hub(feed, TrustState(clock), clock, feed.renew_epoch)  # type: ignore[arg-type]
    await hub.start(ISSUER, feed.read_keys)
    yield hub
    await hub.stop()


@pytest.fixture
async def hub(feed: Feed, clock: FixedClock) -> AsyncIterator[Hub]:
    async with running(feed, clock) as hub:
        yield hub


async def replayed(
    hub: Hub, clock: FixedClock, epoch: str = "", held: Sequence[Entry] = ()
) -> tuple[TrustState, list[str]]:
    """What a peer that holds the first changes already has after the opening of a stream, and the events of it."""
    version = len(held)
    peer, kinds = TrustState(clock), list[str]()
    if epoch:
        peer.set_keys(hub.state.issuer, hub.state.keys)
        peer.begin_snapshot(epoch, version, version)
        peer.add_snapshot(held)
    subscription, transit = hub.streams.subscribe(epoch, version, PEER), wire.Transit(clock)
    while not kinds or kinds[-1] != "heartbeat":
        message = WatchTrustResponse.FromString(await subscription.next())
        kinds.append(str(message.WhichOneof("event")))
        wire.apply_event(peer, message, transit)
    hub.streams.unsubscribe(subscription)
    return peer, [kind for kind in kinds if kind != SIGN_OF_LIFE]


async def kinds_of(subscription: Subscription, count: int) -> list[str]:
    """The next events' kinds, signs of life left out."""
    kinds: list[str] = []
    while len(kinds) < count:
        kind = str(WatchTrustResponse.FromString(await subscription.next()).WhichOneof("event"))
        if kind != SIGN_OF_LIFE:
            kinds.append(kind)
    return kinds


def queued(subscription: Subscription) -> list[bytes]:
    """What waits to be taken."""
    return list(subscription._events._queue)  # type: ignore[attr-defined]


async def test_a_new_peer_gets_a_snapshot_in_parts_and_agrees_with_the_heartbeat(
    hub: Hub, feed: Feed, clock: FixedClock
) -> None:
    feed.append(6_000)
    await hub.published(6_000)
    peer, kinds = await replayed(hub, clock)
    assert kinds == ["keys", "snapshot_start", *["snapshot_part"] * 3, "heartbeat"]
    assert peer.digest() == hub.state.digest()
    assert peer.staleness() == 0


async def test_a_peer_that_was_away_gets_only_what_it_missed(hub: Hub, feed: Feed, clock: FixedClock) -> None:
    feed.append(10)
    await hub.published(10)
    peer, kinds = await replayed(hub, clock, "epoch", feed.entries[:7])
    assert kinds == ["keys", "changes", "heartbeat"]
    assert (peer.version, peer.digest()) == (10, hub.state.digest())


@pytest.mark.parametrize(("epoch", "version"), [("another", 7), ("another", 11), ("epoch", -1)])
async def test_a_resume_point_that_is_not_held_gets_a_snapshot(hub: Hub, feed: Feed, epoch: str, version: int) -> None:
    feed.append(10)
    await hub.published(10)
    subscription = hub.streams.subscribe(epoch, version, PEER)
    assert await kinds_of(subscription, 2) == ["keys", "snapshot_start"]


@pytest.mark.requirement("R26")
async def test_a_resume_point_beyond_the_feed_begins_a_new_epoch_and_the_next_one_so_soon_gets_a_snapshot(
    hub: Hub, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "PUBLISH_WAIT_SECONDS", 0.02)
    feed.append(10)
    await hub.published(10)
    first = hub.streams.subscribe("epoch", 11, PEER)
    await until(lambda: first.is_cut)
    await until(lambda: hub.state.epoch == "after epoch")
    second = hub.streams.subscribe("after epoch", 11, PEER)
    assert await kinds_of(second, 2) == ["keys", "snapshot_start"]
    assert feed.epoch == "after epoch"


@pytest.mark.requirement("R26")
async def test_a_changed_set_of_keys_goes_to_every_stream_once_and_a_read_that_fails_keeps_the_old_one(
    hub: Hub, feed: Feed, clock: FixedClock
) -> None:
    subscription = hub.streams.subscribe("", 0, PEER)
    await kinds_of(subscription, 3)
    first = feed.keys
    feed.keys = [*first, Issuer(clock).public_key]
    feed.is_down = True
    await hub.keys_changed()
    assert hub.state.keys == tuple(first)
    feed.is_down = False
    await hub.keys_changed()
    await hub.keys_changed()
    assert hub.state.keys == tuple(feed.keys)
    assert await kinds_of(subscription, 1) == ["keys"]
    assert subscription.is_idle


@pytest.mark.requirement("R26")
async def test_the_successor_of_a_revoked_key_is_told_before_the_revocation(
    hub: Hub, feed: Feed, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "KEYS_SECONDS", float("inf"))
    hub._looked_at = 0.0
    subscription = hub.streams.subscribe("", 0, PEER)
    await kinds_of(subscription, 3)
    [revoked] = feed.keys
    feed.keys = [Issuer(clock).public_key]
    feed.entries.append(Entry(EntryKind.KEY, revoked.key_id, 1_900_001_000))
    hub.ring()
    assert await kinds_of(subscription, 2) == ["keys", "changes"]


async def test_while_the_database_is_down_the_age_of_the_data_grows(hub: Hub, feed: Feed, clock: FixedClock) -> None:
    feed.is_down = True
    clock.advance(20)
    peer, _ = await replayed(hub, clock)
    assert peer.staleness() == 20


async def test_a_stream_that_does_not_keep_up_is_cut_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription_module, "QUEUED_EVENTS", 5)
    subscription = Subscription([b"opening"] * 100)
    for _ in range(1_000):
        subscription.put(b"event")
    assert subscription._events.qsize() == 1
    with pytest.raises(DependencyDown):
        await subscription.next()


async def test_a_long_opening_alone_cuts_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription_module, "QUEUED_EVENTS", 5)
    subscription = Subscription([b"opening"] * 100)
    for _ in range(5):
        subscription.put(b"event")
    assert [await subscription.next() for _ in range(105)] == [b"opening"] * 100 + [b"event"] * 5


# -- snapshots -----------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_module, "HEARTBEAT_SECONDS", 0.01)


@pytest.mark.usefixtures("quick_beats")
async def test_four_streams_are_sent_a_snapshot_at_a_time_and_the_others_get_signs_of_life(
    feed: Feed, clock: FixedClock
) -> None:
    feed.append(6_000)
    async with running(feed, clock) as hub:
        streams = [hub.streams.subscribe("", 0, peer_of(number)) for number in range(6)]
        for stream in streams:
            assert await kinds_of(stream, 1) == ["keys"]
        await until(lambda: sum(len(queued(stream)) >= 4 for stream in streams) == 4)
        waiting = [stream for stream in streams if len(queued(stream)) < 4]
        for stream in waiting:
            assert await stream.next() == events.SIGN_OF_LIFE
        first = next(stream for stream in streams if stream not in waiting)
        assert await kinds_of(first, 5) == ["snapshot_start", *["snapshot_part"] * 3, "heartbeat"]
        await until(lambda: sum(len(queued(stream)) >= 4 for stream in streams) == 4)
        assert sum(len(queued(stream)) < 4 for stream in waiting) == 1


async def test_all_streams_share_the_bytes_of_one_snapshot_until_it_is_too_old(
    hub: Hub, feed: Feed, clock: FixedClock
) -> None:
    feed.append(3_000)
    await hub.published(3_000)
    first, second = hub.streams.subscribe("", 0, PEER), hub.streams.subscribe("", 0, PEER)
    await until(lambda: len(queued(first)) == len(queued(second)) == 4)
    assert all(one is other for one, other in zip(queued(first), queued(second), strict=True))
    feed.append(10)
    await hub.published(3_010)
    assert (await replayed(hub, clock))[1][-2:] == ["changes", "heartbeat"]
    clock.advance(61)
    assert (await replayed(hub, clock))[1] == ["keys", "snapshot_start", *["snapshot_part"] * 2, "heartbeat"]


@pytest.mark.requirement("R2")
async def test_what_is_revoked_while_a_snapshot_is_built_and_sent_comes_after_it(
    hub: Hub, feed: Feed, clock: FixedClock
) -> None:
    feed.append(20_000)
    await hub.published(20_000)
    peer, transit, kinds = TrustState(clock), wire.Transit(clock), list[str]()
    subscription = hub.streams.subscribe("", 0, PEER)
    while "heartbeat" not in kinds:
        message = WatchTrustResponse.FromString(await subscription.next())
        kinds.append(str(message.WhichOneof("event")))
        wire.apply_event(peer, message, transit)
        if len(kinds) < 8:
            feed.append(5)
            await hub.published(len(feed.entries))
    assert "changes" in kinds
    assert (peer.version, peer.digest()) == (len(feed.entries), hub.state.digest())


async def test_a_stream_that_takes_nothing_of_its_snapshot_gives_its_turn_to_another(
    feed: Feed, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_module, "STALL_SECONDS", 0.05)
    feed.append(10)
    async with running(feed, clock) as hub:
        stuck = [hub.streams.subscribe("", 0, peer_of(number)) for number in range(4)]
        await until(lambda: all(len(queued(stream)) == 3 for stream in stuck))
        _, kinds = await replayed(hub, clock)
        assert kinds == ["keys", "snapshot_start", "snapshot_part", "heartbeat"]
        for stream in stuck:
            with pytest.raises(DependencyDown):
                await stream.next()


async def test_a_stream_that_ends_while_it_waits_leaves_its_place(feed: Feed, clock: FixedClock) -> None:
    feed.append(10)
    async with running(feed, clock) as hub:
        streams = [hub.streams.subscribe("", 0, peer_of(number)) for number in range(50)]
        await until(lambda: sum(len(queued(stream)) == 3 for stream in streams) == 4)
        for stream in streams:
            hub.streams.unsubscribe(stream)
        await until(lambda: not hub.streams._openings)
        assert (await replayed(hub, clock))[0].version == 10


async def test_building_a_snapshot_lets_others_have_their_turn(hub: Hub, feed: Feed) -> None:
    feed.append(25_000)
    await hub.published(25_000)
    building, turns = asyncio.ensure_future(hub.streams._snapshots.current()), 0
    while not building.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 10


async def test_a_change_that_is_faster_than_the_snapshot_cuts_the_stream(
    hub: Hub, feed: Feed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub.streams._recent, "_changes", deque(maxlen=5))
    subscription = hub.streams.subscribe("", 0, PEER)
    await until(lambda: len(queued(subscription)) == 2)
    feed.append(6)
    await hub.published(6)
    with pytest.raises(DependencyDown):
        await kinds_of(subscription, 10)
    assert "could not be opened" not in caplog.text


# -- several replicas, and SQL set back ----------------------------------------------------------------------------


async def test_a_peer_that_knows_more_than_this_replica_makes_it_read_on(
    hub: Hub, feed: Feed, clock: FixedClock
) -> None:
    feed.append(10)
    await hub.published(10)
    feed.append(5)  # another replica has read these already
    assert await kinds_of(hub.streams.subscribe("epoch", 12, PEER), 3) == ["keys", "changes", "heartbeat"]
    assert hub.state.version == 15


async def test_a_replica_that_cannot_read_sends_no_older_snapshot_to_a_peer_that_knows_more(
    hub: Hub, feed: Feed, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "PUBLISH_WAIT_SECONDS", 0.05)
    feed.is_down = True
    clock.advance(2)
    subscription = hub.streams.subscribe("epoch", 7, PEER)
    with pytest.raises(DependencyDown):
        await kinds_of(subscription, 2)


async def test_a_gap_in_the_feed_loads_everything_anew_and_cuts_the_streams(
    hub: Hub, feed: Feed, clock: FixedClock
) -> None:
    feed.append(10)
    await hub.published(10)
    subscription = hub.streams.subscribe("epoch", 10, PEER)
    feed.hidden = 3
    feed.append(6)
    hub.ring()
    with pytest.raises(DependencyDown):
        await kinds_of(subscription, 10)
    peer, kinds = await replayed(hub, clock, "epoch", feed.entries[:10])
    assert kinds[:2] == ["keys", "snapshot_start"]
    assert (peer.version, peer.digest()[0]) == (16, 16)


def test_the_log_forgets_the_oldest_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "RESUME_ENTRIES", 5)
    log = Log()
    log.start(100)
    assert [log.holds_since(version) for version in (99, 100, 101)] == [False, True, False]
    log.extend([(version, Entry(EntryKind.KEY, "k", 1)) for version in range(101, 109)])
    assert [log.holds_since(version) for version in (102, 103, 108, 109)] == [False, True, True, False]
    [event] = log.events_since(105)
    changes = WatchTrustResponse.FromString(event).changes
    assert (changes.first_version, changes.last_version) == (106, 108)
    assert log.events_since(108) == []
    assert log.events_since(105)[0] is event
    log.extend([(109, Entry(EntryKind.KEY, "k", 1))])
    [event] = log.events_since(105)
    assert WatchTrustResponse.FromString(event).changes.last_version == 109
