"""What a peer makes of Redis's answers: the keys of a token, the sentinel, the breaker, and what is remembered."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio.client import Pipeline
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from identity_client.access.judge import Judge, Judgement, Look
from identity_client.access.rules import Rule
from identity_client.access.setup import make_judge
from identity_client.aio.lookups import Lookups
from identity_client.errors import (
    CredentialsMissing,
    MethodNotGuarded,
    PermissionMissing,
    TokenMalformed,
    TokenRevoked,
    TrustStale,
    WrongAudience,
)
from identity_client.redis import RedisRevocations
from identity_client.redis.breaker import Breaker, delay_seconds
from identity_client.redis.schema import Schema, Sentinel
from identity_client.tokens.claims import Claims
from identity_client.trust.source import Answer, SourceDown
from identity_client.trust.state import TrustState
from tests.clients.issuer import ISSUER, FixedClock, Issuer, bearer
from tests.clients.shapes import until

SCHEMA = Schema()


@pytest.fixture
def claims(issuer: Issuer) -> Claims:
    return issuer.claims(roles=("clerk", "reader"), generation=3, policy_version=5)


def test_all_that_can_take_a_token_back_is_read_after_the_sentinel(claims: Claims) -> None:
    names = [
        "trust",
        f"sid:{claims.grant_id}",
        f"jti:{claims.token_id}",
        f"kid:{claims.key_id}",
        f"gen:{claims.account_id}",
        "pol:clerk",
        "pol:reader",
    ]
    assert SCHEMA.keys(claims) == [f"identity:{name}" for name in names]
    opaque = claims._replace(token_id="", key_id="")
    assert SCHEMA.keys(opaque) == [f"identity:{names[at]}" for at in (0, 1, 4, 5, 6)]


@pytest.mark.parametrize(
    ("values", "standing"),
    [
        ((None, None, None, None, None, None), (False, False)),
        (("1", None, None, None, None, None), (True, False)),
        ((None, "1", None, None, None, None), (True, False)),
        ((None, None, "1", None, None, None), (True, False)),
        ((None, None, None, "3", "5", "5"), (False, False)),
        ((None, None, None, "4", None, None), (False, True)),
        ((None, None, None, None, None, "6"), (False, True)),
        ((None, None, None, "what is no number", None, None), (False, True)),
    ],
)
def test_each_of_them_counts(claims: Claims, values: tuple[str | None, ...], standing: tuple[bool, bool]) -> None:
    assert SCHEMA.standing(claims, (None, *values)) == standing
    if values[1] is values[2] is None:
        opaque = claims._replace(token_id="", key_id="")
        assert SCHEMA.standing(opaque, (None, values[0], *values[3:])) == standing


def test_a_sentinel_is_read_as_it_was_written() -> None:
    sentinel = Sentinel("epoch", 7, 3, 1_800_000_000_123, "a1b2", 1_800_000_000_456)
    assert Sentinel.parse(sentinel.text()) == sentinel


@pytest.mark.parametrize(
    "text",
    [None, "", "1", "null", "[]", "{", '{"epoch":"e"}', '{"epoch":"e","version":"x"}', '{"epoch":"e","version":1e999}'],
)
def test_what_is_no_sentinel_vouches_for_nothing(text: str | None) -> None:
    assert Sentinel.parse(text) is None


@pytest.mark.parametrize("prefix", ["", "identity*:", "a b", "x" * 65, "é:"])
def test_a_prefix_is_plain(prefix: str) -> None:
    with pytest.raises(ValueError, match="a prefix is"):
        Schema(prefix)


def test_an_address_that_is_none_is_refused_without_repeating_it() -> None:
    for url in ("http://:secret@redis", "redis://:secret@redis?unknown=1", "redis://:secret@redis?socket_timeout=x"):
        with pytest.raises(ValueError, match="begins with redis://") as caught:
            RedisRevocations(url)
        assert "secret" not in str(caught.value)


class Probe:
    """Fails until it is told to succeed; counts how many run at once."""

    def __init__(self) -> None:
        self.count = self.running = self.most_at_once = 0
        self.is_held = self.succeeds = False

    async def __call__(self) -> None:
        self.count += 1
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        try:
            if self.is_held:
                await asyncio.Event().wait()
            if not self.succeeds:
                raise ConnectionError
        finally:
            self.running -= 1


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No delay between two probes."""
    monkeypatch.setattr("identity_client.redis.breaker.delay_seconds", lambda failures: 0.0)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("is_held", [False, True])
async def test_the_breaker_opens_after_three_failures_until_a_probe_of_its_own_succeeds(is_held: bool) -> None:
    probe = Probe()
    probe.is_held = is_held
    breaker = Breaker(probe, 0.01)
    for _ in range(3):
        assert not breaker.is_open
        breaker.failed(in_vain=False)
    for _ in range(100):  # those that were asked before
        breaker.failed(in_vain=False)
    breaker.succeeded()
    await until(lambda: probe.count > 5)
    assert breaker.is_open
    probe.succeeds, probe.is_held = True, False
    await until(lambda: not breaker.is_open)
    assert (probe.most_at_once, probe.running) == (1, 0)
    breaker.failed(in_vain=False)
    breaker.failed(in_vain=False)
    assert not breaker.is_open  # it counts from the beginning
    await breaker.close()


@pytest.mark.usefixtures("at_once")
async def test_the_breaker_opens_when_one_has_waited_in_vain() -> None:
    probe = Probe()
    breaker = Breaker(probe, 0.01)
    breaker.failed(in_vain=True)
    assert breaker.is_open
    await until(lambda: probe.count > 1)
    probe.succeeds = True
    await until(lambda: not breaker.is_open)


async def test_the_first_probe_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("identity_client.redis.breaker.delay_seconds", lambda failures: 1_000.0)
    probe = Probe()
    probe.succeeds = True
    breaker = Breaker(probe, 1.0)
    breaker.failed(in_vain=True)
    await until(lambda: not breaker.is_open)


@pytest.mark.parametrize("error", [TimeoutError, RedisTimeoutError, ConnectionError])
async def test_a_question_that_waited_in_vain_is_the_last_one(
    claims: Claims, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def execute(_: Any) -> list[Any]:
        raise error

    monkeypatch.setattr(Pipeline, "execute", execute)
    source = RedisRevocations("redis://127.0.0.1:1")
    with pytest.raises(SourceDown, match="gave no answer"):
        await source.ask([claims])
    with pytest.raises(SourceDown, match="gave no answer" if error is ConnectionError else "left alone"):
        await source.ask([claims])
    await source.close()


async def test_a_success_between_failures_keeps_the_breaker_closed() -> None:
    breaker = Breaker(Probe(), 0.01)
    for _ in range(10):
        breaker.failed(in_vain=False)
        breaker.failed(in_vain=False)
        breaker.succeeded()
    assert not breaker.is_open


@pytest.mark.usefixtures("at_once")
async def test_a_breaker_that_was_closed_for_good_probes_no_more() -> None:
    probe = Probe()
    probe.is_held = True
    breaker = Breaker(probe, 60.0)
    for _ in range(3):
        breaker.failed(in_vain=False)
    await until(lambda: probe.running == 1)
    await breaker.close()
    breaker.failed(in_vain=False)
    assert (breaker.is_open, probe.running, probe.count) == (True, 0, 1)


@pytest.mark.usefixtures("at_once")
async def test_no_question_is_asked_of_a_redis_that_is_left_alone(
    claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    async def execute(pipe: Any) -> list[Any]:
        asked.append(len(pipe))
        raise ConnectionError

    monkeypatch.setattr(Pipeline, "execute", execute)
    source = RedisRevocations("redis://127.0.0.1:1")
    for _ in range(3):
        with pytest.raises(SourceDown, match="gave no answer"):
            await source.ask([claims])
    with pytest.raises(SourceDown, match="left alone"):
        await source.ask([claims])
    await until(lambda: len(asked) > 5)
    assert asked[:3] == [4, 4, 4]
    assert set(asked[3:]) == {3}  # a probe reads the sentinel alone, which a reader may
    await source.close()


@pytest.mark.parametrize("failures", [1, 4, 100])
def test_delays_grow_to_a_second_at_most(failures: int) -> None:
    assert 0.05 <= delay_seconds(failures) <= 1.0


async def test_the_answer_to_another_question_is_not_taken(claims: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    async def execute(_: Any) -> list[Any]:
        return ["another nonce", (1, 0), None, [None] * 7]

    monkeypatch.setattr(Pipeline, "execute", execute)
    source = RedisRevocations("redis://127.0.0.1:1")
    with pytest.raises(SourceDown):
        await source.ask([claims])
    await source.close()


async def test_what_redis_says_in_an_error_is_not_repeated(monkeypatch: pytest.MonkeyPatch, claims: Claims) -> None:
    async def execute(_: Any) -> list[Any]:
        raise ResponseError("unknown command 'AUTH', with args beginning with: 'secret'")

    monkeypatch.setattr(Pipeline, "execute", execute)
    source = RedisRevocations("redis://127.0.0.1:1")
    with pytest.raises(SourceDown, match=r"^Redis gave no answer: ResponseError$") as caught:
        await source.ask([claims])
    assert caught.value.__cause__ is None
    await source.close()


@pytest.fixture
def judge(lookups: Lookups, clock: FixedClock, issuer: Issuer) -> Judge:
    """Of a peer that asks: Open is for anyone, Closed for clerks."""
    trust = TrustState(clock)
    trust.set_keys(ISSUER, [issuer.public_key])
    rules = {"/test.Service/Open": Rule(public=True), "/test.Service/Closed": Rule(any_roles=frozenset({"clerk"}))}
    return make_judge("orders", [], trust=trust, clock=clock, rules=rules, recollection=lookups)


def test_what_needs_no_answer_is_judged_without_one(judge: Judge, issuer: Issuer) -> None:
    for method, metadata, refusal in (
        ("/test.Service/Unknown", bearer(issuer.mint()), MethodNotGuarded),
        ("/test.Service/Closed", (), CredentialsMissing),
        ("/test.Service/Open", bearer("nonsense"), TokenMalformed),
        ("/test.Service/Closed", bearer("ids_nonsense"), TokenMalformed),
        ("/test.Service/Closed", bearer(issuer.mint(audience="billing")), WrongAudience),
    ):
        with pytest.raises(refusal):
            judge.judge(method, metadata)
    assert judge.judge("/test.Service/Open", ()) == Judgement(None)


async def test_a_genuine_token_is_judged_by_the_answer_and_then_by_the_rule(
    judge: Judge, lookups: Lookups, issuer: Issuer
) -> None:
    for roles, refusal in (("clerk",), None), (("guest",), PermissionMissing):
        step = judge.judge("/test.Service/Closed", bearer(issuer.mint(roles=roles)))
        assert isinstance(step, Look)
        with pytest.raises(TrustStale):
            step.decide(Answer())
        with pytest.raises(TokenRevoked):
            step.decide(Answer(0.0, is_revoked=True))
        with pytest.raises(refusal) if refusal else contextlib.nullcontext():
            step.decide(Answer(30.0))
        with pytest.raises(TrustStale):
            step.decide(Answer(30.1))


# -- what is remembered --------------------------------------------------------------------------------------------


class Source:
    """Says what it is told to; None: nothing."""

    def __init__(self, clock: FixedClock) -> None:
        self.answer: Answer | None = Answer(0.0, clock.now(), 2)
        self.asked: list[tuple[Claims, ...]] = []

    async def ask(self, claims: Sequence[Claims]) -> tuple[Answer, list[Answer]]:
        self.asked.append(tuple(claims))
        if self.answer is None:
            raise SourceDown("told to")
        return self.answer, [self.answer] * len(claims)

    async def close(self) -> None:
        pass


@pytest.fixture
def source(clock: FixedClock) -> Source:
    return Source(clock)


@pytest.fixture
def lookups(source: Source, clock: FixedClock) -> Lookups:
    return Lookups(source, clock)


async def test_an_answer_ages_from_when_it_was_asked_for(lookups: Lookups, claims: Claims, clock: FixedClock) -> None:
    assert not lookups.is_ready
    assert lookups.staleness() == math.inf
    assert (await lookups.look(claims)).age_seconds == 0.0
    clock.advance(3.0)
    assert (lookups.is_ready, lookups.staleness(), lookups.entry_count()) == (True, 3.0, 2)


async def test_without_an_answer_nothing_is_known(lookups: Lookups, source: Source, claims: Claims) -> None:
    source.answer = None
    assert (await lookups.look(claims)).age_seconds == math.inf
    assert (lookups.is_ready, lookups.problem) == (False, "told to")


async def test_once_it_is_closed_nothing_is_known(lookups: Lookups, source: Source, claims: Claims) -> None:
    await lookups.look(claims)
    await lookups.close()
    assert (await lookups.look(claims)).age_seconds == math.inf
    assert len(source.asked) == 1  # it would connect again


@pytest.mark.parametrize(("skew_seconds", "counts"), [(590, True), (-590, True), (610, False), (-610, False)])
async def test_clocks_too_far_apart_count_as_no_answer(
    lookups: Lookups, source: Source, claims: Claims, clock: FixedClock, skew_seconds: float, counts: bool
) -> None:
    source.answer = Answer(0.0, clock.now() + skew_seconds)
    assert ((await lookups.look(claims)).age_seconds == 0.0) is counts
    assert lookups.is_ready is counts


async def test_a_running_call_is_asked_about_until_it_ends(
    lookups: Lookups, source: Source, claims: Claims, clock: FixedClock
) -> None:
    await lookups.look(claims)
    task = asyncio.create_task(lookups.run())
    try:
        lookups.recall(claims).check()
        source.answer = Answer(0.0, clock.now(), is_revoked=True)
        source.asked.clear()
        await until(lambda: (claims,) in source.asked and lookups.recall(claims).is_revoked)
        with pytest.raises(TokenRevoked):
            lookups.recall(claims).check()
        clock.advance(2.5)
        source.answer = Answer(0.0, clock.now())
        await until(lambda: source.asked[-1] == ())
    finally:
        task.cancel()


async def test_the_last_word_on_a_running_call_stands_and_grows_old(
    lookups: Lookups, source: Source, claims: Claims, clock: FixedClock
) -> None:
    await lookups.look(claims)
    lookups.recall(claims)
    for answer in (None, Answer(math.inf, clock.now())):  # down, and emptied
        source.answer = answer
        task = asyncio.create_task(lookups.run())
        count = len(source.asked)
        await until(lambda count=count: len(source.asked) > count)
        task.cancel()
    clock.advance(1.5)
    assert lookups.recall(claims).age_seconds == 1.5
