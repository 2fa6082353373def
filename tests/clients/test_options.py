"""What a guard is told: how old its knowledge may be, what happens beyond, and whether refusals are enforced."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from identity.v1 import account_pb2
from identity_client import aio
from identity_client.access.hooks import Hooks
from identity_client.access.options import MethodOptions
from identity_client.access.report import OTHERS, UNAUTHENTICATED, Report, WouldBeRefusal, host_of
from identity_client.access.rules import Rule, RuleError
from identity_client.access.setup import make_judge
from identity_client.errors import DependencyDown, IdentityError, TokenRevoked
from identity_client.principal import Principal
from identity_client.sync.guard import Guard as ThreadedGuard
from identity_client.tokens.claims import Claims
from identity_client.tokens.opaque import Kind
from identity_client.trust.entries import Entry, EntryKind
from identity_client.trust.state import TrustState
from tests.clients.issuer import ISSUER, FixedClock, Issuer, bearer, opaque_text
from tests.clients.shapes import COLUMNS, LONG, SHAPES, TABLE, ShapePeer, end_of, path, until

GOOD: dict[str, Any] = {"scopes": ("read",), "lifetime_seconds": 3_000}


@dataclass
class Counting(Hooks):
    """Counts what it is told."""

    told: Counter[tuple[str, ...]] = field(default_factory=Counter)

    def on_judged(self, method: str) -> None:
        self.told["judged", method] += 1

    def on_refused(self, method: str, reason: str) -> None:
        self.told["refused", method, reason] += 1

    def on_would_refuse(self, method: str, reason: str) -> None:
        self.told["would refuse", method, reason] += 1

    def on_accepted_stale(self, method: str) -> None:
        self.told["stale", method] += 1


class Service:
    """The identity service as a guard asks it: blocking or not, with the same answers."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.error: IdentityError | None = None
        self.claims: Claims | None = None

    def confirm(self, principal: Principal) -> None:
        self.asked.append(principal.account_id)
        if self.error is not None:
            raise self.error

    def introspect(self, raw_token: str, is_anew: bool) -> Claims:
        self.asked.append(f"{raw_token[:4]} {is_anew}")
        if self.error is not None:
            raise self.error
        assert self.claims is not None
        return self.claims

    async def confirm_async(self, principal: Principal) -> None:
        self.confirm(principal)

    async def introspect_async(self, raw_token: str, is_anew: bool) -> Claims:
        return self.introspect(raw_token, is_anew)


MakePeer = Callable[..., Any]


@pytest.fixture(params=COLUMNS)
def column(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def hooks() -> Counting:
    return Counting()


@pytest.fixture
def make_peer(column: str, trust: TrustState, clock: FixedClock, service: Service, hooks: Counting) -> MakePeer:
    """A running peer whose guard has these options, and that guard."""

    @asynccontextmanager
    async def make(**options: Any) -> AsyncIterator[tuple[ShapePeer, aio.Guard | ThreadedGuard]]:
        judge = make_judge("shapes", (), trust=trust, clock=clock, rules=TABLE, **options)
        guard: aio.Guard | ThreadedGuard
        if column == "threaded":
            guard = ThreadedGuard(
                judge, audience="shapes", confirm=service.confirm, introspect=service.introspect, hooks=hooks
            )
        else:
            confirm, introspect = service.confirm_async, service.introspect_async
            guard = aio.Guard(judge, audience="shapes", confirm=confirm, introspect=introspect, hooks=hooks)
        async with ShapePeer(guard, is_sync=column == "aio, sync handlers") as peer:
            yield peer, guard

    return make


# -- how old -------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R71")
async def test_up_to_the_second_allowed_calls_are_judged_and_beyond_it_each_choice_does_as_declared(
    make_peer: MakePeer, trust: TrustState, clock: FixedClock, issuer: Issuer, service: Service, hooks: Counting
) -> None:
    methods = {
        path("UnaryUnary"): MethodOptions(on_stale="confirm"),
        path("UnaryStream"): MethodOptions(on_stale="accept"),
        path("StreamUnary"): MethodOptions(max_staleness_seconds=5),
    }
    metadata = bearer(issuer.mint(**GOOD))
    async with make_peer(max_staleness_seconds=30, methods=methods) as (peer, _):
        clock.advance(5)
        for method in SHAPES:
            await peer.call(method, metadata)
        clock.advance(0.1)
        assert (await peer.refusal("StreamUnary", metadata)).reason == "TRUST_STALE"
        clock.advance(24.9)
        await peer.call("StreamStream", metadata)
        assert (service.asked, hooks.told["stale", path("UnaryStream")]) == ([], 0)

        clock.advance(0.1)
        error = await peer.refusal("StreamStream", metadata)
        assert (error.status, error.reason) == ("UNAVAILABLE", "TRUST_STALE")
        await peer.call("UnaryUnary", metadata)
        assert len(service.asked) == 1
        await peer.call("UnaryStream", metadata)
        assert hooks.told["stale", path("UnaryStream")] == 1
        service.error = TokenRevoked()
        assert (await peer.refusal("UnaryUnary", metadata)).reason == "TOKEN_REVOKED"
        service.error = DependencyDown()
        assert (await peer.refusal("UnaryUnary", metadata)).status == "UNAVAILABLE"

        trust.touch(0)
        for method in SHAPES:
            await peer.call(method, metadata)
        assert len(service.asked) == 3


@pytest.mark.requirement("R71")
async def test_beyond_the_staleness_allowed_an_opaque_bearer_is_introspected_anew_where_that_confirms(
    make_peer: MakePeer, clock: FixedClock, issuer: Issuer, service: Service
) -> None:
    service.claims = issuer.claims(**GOOD)._replace(token_id="", key_id="")
    metadata = bearer(opaque_text(Kind.SESSION))
    async with make_peer(on_stale="confirm") as (peer, _):
        await peer.call("UnaryUnary", metadata)
        clock.advance(31)
        await peer.call("UnaryUnary", metadata)
    assert service.asked == ["ids_ False", "ids_ True"]


@pytest.mark.requirement("R71")
async def test_beyond_the_staleness_allowed_an_opaque_bearer_that_is_accepted_is_counted_like_any_other(
    make_peer: MakePeer, clock: FixedClock, issuer: Issuer, service: Service, hooks: Counting
) -> None:
    service.claims = issuer.claims(**GOOD)._replace(token_id="", key_id="")
    async with make_peer(on_stale="accept") as (peer, _):
        clock.advance(31)
        await peer.call("UnaryUnary", bearer(opaque_text(Kind.SESSION)))
    assert (service.asked, hooks.told["stale", path("UnaryUnary")]) == (["ids_ False"], 1)


@pytest.mark.requirement("R71")
@pytest.mark.parametrize("on_stale", ["reject", "confirm", "accept"])
async def test_without_a_first_snapshot_nobody_is_admitted_whatever_is_chosen(
    column: str, clock: FixedClock, issuer: Issuer, service: Service, on_stale: Any
) -> None:
    trust = TrustState(clock)
    trust.set_keys(ISSUER, [issuer.public_key])
    judge = make_judge("shapes", (), trust=trust, clock=clock, rules=TABLE, on_stale=on_stale)
    guard: aio.Guard | ThreadedGuard
    if column == "threaded":
        guard = ThreadedGuard(judge, audience="shapes", confirm=service.confirm)
    else:
        guard = aio.Guard(judge, audience="shapes", confirm=service.confirm_async)
    async with ShapePeer(guard, is_sync=column == "aio, sync handlers") as peer:
        error = await peer.refusal("UnaryUnary", bearer(issuer.mint(**GOOD)))
    assert (error.status, error.reason, service.asked) == ("UNAVAILABLE", "TRUST_STALE", [])


@pytest.mark.requirement("R72")
@pytest.mark.parametrize("cause", ["TOKEN_EXPIRED", "TOKEN_REVOKED"])
async def test_100_of_100_streams_end_with_their_grants_or_tokens_and_not_before(
    make_peer: MakePeer, trust: TrustState, clock: FixedClock, issuer: Issuer, cause: str
) -> None:
    async with make_peer(on_stale="accept") as (peer, _):
        grants = [issuer.claims(scopes=("read",)) for _ in range(101)]
        calls = [await peer.begin(LONG[number % 3], bearer(issuer.sign(grant))) for number, grant in enumerate(grants)]
        clock.advance(604)  # past the expiry, within the leeway
        revoke(trust, clock, 1, grants.pop())
        assert await end_of(calls.pop()) == "TOKEN_REVOKED"  # so that all have been judged again
        assert not any(call.done() for call in calls)
        if cause == "TOKEN_EXPIRED":
            clock.advance(1)
        else:
            revoke(trust, clock, 2, *grants)
        assert Counter([await end_of(call) for call in calls]) == {cause: 100}


@pytest.mark.requirement("R72")
async def test_a_stream_whose_caller_does_not_read_ends_with_the_reason_after_what_was_sent(
    make_peer: MakePeer, trust: TrustState, clock: FixedClock, issuer: Issuer, hooks: Counting
) -> None:
    claims = issuer.claims(**GOOD)
    async with make_peer() as (peer, _):
        call = peer.open("Flood", bearer(issuer.sign(claims)))
        assert len(await call.read()) == 64_000  # from now on flow control holds the handler up
        revoke(trust, clock, 1, claims)
        await until(lambda: hooks.told["refused", path("Flood"), "TOKEN_REVOKED"] == 1)
        with pytest.raises(grpc.aio.AioRpcError):
            while await call.read():
                pass
        assert await end_of(call) == "TOKEN_REVOKED"
        await until(lambda: peer.handlers.cleaned_up == 1)
        assert peer.handlers.ended_regularly == 0


def revoke(trust: TrustState, clock: FixedClock, version: int, *grants: Claims) -> None:
    entries = [Entry(EntryKind.GRANT, grant.grant_id, int(clock.now()) + 1_200) for grant in grants]
    trust.apply(version, version, entries)


async def test_a_running_stream_ends_as_unavailable_once_the_state_is_too_old(
    make_peer: MakePeer, clock: FixedClock, issuer: Issuer
) -> None:
    async with make_peer() as (peer, _):
        call = await peer.begin("LongStreamStream", bearer(issuer.mint(**GOOD)))
        clock.advance(31)
        async with asyncio.timeout(10):
            assert (await call.code()).name == "UNAVAILABLE"


# -- report only ---------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R75")
async def test_a_peer_under_unauthenticated_traffic_is_switched_to_enforcing_without_a_surprise(
    make_peer: MakePeer, issuer: Issuer, trust: TrustState, clock: FixedClock, hooks: Counting
) -> None:
    revoked = issuer.claims(**GOOD)
    trust.apply(1, 1, [Entry(EntryKind.GRANT, revoked.grant_id, int(clock.now()) + 4_000)])
    callers: dict[str, object] = {
        "nobody": (),
        "other scheme": (("authorization", "Basic YTpi"),),
        "revoked": bearer(issuer.sign(revoked)),
        "low scope": bearer(issuer.mint(account_id="account-of-low-scope")),
        "wrong audience": bearer(issuer.mint(**GOOD, account_id="account-of-wrong-audience", audience="stock")),
        "no credential of ours": bearer("some-other-token"),
        "good": bearer(issuer.mint(**GOOD)),
    }
    traffic = list(itertools.product(SHAPES, callers.items()))
    async with make_peer(enforce=False) as (peer, guard):
        for method, (_, metadata) in traffic:
            await peer.call(method, metadata)  # 0 failed calls before the switch
        reported = guard.report.counts()
        assert hooks.told["judged", path("UnaryUnary")] == len(callers)

    failed: Counter[WouldBeRefusal] = Counter()
    accounts = {
        "revoked": revoked.account_id,
        "low scope": "account-of-low-scope",
        "wrong audience": "account-of-wrong-audience",
    }
    async with make_peer() as (peer, _):
        for method, (name, metadata) in traffic:
            if name == "good":
                await peer.call(method, metadata)
                continue
            error = await peer.refusal(method, metadata)
            caller = accounts.get(name, UNAUTHENTICATED)
            failed[WouldBeRefusal(path(method), error.reason, caller, "127.0.0.1")] += 1
    assert reported == failed
    for kind, count in failed.items():
        assert hooks.told["would refuse", kind.method, kind.reason] >= count


@pytest.mark.requirement("R75")
async def test_a_call_that_would_have_been_refused_has_no_principal(
    make_peer: MakePeer, issuer: Issuer, service: Service
) -> None:
    service.error = TokenRevoked()
    async with make_peer(enforce=False) as (peer, _):
        for method in SHAPES:
            assert set(await peer.call(method, bearer(issuer.mint()))) == {b"nobody"}
        assert await peer.call("NotRuled") == [b"nobody"]
        assert await peer.call("Confirmed", bearer(issuer.mint(**GOOD))) == [b"nobody"]
        assert await peer.call("UnaryUnary", bearer(opaque_text(Kind.API_KEY))) == [b"nobody"]
        claims = issuer.claims(**GOOD)
        assert await peer.call("UnaryUnary", bearer(issuer.sign(claims))) == [claims.account_id.encode()]


@pytest.mark.requirement("R75")
async def test_one_method_reports_while_the_others_enforce(make_peer: MakePeer, hooks: Counting) -> None:
    async with make_peer(methods={path("UnaryUnary"): MethodOptions(enforce=False)}) as (peer, guard):
        await peer.call("UnaryUnary")
        assert (await peer.refusal("UnaryStream")).reason == "CREDENTIALS_MISSING"
    assert [kind.method for kind in guard.report.counts()] == [path("UnaryUnary")]
    assert hooks.told["would refuse", path("UnaryUnary"), "CREDENTIALS_MISSING"] == 1
    assert hooks.told["refused", path("UnaryStream"), "CREDENTIALS_MISSING"] == 1


@pytest.mark.requirement("R75")
@pytest.mark.parametrize("method", LONG)
async def test_a_running_stream_that_would_have_been_ended_is_reported_once_and_goes_on(
    make_peer: MakePeer, clock: FixedClock, issuer: Issuer, hooks: Counting, method: str
) -> None:
    claims = issuer.claims(scopes=("read",))
    async with make_peer(enforce=False) as (peer, guard):
        call = await peer.begin(method, bearer(issuer.sign(claims)))
        clock.advance(605)
        await until(lambda: hooks.told["would refuse", path(method), "TOKEN_EXPIRED"] == 1)
        assert not call.done()
        call.cancel()
    assert guard.report.counts() == {WouldBeRefusal(path(method), "TOKEN_EXPIRED", claims.account_id, "127.0.0.1"): 1}


@pytest.mark.requirement("R48")
async def test_the_log_names_each_kind_once_and_the_methods_each_minute_and_no_token(
    make_peer: MakePeer, clock: FixedClock, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    raw_token, claims = opaque_text(Kind.REFRESH), issuer.claims(scopes=("write",))
    async with make_peer(enforce=False, on_stale="accept") as (peer, _):
        for _ in range(3):
            await peer.call("UnaryUnary", bearer(raw_token))
            await peer.call("StreamStream", bearer(issuer.sign(claims)))
        assert [record.levelname for record in caplog.records if "shapes" in record.message] == ["WARNING"] * 2
        told = f"would have refused {path('StreamStream')} with PERMISSION_MISSING: caller {claims.account_id} at"
        assert f"{told} 127.0.0.1" in caplog.text
        clock.advance(60)
        await peer.call("Public")
        assert f"would have refused {path('StreamStream')} 3 x PERMISSION_MISSING, " in caplog.text
        assert f"{path('UnaryUnary')} 3 x TOKEN_MALFORMED" in caplog.text
        clock.advance(60)
        await peer.call("Public")
        assert "in the last minute it would have refused no call" in caplog.text
    assert raw_token not in caplog.text


def test_a_report_tells_a_bounded_number_of_kinds_apart(clock: FixedClock) -> None:
    report = Report("shapes", clock)
    for number in range(1_500):
        report.note(f"/invented/{number}", TokenRevoked(), "127.0.0.1")
    counts = report.counts()
    assert len(counts) == 1_001
    assert counts[WouldBeRefusal(OTHERS, "TOKEN_REVOKED", OTHERS, OTHERS)] == 500


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:127.0.0.1:5001", "127.0.0.1"),
        ("ipv6:%5B::1%5D:5001", "::1"),
        ("ipv6:[2001:db8::1]:5001", "2001:db8::1"),
        ("unix:", "unix"),
        ("", ""),
    ],
)
def test_a_caller_is_reported_by_host(peer: str, host: str) -> None:
    assert host_of(peer) == host


# -- hooks ---------------------------------------------------------------------------------------------------------


async def test_hooks_hear_of_every_judgement_and_cannot_be_fed_invented_names(
    make_peer: MakePeer, issuer: Issuer, hooks: Counting
) -> None:
    async with make_peer() as (peer, _):
        await peer.call("UnaryUnary", bearer(issuer.mint(**GOOD)))
        await peer.refusal("UnaryUnary")
        await peer.refusal("NotRuled")
    assert hooks.told == {
        ("judged", path("UnaryUnary")): 2,
        ("judged", ""): 1,
        ("refused", path("UnaryUnary"), "CREDENTIALS_MISSING"): 1,
        ("refused", "", "METHOD_NOT_GUARDED"): 1,
    }


async def test_a_hook_that_fails_changes_nothing(
    make_peer: MakePeer, issuer: Issuer, hooks: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    hooks.told = None  # type: ignore[assignment]
    async with make_peer() as (peer, _):
        await peer.call("UnaryUnary", bearer(issuer.mint(**GOOD)))
        assert (await peer.refusal("UnaryUnary")).reason == "CREDENTIALS_MISSING"
    assert "a hook of the guard of shapes failed" in caplog.text


# -- mistakes, found at construction -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modules", "options", "problem"),
    [
        ((), {}, "needs the generated modules of its services, or a table"),
        ((), {"rules": {"GetOrder": Rule()}}, "not of the form"),
        ((account_pb2,), {"rules": {"/identity.v1.AccountService/GetAcount": Rule()}}, "GetAcount"),
        ((account_pb2,), {"rules": {"/identity.v1.AccountService/SetRoles": Rule()}}, "two different rules"),
        ((account_pb2,), {"methods": {"/identity.v1.AccountService/Nothing": MethodOptions()}}, "Nothing"),
    ],
)
def test_a_mistake_in_the_rules_is_found_when_the_guard_is_made(
    trust: TrustState, clock: FixedClock, modules: Any, options: Any, problem: str
) -> None:
    with pytest.raises(RuleError, match=problem):
        make_judge("orders", modules, trust=trust, clock=clock, **options)


def test_a_module_without_options_is_completed_by_a_table_and_health_is_open_unless_the_table_closes_it(
    trust: TrustState, clock: FixedClock
) -> None:
    from grpc_health.v1 import health_pb2

    check = "/grpc.health.v1.Health/Check"
    admin = Rule(scopes=frozenset({"identity.admin"}))
    health = health_pb2.DESCRIPTOR.services_by_name["Health"]
    table = {f"/grpc.health.v1.Health/{method.name}": admin for method in health.methods}  # List is not in old versions
    closed = make_judge("orders", (health_pb2,), trust=trust, clock=clock, rules=table)
    assert closed.rules.find(check) == admin
    opened = make_judge("orders", (account_pb2,), trust=trust, clock=clock)
    assert opened.rules.find(check) == Rule(public=True)
    assert opened.rules.find("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo") is None


@pytest.mark.parametrize(
    "options",
    [{"max_staleness_seconds": 0}, {"max_staleness_seconds": float("inf")}, {"on_stale": "ignore"}],
)
def test_options_out_of_their_range_are_refused(trust: TrustState, clock: FixedClock, options: Any) -> None:
    with pytest.raises(ValueError, match=r"max_staleness_seconds|on_stale"):
        make_judge("orders", (account_pb2,), trust=trust, clock=clock, **options)
    with pytest.raises(ValueError, match=r"max_staleness_seconds|on_stale"):
        MethodOptions(**options)


def test_a_guard_that_cannot_confirm_is_not_made_for_a_method_that_may_have_to(
    trust: TrustState, clock: FixedClock
) -> None:
    rules = {path("UnaryUnary"): Rule()}
    judge = make_judge("shapes", (), trust=trust, clock=clock, rules=rules, on_stale="confirm")
    for kind in (aio.Guard, ThreadedGuard):
        with pytest.raises(ValueError, match="UnaryUnary"):
            kind(judge, audience="shapes")
