"""What is remembered of a token is what cannot change: each method asks for itself, an age is looked at each time."""

from __future__ import annotations

import pytest

from identity_client.access.judge import Judge, Judgement
from identity_client.access.rules import Rule, Rules
from identity_client.errors import AuthenticationTooOld, PermissionMissing, WrongAudience
from identity_client.tokens.verifier import Verifier
from identity_client.trust.state import TrustState
from tests.clients.issuer import ISSUER, FixedClock, Issuer, bearer

READ, WRITE = "/shop.v1.Shop/Read", "/shop.v1.Shop/Write"


@pytest.fixture
def trust(clock: FixedClock, issuer: Issuer) -> TrustState:
    trust = TrustState(clock)
    trust.set_keys(ISSUER, [issuer.public_key])
    trust.begin_snapshot("e0", 0, 0)
    trust.touch(0)
    return trust


@pytest.fixture
def verifier(trust: TrustState, clock: FixedClock) -> Verifier:
    return Verifier(audiences=frozenset({"internal"}), trust=trust, clock=clock)


def judge_of(verifier: Verifier, trust: TrustState, clock: FixedClock, **rules: Rule) -> Judge:
    table = {{"read": READ, "write": WRITE}[name]: rule for name, rule in rules.items()}
    return Judge(rules=Rules.from_table(table), verifier=verifier, trust=trust, clock=clock)


@pytest.mark.requirement("R23")
def test_a_token_that_passed_one_method_passes_no_other(
    verifier: Verifier, trust: TrustState, clock: FixedClock, issuer: Issuer
) -> None:
    rules = {"read": Rule(scopes=frozenset({"shop.read"})), "write": Rule(scopes=frozenset({"shop.write"}))}
    judge, token = judge_of(verifier, trust, clock, **rules), bearer(issuer.mint(scopes=("shop.read",)))
    for _ in range(3):
        assert isinstance(judge.judge(READ, token), Judgement)
        with pytest.raises(PermissionMissing):
            judge.judge(WRITE, token)


@pytest.mark.requirement("R23")
def test_judges_that_share_a_verifier_share_no_verdict(
    verifier: Verifier, trust: TrustState, clock: FixedClock, issuer: Issuer
) -> None:
    token = bearer(issuer.mint(scopes=("shop.read",)))
    lenient = judge_of(verifier, trust, clock, read=Rule(scopes=frozenset({"shop.read"})))
    strict = judge_of(verifier, trust, clock, read=Rule(scopes=frozenset({"shop.admin"})))
    for _ in range(2):
        assert isinstance(lenient.judge(READ, token), Judgement)
        with pytest.raises(PermissionMissing):
            strict.judge(READ, token)


@pytest.mark.requirement("R23")
def test_a_token_for_others_is_refused_at_each_use_also_where_it_was_verified_for_any(
    verifier: Verifier, trust: TrustState, clock: FixedClock, issuer: Issuer
) -> None:
    judge, raw_token = judge_of(verifier, trust, clock, read=Rule()), issuer.mint(audience="stock")
    assert verifier.verify_any_audience(raw_token)
    for _ in range(2):
        with pytest.raises(WrongAudience):
            judge.judge(READ, bearer(raw_token))


def test_the_age_of_an_authentication_is_looked_at_each_time(
    verifier: Verifier, trust: TrustState, clock: FixedClock, issuer: Issuer
) -> None:
    judge = judge_of(verifier, trust, clock, read=Rule(max_authentication_age_seconds=60))
    token = bearer(issuer.mint(authentication_time=int(clock.now())))
    assert isinstance(judge.judge(READ, token), Judgement)
    clock.advance(20)
    assert isinstance(judge.judge(READ, token), Judgement)
    clock.advance(41)
    trust.touch(0)
    with pytest.raises(AuthenticationTooOld):
        judge.judge(READ, token)
