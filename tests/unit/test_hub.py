"""The hub's streams: bounded, ordered, and begun with whatever the peer lacks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from identity.feed import hub as hub_module
from identity.feed.hub import Hub, Subscription
from identity.v1.trust_pb2 import WatchTrustResponse
from identity_client.errors import DependencyDown
from identity_client.trust import wire
from identity_client.trust.entries import Entry, EntryKind, id_text
from identity_client.trust.state import TrustState
from tests.clients.issuer import ISSUER, FixedClock, Issuer


class Feed:
    """A revocation store that holds what the test appends."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.is_down = False

    def append(self, count: int) -> None:
        start = len(self.entries)
        names = (id_text(number.to_bytes(16, "big")) for number in range(start, start + count))
        self.entries += [Entry(EntryKind.TOKEN, name, 1_900_001_000) for name in names]

    async def entries_since(self, version: int, limit: int) -> list[tuple[int, Entry]]:
        if self.is_down:
            raise DependencyDown()
        return list(enumerate(self.entries, start=1))[version : version + limit]

    async def live_entries(self) -> tuple[str, int, list[Entry]]:
        return "epoch", len(self.entries), list(self.entries)


@pytest.fixture
def feed() -> Feed:
    return Feed()


@pytest.fixture
async def hub(feed: Feed, clock: FixedClock) -> AsyncIterator[Hub]:
    hub = Hub(feed, TrustState(clock), clock)  # type: ignore[arg-type]
    await hub.start(ISSUER, [Issuer(clock).public_key])
    yield hub
    await hub.stop()


async def replayed(hub: Hub, clock: FixedClock, epoch: str = "", version: int = 0) -> tuple[TrustState, list[str]]:
    """What a peer holds after the opening of a stream, and the events of it."""
    peer, kinds = TrustState(clock), list[str]()
    if epoch:
        peer.set_keys(hub.state.issuer, hub.state.keys)
        peer.begin_snapshot(epoch, version, version)
        peer.add_snapshot(list(hub.state.entries())[:version])
    subscription, transit = hub.subscribe(epoch, version), wire.Transit(clock)
    while not kinds or kinds[-1] != "heartbeat":
        message = WatchTrustResponse.FromString(await subscription.next())
        kinds.append(str(message.WhichOneof("event")))
        wire.apply_event(peer, message, transit)
    hub.unsubscribe(subscription)
    return peer, kinds


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
    peer, kinds = await replayed(hub, clock, "epoch", 7)
    assert kinds == ["keys", "changes", "heartbeat"]
    assert (peer.version, peer.digest()) == (10, hub.state.digest())


@pytest.mark.parametrize(("epoch", "version"), [("another", 7), ("epoch", 11), ("epoch", -1)])
async def test_a_resume_point_that_is_not_held_gets_a_snapshot(
    hub: Hub, feed: Feed, clock: FixedClock, epoch: str, version: int
) -> None:
    feed.append(10)
    await hub.published(10)
    subscription = hub.subscribe(epoch, version)
    events = [WatchTrustResponse.FromString(await subscription.next()).WhichOneof("event") for _ in range(2)]
    assert events == ["keys", "snapshot_start"]


async def test_while_the_database_is_down_the_age_of_the_data_grows(hub: Hub, feed: Feed, clock: FixedClock) -> None:
    feed.is_down = True
    clock.advance(20)
    peer, _ = await replayed(hub, clock)
    assert peer.staleness() == 20


async def test_a_stream_that_does_not_keep_up_is_cut_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_QUEUED_EVENTS", 5)
    subscription = Subscription([b"opening"] * 100)
    for _ in range(1_000):
        subscription.put(b"event")
    assert subscription._events.qsize() == 1
    with pytest.raises(DependencyDown):
        await subscription.next()


async def test_a_long_opening_alone_cuts_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_QUEUED_EVENTS", 5)
    subscription = Subscription([b"opening"] * 100)
    for _ in range(5):
        subscription.put(b"event")
    assert [await subscription.next() for _ in range(105)] == [b"opening"] * 100 + [b"event"] * 5
