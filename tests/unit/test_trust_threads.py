"""One thread feeds the trust state while others judge by it: no thread ever judges by less than what it was told of."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from identity_client.errors import TokenRevoked
from identity_client.tokens.claims import Claims
from identity_client.tokens.verifier import Verifier
from identity_client.trust import packed
from identity_client.trust.entries import Batch, Entry, EntryKind
from identity_client.trust.state import TrustState
from tests.clients.issuer import ISSUER, FixedClock, Issuer, new_id

READERS = 4
CHANGES = 400
LATER = 1_900_001_000


@pytest.fixture(autouse=True)
def threads_that_alternate_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def state(clock: FixedClock, issuer: Issuer) -> TrustState:
    state = TrustState(clock)
    state.set_keys(ISSUER, [issuer.public_key])
    state.begin_snapshot("e0", 0, 0)
    state.touch(0)
    return state


def grant(name: str) -> Entry:
    return Entry(EntryKind.GRANT, name, LATER)


def hammered(write: Callable[[], None], read: Callable[[], None]) -> None:
    """Run *read* over and over in several threads until *write*, in this one, is done. Raises what a reader raised."""
    done, problems = threading.Event(), list[BaseException]()

    def repeat() -> None:
        try:
            while not done.is_set():
                read()
        except BaseException as problem:
            problems.append(problem)

    readers = [threading.Thread(target=repeat) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    try:
        write()
    finally:
        done.set()
        for reader in readers:
            reader.join()
    if problems:
        raise problems[0]


def is_refused(judge: Callable[[], object]) -> bool:
    try:
        judge()
    except TokenRevoked:
        return True
    return False


def test_whoever_reads_a_version_judges_by_all_its_changes(state: TrustState, issuer: Issuer) -> None:
    claims = [issuer.claims() for _ in range(CHANGES)]

    def write() -> None:
        for version, claim in enumerate(claims, start=1):
            state.apply(version, version, [grant(claim.grant_id)])

    def read() -> None:
        for claim in claims[: state.version][-3:]:
            assert is_refused(lambda claim=claim: state.check(claim))  # type: ignore[misc]

    hammered(write, read)


def test_a_token_that_is_remembered_is_refused_from_the_version_on_that_revoked_it(
    state: TrustState, issuer: Issuer, clock: FixedClock
) -> None:
    verifier = Verifier(audiences=frozenset({"internal"}), trust=state, clock=clock)
    claims = [issuer.claims() for _ in range(CHANGES)]
    tokens = [issuer.sign(claim) for claim in claims]
    for token in tokens:
        verifier.verify(token)

    def write() -> None:
        for version, claim in enumerate(claims, start=1):
            state.apply(version, version, [grant(claim.grant_id)])

    def read() -> None:
        version = state.version
        for number in range(max(0, version - 2), min(version + 3, CHANGES)):
            refused = is_refused(lambda number=number: verifier.verify(tokens[number]))  # type: ignore[misc]
            assert refused or number >= version

    hammered(write, read)


def test_no_one_sees_a_snapshot_half(state: TrustState, issuer: Issuer) -> None:
    first, last = issuer.claims(), issuer.claims()
    noise = [grant(new_id()) for _ in range(300)]
    entries = [grant(first.grant_id), *noise, grant(last.grant_id)]
    state.apply(1, 2, entries)

    def write() -> None:
        for number in range(40):
            state.begin_snapshot(f"e{number}", 2, len(entries))
            for entry in entries:
                state.add_snapshot(Batch.of([entry]))
            state.swap()

    def read() -> None:
        assert is_refused(lambda: state.check(first))
        assert is_refused(lambda: state.check(last))
        assert state.staleness() == 0

    hammered(write, read)


def test_a_judgement_made_while_a_change_is_taken_up_is_made_again(
    state: TrustState, issuer: Issuer, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = Verifier(audiences=frozenset({"internal"}), trust=state, clock=clock)
    claims = issuer.claims()
    token = issuer.sign(claims)
    held = state._held
    assert held is not None
    add = held.add

    def interrupted_add(entries: Iterable[Entry]) -> None:
        verifier.verify(token)  # another thread, before the data is there
        add(entries)

    monkeypatch.setattr(held, "add", interrupted_add)
    state.apply(1, 1, [grant(claims.grant_id)])
    assert is_refused(lambda: verifier.verify(token))


@pytest.mark.parametrize("remembered", [False, True])
def test_a_change_that_comes_after_the_look_up_makes_the_token_judged_again(
    state: TrustState, issuer: Issuer, clock: FixedClock, monkeypatch: pytest.MonkeyPatch, remembered: bool
) -> None:
    verifier = Verifier(audiences=frozenset({"internal"}), trust=state, clock=clock)
    claims = issuer.claims()
    token = issuer.sign(claims)
    if remembered:
        verifier.verify(token)
        state.apply(1, 1, [grant(new_id())])  # so that the next use looks up
    check, is_first = state.check, [True]

    def check_then_change(claims: Claims) -> None:
        check(claims)
        if is_first:  # another thread, between the look-up and whatever the verifier does next
            is_first.clear()
            state.apply(state.version + 1, state.version + 1, [grant(claims.grant_id)])

    monkeypatch.setattr(state, "check", check_then_change)
    verifier.verify(token)
    assert is_refused(lambda: verifier.verify(token))


def test_an_entry_that_is_prolonged_or_gets_neighbours_is_never_out_of_sight(
    state: TrustState, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = issuer.claims()
    entries = [Entry(EntryKind.TOKEN, claims.token_id, 1_000), Entry(EntryKind.KEY, claims.key_id, 1_000)]
    state.apply(1, 1, entries)
    held = state._held
    assert held is not None
    looks = []

    def look() -> None:
        looks.append(all(held.contains(entry.kind, entry.name) for entry in entries))

    class Watched(list[bytes]):
        def __setitem__(self, index: Any, bucket: Any) -> None:
            super().__setitem__(index, bucket)
            look()

    class WatchedNames(dict[Any, Any]):
        def __setitem__(self, key: Any, entry: Any) -> None:
            super().__setitem__(key, entry)
            look()

        def __delitem__(self, key: Any) -> None:
            super().__delitem__(key)
            look()

        def pop(self, *key: Any) -> Any:
            popped = super().pop(*key)
            look()
            return popped

    ids = held._packed[EntryKind.TOKEN]
    monkeypatch.setattr(ids, "_buckets", Watched(ids._buckets))
    monkeypatch.setattr(held._named, "_held", WatchedNames(held._named._held))
    neighbour = Entry(EntryKind.TOKEN, claims.token_id[:4] + new_id()[4:], 1_001)
    for version, entry in enumerate([neighbour, *(Entry(e.kind, e.name, e.expire_time + 5) for e in entries)], start=2):
        state.apply(version, version, [entry])
    monkeypatch.setattr(packed, "_SWEPT_BUCKETS", packed._BUCKETS)
    state.expire(1_003)  # the neighbour is swept away
    assert len(looks) == 4
    assert all(looks)
