"""The trust state: snapshot, changes, heartbeats, expiry; what follows is applied, what does not is noticed."""

from __future__ import annotations

import math
import random

import pytest

from identity_client.errors import TokenExpired, TokenOutdated, TokenRevoked, UnknownKey
from identity_client.tokens import compact
from identity_client.tokens.keys import PublicKey
from identity_client.tokens.verifier import Verifier
from identity_client.trust.entries import Entry, EntryKind, id_text
from identity_client.trust.revocations import Revocations
from identity_client.trust.state import TrustDiverged, TrustGap, TrustState
from tests.clients.issuer import ISSUER, FixedClock, Issuer

LATER = 1_900_001_000


@pytest.fixture
def state(clock: FixedClock, issuer: Issuer) -> TrustState:
    state = TrustState(clock)
    state.set_keys(ISSUER, [issuer.public_key])
    state.begin_snapshot("e1", 10, 0)
    state.touch(0)
    return state


def token_entry(number: int, expire_time: int = LATER) -> Entry:
    return Entry(EntryKind.TOKEN, id_text(number.to_bytes(16, "big")), expire_time)


def beat(state: TrustState, **changes: object) -> None:
    count, digest = state.digest()
    values: dict[str, object] = {
        "epoch": state.epoch,
        "version": state.version,
        "server_time": state._clock.now(),
        "expired_through": state.expired_through,
        "entry_count": count,
        "digest": digest,
        "data_age_seconds": 0.0,
    }
    state.heartbeat(**(values | changes))  # type: ignore[arg-type]


def digest_of(*entries: Entry) -> dict[str, object]:
    """What a sender's heartbeat says that holds *entries*."""
    held = Revocations()
    held.add(entries)
    count, digest = held.digest()
    return {"entry_count": count, "digest": digest}


def test_nothing_is_ready_before_keys_snapshot_and_a_sign_of_freshness(clock: FixedClock, issuer: Issuer) -> None:
    state = TrustState(clock)
    assert state.staleness() == math.inf
    state.begin_snapshot("e1", 1, 1)
    state.touch(0)
    state.set_keys(ISSUER, [issuer.public_key])
    assert not state.is_ready
    state.add_snapshot([token_entry(1)])
    assert state.is_ready
    assert state.staleness() == 0


def test_what_was_held_stays_in_force_until_a_snapshot_is_whole_and_a_heartbeat_agrees(
    state: TrustState, issuer: Issuer
) -> None:
    claims = issuer.claims()
    state.apply(11, 11, [Entry(EntryKind.GRANT, claims.grant_id, LATER)])
    state.begin_snapshot("e2", 5, 2)
    for number in (1, 2):
        state.add_snapshot([token_entry(number)])
        assert (state.epoch, state.version) == ("e1", 11)
        with pytest.raises(TokenRevoked):
            state.check(claims)
    before = state.revision
    beat(state, epoch="e2", version=5, **digest_of(token_entry(1), token_entry(2)))
    assert (state.epoch, state.version, state.staleness()) == ("e2", 5, 0)
    assert state.revision > before
    state.check(claims)


def test_a_snapshot_older_than_what_is_held_revives_nothing_while_changes_complete_it(
    state: TrustState, issuer: Issuer
) -> None:
    claims = issuer.claims()
    revoked = Entry(EntryKind.GRANT, claims.grant_id, LATER)
    state.apply(11, 11, [revoked])
    state.begin_snapshot("e1", 9, 1)
    state.add_snapshot([token_entry(1)])
    state.apply(10, 12, [token_entry(2), revoked, token_entry(3)])
    assert state.version == 11
    with pytest.raises(TokenRevoked):
        state.check(claims)
    beat(state, version=12, **digest_of(*(token_entry(number) for number in (1, 2, 3)), revoked))
    assert (state.version, state.entry_count()) == (12, 4)
    with pytest.raises(TokenRevoked):
        state.check(claims)


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"version": 13}, TrustGap), ({"epoch": "e2"}, TrustGap), ({"digest": "ab" * 24}, TrustDiverged)],
)
def test_a_snapshot_that_no_heartbeat_agrees_with_never_comes_into_force(
    state: TrustState, clock: FixedClock, changes: dict[str, object], error: type[Exception]
) -> None:
    clock.advance(5)
    state.begin_snapshot("e1", 12, 1)
    state.add_snapshot([token_entry(1)])
    with pytest.raises(error):
        beat(state, **({"version": 12} | digest_of(token_entry(1)) | changes))
    assert (state.version, state.entry_count(), state.staleness()) == (10, 0, 5)
    assert not state.is_arriving
    beat(state)
    assert state.staleness() == 0


def test_what_has_expired_since_a_snapshot_was_built_is_not_missed(state: TrustState) -> None:
    state.begin_snapshot("e1", 12, 2)
    state.add_snapshot([token_entry(1, 500), token_entry(2)])
    beat(state, version=12, expired_through=600, **digest_of(token_entry(2)))
    assert (state.version, state.entry_count(), state.expired_through) == (12, 1, 600)


def test_a_snapshot_whose_stream_has_ended_is_dropped(state: TrustState) -> None:
    state.begin_snapshot("e1", 12, 2)
    state.add_snapshot([token_entry(1)])
    with pytest.raises(TrustGap):
        state.swap()
    state.drop_snapshot()
    state.apply(11, 11, [token_entry(2)])
    assert state.version == 11


def test_a_sender_with_a_clock_of_its_own_puts_no_snapshot_into_force(state: TrustState, clock: FixedClock) -> None:
    state.begin_snapshot("e1", 12, 1)
    state.add_snapshot([token_entry(1)])
    later = clock.now() + 10_000
    beat(state, version=12, server_time=later, expired_through=int(later), entry_count=0, digest="00" * 24)
    assert (state.version, state.is_arriving) == (10, True)


def test_a_snapshot_that_is_not_what_was_announced_does_not_come_into_force(state: TrustState, issuer: Issuer) -> None:
    claims = issuer.claims()
    revoked = Entry(EntryKind.GRANT, claims.grant_id, LATER)
    state.apply(11, 11, [revoked])
    announced = Revocations()
    announced.add([revoked, token_entry(1), token_entry(2)])
    state.begin_snapshot("e2", 5, *announced.digest())
    state.add_snapshot([token_entry(1)])
    with pytest.raises(TrustDiverged):
        state.add_snapshot([token_entry(1), token_entry(2)])  # one twice, so that the count is right
    with pytest.raises(TrustDiverged):
        state.begin_snapshot("e2", 5, 0, announced.digest()[1])
    assert (state.epoch, state.version) == ("e1", 11)
    with pytest.raises(TokenRevoked):
        state.check(claims)
    state.begin_snapshot("e2", 5, *announced.digest())
    state.add_snapshot([token_entry(1), token_entry(2), revoked])
    state.swap()
    assert (state.epoch, state.version) == ("e2", 5)


def test_more_entries_than_announced_are_a_gap(state: TrustState) -> None:
    state.begin_snapshot("e2", 5, 1)
    with pytest.raises(TrustGap):
        state.add_snapshot([token_entry(1), token_entry(2)])


@pytest.mark.parametrize(("first", "last"), [(12, 12), (12, 13), (11, 10), (20, 9)])
def test_changes_that_do_not_follow_are_a_gap_and_change_nothing(state: TrustState, first: int, last: int) -> None:
    with pytest.raises(TrustGap):
        state.apply(first, last, [token_entry(1)])
    assert state.version == 10
    assert not list(state.entries())


def test_changes_that_are_held_already_are_no_harm_and_the_rest_of_their_message_is_taken(state: TrustState) -> None:
    state.apply(11, 12, [token_entry(1), token_entry(2)])
    before = state.revision
    for first, last in ((11, 12), (12, 12), (3, 5)):
        state.apply(first, last, [token_entry(9)])
    assert (state.version, state.entry_count(), state.revision) == (12, 2, before)
    state.apply(12, 13, [token_entry(2), token_entry(3)])
    assert (state.version, state.entry_count(), state.revision) == (13, 3, before + 1)


def test_changes_during_a_snapshot_are_a_gap(state: TrustState) -> None:
    state.begin_snapshot("e2", 10, 1)
    with pytest.raises(TrustGap):
        state.apply(11, 11, [token_entry(1)])


@pytest.mark.parametrize(
    ("kind", "attribute", "error"),
    [
        (EntryKind.TOKEN, "token_id", TokenRevoked),
        (EntryKind.GRANT, "grant_id", TokenRevoked),
        (EntryKind.KEY, "key_id", TokenRevoked),
        (EntryKind.ACCOUNT, "account_id", TokenOutdated),
    ],
)
def test_each_kind_of_entry_refuses_what_it_names_and_nothing_else(
    state: TrustState, issuer: Issuer, kind: EntryKind, attribute: str, error: type[Exception]
) -> None:
    claims, other = issuer.claims(), Issuer(FixedClock()).claims()
    state.apply(11, 11, [Entry(kind, getattr(claims, attribute), LATER, minimum=2)])
    with pytest.raises(error):
        state.check(claims)
    state.check(other)


def test_generations_and_policy_versions_from_the_minimum_on_are_good(state: TrustState, issuer: Issuer) -> None:
    state.apply(11, 11, [Entry(EntryKind.ACCOUNT, "account", LATER, 3), Entry(EntryKind.ROLE, "clerk", LATER, 7)])
    state.check(issuer.claims(account_id="account", generation=3, policy_version=7))
    for older in ({"generation": 2, "policy_version": 7}, {"generation": 3, "policy_version": 6}):
        with pytest.raises(TokenOutdated):
            state.check(issuer.claims(account_id="account", **older))
    state.check(issuer.claims(account_id="account", generation=3, policy_version=6, roles=("cook",)))


def test_staleness_is_the_age_of_the_data_plus_the_time_since(state: TrustState, clock: FixedClock) -> None:
    clock.advance(10)
    beat(state, data_age_seconds=2.0)
    clock.advance(3)
    assert state.staleness() == pytest.approx(5)


def test_an_older_reading_does_not_make_the_state_staler(state: TrustState, clock: FixedClock) -> None:
    beat(state, data_age_seconds=9.0)
    assert state.staleness() == 0


@pytest.mark.parametrize("changes", [{"version": 11}, {"version": 9}, {"epoch": "e2"}])
def test_a_heartbeat_of_another_version_is_a_gap_and_freshens_nothing(
    state: TrustState, clock: FixedClock, changes: dict[str, object]
) -> None:
    clock.advance(5)
    with pytest.raises(TrustGap):
        beat(state, **changes)
    assert state.staleness() == 5


@pytest.mark.parametrize("changes", [{"entry_count": 1}, {"digest": "00" * 23 + "01"}])
def test_a_digest_that_differs_is_noticed_and_freshens_nothing(
    state: TrustState, clock: FixedClock, changes: dict[str, object]
) -> None:
    clock.advance(5)
    with pytest.raises(TrustDiverged):
        beat(state, **changes)
    assert state.staleness() == 5


@pytest.mark.parametrize("skew", [-601.0, 601.0])
def test_while_the_clocks_are_ten_minutes_apart_no_heartbeat_counts(
    state: TrustState, clock: FixedClock, skew: float
) -> None:
    clock.advance(5)
    beat(state, server_time=clock.now() + skew, expired_through=int(clock.now() + skew))
    assert (state.staleness(), state.expired_through, state.clock_skew_seconds) == (5, 0, skew)
    beat(state, server_time=clock.now() + skew * 0.99)
    assert state.staleness() == 0


def test_keys_that_are_held_already_make_no_one_judge_again(state: TrustState, issuer: Issuer) -> None:
    before = state.revision
    state.set_keys(ISSUER, [issuer.public_key])
    assert state.revision == before
    state.set_keys("https://another.test", [issuer.public_key])
    assert state.revision == before + 1


def test_a_sender_whose_clock_is_behind_is_not_taken_for_a_divergence(state: TrustState) -> None:
    state.apply(11, 11, [token_entry(1, 500), token_entry(2, 900)])
    state.expire(600)
    beat(state, expired_through=400, entry_count=2, digest="ab" * 24)
    assert state.expired_through == 600


def test_expired_entries_are_forgotten_and_do_not_come_back(state: TrustState) -> None:
    state.apply(11, 11, [token_entry(1, 500), token_entry(2, 501)])
    state.expire(500)
    assert [entry.expire_time for entry in state.entries()] == [501]
    state.apply(12, 12, [token_entry(3, 499)])
    state.expire(400)
    assert state.expired_through == 500
    assert state.digest()[0] == 1


def test_a_clock_that_steps_back_revives_no_token_whose_revocation_was_forgotten(
    state: TrustState, issuer: Issuer, clock: FixedClock
) -> None:
    verifier = Verifier(audiences=frozenset({"internal"}), trust=state, clock=clock)
    claims = issuer.claims()
    raw_token = issuer.sign(claims)
    entry = Entry(EntryKind.TOKEN, claims.token_id, claims.expire_time + 630)
    state.apply(11, 11, [entry])
    clock.advance(entry.expire_time - clock.now())
    state.expire(int(clock.now()))
    clock.wall = claims.issue_time
    with pytest.raises(TokenExpired):
        verifier.verify(issuer.sign(claims))
    with pytest.raises(TokenExpired):
        verifier.verify(raw_token)


def test_a_remembered_token_is_judged_again_when_the_state_moves(
    state: TrustState, issuer: Issuer, clock: FixedClock
) -> None:
    verifier = Verifier(audiences=frozenset({"internal"}), trust=state, clock=clock)
    claims = issuer.claims()
    raw_token = issuer.sign(claims)
    assert verifier.verify(raw_token) is verifier.verify(raw_token)
    state.apply(11, 11, [Entry(EntryKind.GRANT, claims.grant_id, LATER)])
    for _ in range(2):
        with pytest.raises(TokenRevoked):
            verifier.verify(raw_token)


def test_a_remembered_token_does_not_outlive_its_key(state: TrustState, issuer: Issuer, clock: FixedClock) -> None:
    verifier = Verifier(audiences=frozenset({"internal"}), trust=state, clock=clock)
    raw_token = issuer.mint()
    verifier.verify(raw_token)
    state.set_keys(ISSUER, [Issuer(clock).public_key])
    with pytest.raises(UnknownKey):
        verifier.verify(raw_token)


def test_the_cache_is_bounded_and_forgets_no_rule(state: TrustState, issuer: Issuer, clock: FixedClock) -> None:
    verifier = Verifier(audiences=frozenset({"internal"}), trust=state, clock=clock, cache_size=10)
    tokens = [issuer.mint() for _ in range(50)]
    for raw_token in tokens * 2:
        verifier.verify(raw_token)
    assert len(verifier._young) + len(verifier._old) <= 10


def test_a_token_in_use_stays_remembered_however_many_others_pass(
    state: TrustState, issuer: Issuer, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    proved: list[bytes] = []
    check = compact.check_signature

    def note(key: PublicKey, signing_input: bytes, signature: bytes) -> bool:
        proved.append(signing_input)
        return check(key, signing_input, signature)

    monkeypatch.setattr(compact, "check_signature", note)
    verifier = Verifier(audiences=frozenset({"internal"}), trust=state, clock=clock, cache_size=10)
    in_use = issuer.mint()
    for _ in range(50):
        verifier.verify(in_use)
        verifier.verify(issuer.mint())
    assert len(proved) == 51


def test_the_digest_is_the_same_in_whatever_order_entries_come_and_go() -> None:
    chance = random.Random(3)
    entries = [
        *(token_entry(number, 100 + number) for number in range(50)),
        *(Entry(EntryKind.ACCOUNT, f"account{n % 7}", 100 + n, n) for n in range(50)),
        *(Entry(EntryKind.ROLE, f"role{n % 3}", 150, n) for n in range(20)),
        Entry(EntryKind.KEY, "k" * 43, 200),
    ]
    digests = set()
    for _ in range(5):
        chance.shuffle(entries)
        held = Revocations()
        held.add(entries)
        held.add(entries[:30])
        held.expire(120)
        digests.add(held.digest())
    assert len(digests) == 1
    held.expire(10_000)
    assert held.digest() == (0, "00" * 24)


def test_of_two_entries_of_one_name_the_stricter_holds() -> None:
    held = Revocations()
    held.add([Entry(EntryKind.ACCOUNT, "a", 100, 5), Entry(EntryKind.ACCOUNT, "a", 90, 4)])
    assert held.minimum(EntryKind.ACCOUNT, "a") == 5
    held.expire(95)
    assert held.minimum(EntryKind.ACCOUNT, "a") == 5
    held.add([Entry(EntryKind.ACCOUNT, "a", 120, 5)])
    held.expire(100)
    assert held.minimum(EntryKind.ACCOUNT, "a") == 5


@pytest.mark.parametrize("kind", [EntryKind.TOKEN, EntryKind.GRANT, EntryKind.KEY])
def test_an_empty_name_such_as_an_opaque_bearer_has_for_its_token_is_never_revoked(kind: EntryKind) -> None:
    held = Revocations()
    held.add([Entry(kind, id_text(bytes(16)), 2_000_000_000)])
    assert not held.contains(kind, "")
