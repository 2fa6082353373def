"""Access rules: from options and tables, complete or refused; and the judge over them."""

from __future__ import annotations

import json as not_a_proto
from typing import Any

import pytest

from identity.server import CONTRACT
from identity.v1 import account_pb2, trust_pb2
from identity_client.access.judge import Judge, Judgement
from identity_client.access.rules import HEALTH_RULES, Rule, RuleError, Rules
from identity_client.errors import (
    AuthenticationTooOld,
    CredentialsMalformed,
    CredentialsMissing,
    MethodNotGuarded,
    PermissionMissing,
    TrustStale,
)
from identity_client.tokens.verifier import Verifier
from identity_client.trust.state import TrustState
from tests.clients.issuer import ISSUER, FixedClock, Issuer, bearer

METHOD = "/orders.v1.OrderService/GetOrder"


def judge(clock: FixedClock, issuer: Issuer, rule: Rule, is_fresh: bool = True) -> Judge:
    state = TrustState(clock)
    state.set_keys(ISSUER, [issuer.public_key])
    state.begin_snapshot("e", 0, 0)
    if is_fresh:
        state.touch(0)
    verifier = Verifier(audiences=frozenset({"orders", "internal"}), trust=state, clock=clock)
    return Judge(rules=Rules.from_table({METHOD: rule}), verifier=verifier, trust=state, clock=clock)


def test_rules_come_from_the_options_in_the_proto() -> None:
    rules = Rules.from_modules(*CONTRACT)
    assert rules.find("/identity.v1.TrustService/GetKeys") == Rule(public=True)
    assert rules.find("/identity.v1.TrustService/WatchTrust") == Rule(scopes=frozenset({"identity.watch"}))
    set_roles = rules.find("/identity.v1.AccountService/SetRoles")
    assert set_roles == Rule(scopes=frozenset({"identity.admin"}), is_confirmed=True)
    assert "/identity.v1.AccountService/SetRoles" in rules.confirmed_methods()
    assert rules.find("/identity.v1.AccountService/Nothing") is None


def test_a_module_without_rules_is_refused_and_its_methods_are_named() -> None:
    from grpc_health.v1 import health_pb2

    with pytest.raises(RuleError, match=r"grpc\.health\.v1\.Health\.Check, .*Watch"):
        Rules.from_modules(health_pb2)


def test_what_is_no_generated_module_is_refused() -> None:
    with pytest.raises(RuleError, match="json is not a generated"):
        Rules.from_modules(not_a_proto)


@pytest.mark.parametrize("name", ["GetOrder", "orders.v1.OrderService/GetOrder", "/a/b/c", ""])
def test_a_table_takes_full_method_names_only(name: str) -> None:
    with pytest.raises(RuleError):
        Rules.from_table({name: Rule()})


@pytest.mark.parametrize(
    "closed",
    [
        {"scopes": frozenset({"a"})},
        {"any_roles": frozenset({"a"})},
        {"is_confirmed": True},
        {"max_authentication_age_seconds": 1.0},
    ],
)
def test_a_public_method_has_no_other_condition(closed: dict[str, Any]) -> None:
    with pytest.raises(RuleError):
        Rule(public=True, **closed)


def test_rules_are_joined_unless_they_contradict() -> None:
    joined = Rules.from_modules(account_pb2) | Rules.from_modules(trust_pb2) | HEALTH_RULES
    assert joined.find("/grpc.health.v1.Health/Check") == Rule(public=True)
    with pytest.raises(RuleError, match="two different rules"):
        joined | Rules.from_table({"/grpc.health.v1.Health/Check": Rule()})


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ((), CredentialsMissing),
        ((("authorisation", "Bearer x"),), CredentialsMissing),
        ((("authorization", "Basic YTpi"),), CredentialsMalformed),
        ((("authorization", "Bearer"),), CredentialsMalformed),
        ((("authorization", ""),), CredentialsMalformed),
        ((("authorization", b"Bearer x"),), CredentialsMalformed),
        ((("authorization", "Bearer x"), ("authorization", "Bearer x")), CredentialsMalformed),
    ],
)
def test_a_call_has_exactly_one_bearer(
    clock: FixedClock, issuer: Issuer, metadata: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        judge(clock, issuer, Rule()).judge(METHOD, metadata)


def test_the_scheme_is_compared_without_regard_to_case(clock: FixedClock, issuer: Issuer) -> None:
    judgement = judge(clock, issuer, Rule()).judge(METHOD, (("authorization", f"bEARER {issuer.mint()}"),))
    assert isinstance(judgement, Judgement)
    assert judgement.principal is not None
    assert issuer.mint() not in repr(judgement)


def test_a_method_without_a_rule_is_closed(clock: FixedClock, issuer: Issuer) -> None:
    with pytest.raises(MethodNotGuarded):
        judge(clock, issuer, Rule()).judge("/orders.v1.OrderService/DeleteAll", bearer(issuer.mint()))


def test_all_scopes_and_one_role_are_needed(clock: FixedClock, issuer: Issuer) -> None:
    rule = Rule(scopes=frozenset({"a", "b"}), any_roles=frozenset({"clerk", "manager"}))
    assert judge(clock, issuer, rule).judge(METHOD, bearer(issuer.mint(scopes=("a", "b", "c"))))
    for lacking in ({"scopes": ("a",)}, {"scopes": ("a", "b"), "roles": ("cook",)}, {"scopes": ()}):
        with pytest.raises(PermissionMissing):
            judge(clock, issuer, rule).judge(METHOD, bearer(issuer.mint(**lacking)))


def test_a_token_limited_to_scopes_is_admitted_by_no_role(clock: FixedClock, issuer: Issuer) -> None:
    by_role, by_scope = Rule(any_roles=frozenset({"clerk"})), Rule(scopes=frozenset({"a"}))
    whole, limited = issuer.mint(scopes=("a",)), issuer.mint(scopes=("a",), is_limited=True)
    assert judge(clock, issuer, by_role).judge(METHOD, bearer(whole))
    with pytest.raises(PermissionMissing):
        judge(clock, issuer, by_role).judge(METHOD, bearer(limited))
    judgement = judge(clock, issuer, by_scope).judge(METHOD, bearer(limited))
    assert isinstance(judgement, Judgement)
    assert judgement.principal is not None
    assert judgement.principal.roles == ()


def test_an_old_log_in_and_a_machine_do_not_satisfy_a_recent_one(clock: FixedClock, issuer: Issuer) -> None:
    now = int(clock.now())
    rule = Rule(max_authentication_age_seconds=300)
    assert judge(clock, issuer, rule).judge(METHOD, bearer(issuer.mint(authentication_time=now - 300)))
    for too_old in (now - 301, None):
        with pytest.raises(AuthenticationTooOld):
            judge(clock, issuer, rule).judge(METHOD, bearer(issuer.mint(authentication_time=too_old)))


def test_with_a_copy_of_unknown_age_nothing_is_admitted(clock: FixedClock, issuer: Issuer) -> None:
    with pytest.raises(TrustStale):
        judge(clock, issuer, Rule(), is_fresh=False).judge(METHOD, bearer(issuer.mint()))
