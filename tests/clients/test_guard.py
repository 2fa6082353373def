"""The asyncio guard: who gets in, who does not, and what the others are told."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from identity_client.access.judge import Judge
from identity_client.aio.guard import Guard
from identity_client.errors import DependencyDown, IdentityError, TokenRevoked
from identity_client.principal import BearerKind, Principal
from identity_client.tokens.claims import Claims
from identity_client.tokens.opaque import Kind
from identity_client.tokens.verifier import Verifier
from identity_client.trust.entries import Entry, EntryKind
from identity_client.trust.state import TrustState
from tests.clients.issuer import FixedClock, Issuer, bearer, opaque_text
from tests.clients.probe import RULES, SERVICE, SHAPES, Peer


class Confirmations:
    """A confirm that answers as told and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Principal] = []
        self.error: IdentityError | None = None

    async def __call__(self, principal: Principal) -> None:
        self.asked.append(principal)
        if self.error is not None:
            raise self.error


@pytest.fixture
def judge(trust: TrustState, clock: FixedClock) -> Judge:
    verifier = Verifier(audiences=frozenset({"orders", "internal"}), trust=trust, clock=clock)
    return Judge(rules=RULES, verifier=verifier, trust=trust)


@pytest.fixture
def confirmations() -> Confirmations:
    return Confirmations()


@pytest.fixture
async def peer(judge: Judge, confirmations: Confirmations) -> AsyncIterator[Peer]:
    async with Peer(Guard(judge, audience="orders", confirm=confirmations)) as running:
        yield running


# -- admitted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*SHAPES, "SyncUnary", "SyncStream"])
async def test_a_handler_of_every_shape_knows_its_caller(peer: Peer, issuer: Issuer, method: str) -> None:
    claims = issuer.claims()
    answers = await peer.call(method, bearer(issuer.sign(claims)))
    assert set(answers) == {claims.account_id.encode()}


@pytest.mark.requirement("R23")
async def test_a_token_for_the_service_itself_and_one_for_its_group_are_admitted(peer: Peer, issuer: Issuer) -> None:
    for audience in ("orders", "internal"):
        await peer.call("UnaryUnary", bearer(issuer.mint(audience=audience)))
    assert peer.probe.runs == 2


@pytest.mark.parametrize("method", ["Public", "PublicStream"])
async def test_a_public_method_is_open_to_nobody_in_particular(peer: Peer, method: str) -> None:
    assert set(await peer.call(method)) == {b"nobody"}


async def test_2000_interleaved_calls_of_different_users_see_their_own_principal_only(
    peer: Peer, issuer: Issuer
) -> None:
    users = [issuer.claims() for _ in range(50)]
    metadata = {user.account_id: bearer(issuer.sign(user)) for user in users}
    methods = ("UnaryUnary", "StreamStream", "SyncUnary", "UnaryStream")
    slots = asyncio.Semaphore(64)

    async def one(number: int) -> bool:
        user = users[number % len(users)]
        async with slots:
            answers = await peer.call(methods[number % len(methods)], metadata[user.account_id])
        return set(answers) == {user.account_id.encode()}

    assert all(await asyncio.gather(*(one(number) for number in range(2_000))))


async def test_a_pool_thread_does_not_hand_a_caller_on_to_the_next_call(peer: Peer, issuer: Issuer) -> None:
    await peer.call("SyncUnary", bearer(issuer.mint()))
    await peer.call("SyncStream", bearer(issuer.mint()))
    assert await peer.call("SyncPublic") == [b"nobody"]


async def test_what_a_handler_says_passes_untouched(peer: Peer, issuer: Issuer) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await peer.call("Failing", bearer(issuer.mint()))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == "the handler's own words"


# -- refused -------------------------------------------------------------------------------------------------------

REVOKED_GRANT = "AAAAAAAAAAAAAAAAAAAAAA"
CHANGED_ACCOUNT = "BBBBBBBBBBBBBBBBBBBBBA"

REFUSALS: dict[str, Callable[[Issuer, FixedClock], object]] = {
    "CREDENTIALS_MISSING": lambda issuer, clock: (),
    "CREDENTIALS_MALFORMED": lambda issuer, clock: (("authorization", "Basic YTpi"),),
    "TOKEN_MALFORMED": lambda issuer, clock: bearer("idr_no-access-token"),
    "BAD_SIGNATURE": lambda issuer, clock: bearer(_resigned(issuer, clock)),
    "UNKNOWN_KEY": lambda issuer, clock: bearer(Issuer(clock).mint()),
    "WRONG_ISSUER": lambda issuer, clock: bearer(issuer.mint(issuer="https://elsewhere.test")),
    "WRONG_AUDIENCE": lambda issuer, clock: bearer(issuer.mint(audience="stock")),
    "TOKEN_EXPIRED": lambda issuer, clock: bearer(
        issuer.mint(issue_time=int(clock.now()) - 600, expire_time=int(clock.now()) - 5)
    ),
    "TOKEN_NOT_YET_VALID": lambda issuer, clock: bearer(
        issuer.mint(issue_time=int(clock.now()) + 60, expire_time=int(clock.now()) + 600)
    ),
    "TOKEN_REVOKED": lambda issuer, clock: bearer(issuer.mint(grant_id=REVOKED_GRANT)),
    "TOKEN_OUTDATED": lambda issuer, clock: bearer(issuer.mint(account_id=CHANGED_ACCOUNT)),
    "PERMISSION_MISSING": lambda issuer, clock: bearer(issuer.mint(roles=("cook",))),
}


def _resigned(issuer: Issuer, clock: FixedClock) -> str:
    """The issuer's header and payload under another key's signature."""
    claims = issuer.claims()
    return issuer.sign(claims).rpartition(".")[0] + "." + Issuer(clock).sign(claims).rpartition(".")[2]


@pytest.fixture
def revocations(trust: TrustState, clock: FixedClock) -> None:
    expire_time = int(clock.now()) + 1_200
    trust.apply(1, 1, [Entry(EntryKind.GRANT, REVOKED_GRANT, expire_time)])
    trust.apply(2, 2, [Entry(EntryKind.ACCOUNT, CHANGED_ACCOUNT, expire_time, minimum=2)])


@pytest.mark.requirement("R23")
@pytest.mark.usefixtures("revocations")
@pytest.mark.parametrize("method", SHAPES)
@pytest.mark.parametrize("reason", REFUSALS)
async def test_a_bad_credential_is_refused_with_its_reason_and_no_handler_runs(
    peer: Peer, issuer: Issuer, clock: FixedClock, method: str, reason: str
) -> None:
    error = await peer.refusal(method, REFUSALS[reason](issuer, clock))
    assert error.reason == reason
    assert error.status == ("PERMISSION_DENIED" if reason == "PERMISSION_MISSING" else "UNAUTHENTICATED")
    assert (error.refused_by, error.refused_audience) == ("guard", "orders")
    assert peer.probe.runs == 0


async def test_the_status_message_alone_tells_a_person_what_to_do(peer: Peer) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await peer.call("UnaryUnary")
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert caught.value.details() == (
        "CREDENTIALS_MISSING: This method needs an access token: send metadata 'authorization: Bearer <token>'."
    )


async def test_two_credentials_are_refused_even_if_both_are_good(peer: Peer, issuer: Issuer) -> None:
    error = await peer.refusal("UnaryUnary", bearer(issuer.mint()) + bearer(issuer.mint()))
    assert error.reason == "CREDENTIALS_MALFORMED"


async def test_a_bad_token_is_refused_on_a_public_method_too(peer: Peer, issuer: Issuer) -> None:
    error = await peer.refusal("Public", bearer(issuer.mint(audience="stock")))
    assert (error.reason, peer.probe.runs) == ("WRONG_AUDIENCE", 0)


async def test_a_registered_method_without_a_rule_is_closed_even_to_a_good_token(peer: Peer, issuer: Issuer) -> None:
    error = await peer.refusal("NotRuled", bearer(issuer.mint()))
    assert (error.status, error.reason, peer.probe.runs) == ("PERMISSION_DENIED", "METHOD_NOT_GUARDED", 0)


@pytest.mark.parametrize("method", ["NotRegistered", "NeverHeardOf"])
async def test_a_method_that_is_not_registered_stays_unimplemented(peer: Peer, issuer: Issuer, method: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await peer.call(method, bearer(issuer.mint()))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("method", ["StreamUnary", "StreamStream"])
async def test_a_caller_who_streams_nothing_yet_is_refused_at_once(peer: Peer, method: str) -> None:
    shape: Any = peer.channel.stream_unary if method == "StreamUnary" else peer.channel.stream_stream
    call = shape(f"/{SERVICE}/{method}")()  # no request is written, and the stream is left open
    async with asyncio.timeout(5):
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_request_of_a_refused_call_is_not_deserialised(peer: Peer, issuer: Issuer) -> None:
    assert (await peer.refusal("Undecodable")).reason == "CREDENTIALS_MISSING"
    with pytest.raises(grpc.aio.AioRpcError, match="the request was deserialised"):
        await peer.call("Undecodable", bearer(issuer.mint()))


async def test_a_defect_of_the_judge_refuses_the_call_and_keeps_its_text(
    peer: Peer, judge: Judge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("an inner secret")

    monkeypatch.setattr(judge, "judge", fail)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await peer.call("UnaryUnary")
    assert (caught.value.code(), peer.probe.runs) == (grpc.StatusCode.INTERNAL, 0)
    assert "secret" not in str(caught.value)
    assert "failed to judge a call of /probe.v1.ProbeService/UnaryUnary" in caplog.text


# -- confirmed -----------------------------------------------------------------------------------------------------


async def test_a_confirmed_method_runs_once_its_caller_is_confirmed(
    peer: Peer, issuer: Issuer, confirmations: Confirmations
) -> None:
    claims = issuer.claims()
    await peer.call("Confirmed", bearer(issuer.sign(claims)))
    assert [principal.claims for principal in confirmations.asked] == [claims]


@pytest.mark.parametrize("error", [TokenRevoked(), DependencyDown()])
async def test_a_confirmed_method_is_refused_with_what_the_confirmation_says(
    peer: Peer, issuer: Issuer, confirmations: Confirmations, error: IdentityError
) -> None:
    confirmations.error = error
    refusal = await peer.refusal("Confirmed", bearer(issuer.mint()))
    assert (refusal.reason, peer.probe.runs) == (error.reason, 0)


async def test_a_caller_whose_token_is_bad_is_not_even_asked_about(peer: Peer, confirmations: Confirmations) -> None:
    await peer.refusal("Confirmed")
    assert confirmations.asked == []


def test_a_guard_that_cannot_confirm_refuses_to_be_built_for_methods_that_demand_it(judge: Judge) -> None:
    with pytest.raises(ValueError, match=re.escape("/probe.v1.ProbeService/Confirmed")):
        Guard(judge, audience="orders")


# -- opaque bearers ------------------------------------------------------------------------------------------------


class Introspections:
    """What the identity service knows of opaque texts; keeps what it was asked."""

    def __init__(self) -> None:
        self.claims: dict[str, Claims] = {}
        self.asked: list[tuple[str, bool]] = []

    async def __call__(self, raw_token: str, is_anew: bool) -> Claims:
        self.asked.append((raw_token, is_anew))
        if raw_token not in self.claims:
            raise TokenRevoked()
        return self.claims[raw_token]

    def issue(self, kind: Kind, claims: Claims) -> str:
        """A session token or API key that stands for *claims*."""
        raw_token = opaque_text(kind, claims.grant_id)
        self.claims[raw_token] = claims._replace(token_id="", key_id="")
        return raw_token


@pytest.fixture
def introspections() -> Introspections:
    return Introspections()


@pytest.fixture
async def asking_peer(
    judge: Judge, confirmations: Confirmations, introspections: Introspections
) -> AsyncIterator[Peer]:
    async with Peer(Guard(judge, audience="orders", confirm=confirmations, introspect=introspections)) as running:
        yield running


OPAQUE_BEARERS = {Kind.SESSION: BearerKind.SESSION, Kind.API_KEY: BearerKind.API_KEY}


@pytest.mark.parametrize("kind", OPAQUE_BEARERS)
async def test_a_handler_knows_the_account_behind_an_opaque_bearer_as_it_knows_that_of_a_token(
    asking_peer: Peer, issuer: Issuer, introspections: Introspections, kind: Kind
) -> None:
    claims = issuer.claims(scopes=("orders.read",), authentication_time=1_899_999_999)
    [by_token, by_text] = [
        await asking_peer.principal(bearer(raw_token))
        for raw_token in (issuer.sign(claims), introspections.issue(kind, claims))
    ]
    assert by_text.kind is OPAQUE_BEARERS[kind]
    for name in ("subject", "client_id", "grant_id", "audience", "scopes", "roles", "generation", "policy_version"):
        assert getattr(by_text, name) == getattr(by_token, name)
    assert by_text.authentication_time == by_token.authentication_time
    assert (by_token.token_id, by_text.token_id) == (claims.token_id, "")


@pytest.mark.usefixtures("revocations")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"grant_id": REVOKED_GRANT}, "TOKEN_REVOKED"),
        ({"account_id": CHANGED_ACCOUNT}, "TOKEN_OUTDATED"),
        ({"audience": "stock"}, "WRONG_AUDIENCE"),
        ({"lifetime_seconds": 0}, "TOKEN_EXPIRED"),
        ({"roles": ("cook",)}, "PERMISSION_MISSING"),
    ],
)
async def test_what_the_service_says_of_an_opaque_bearer_is_judged_like_any_token(
    asking_peer: Peer, issuer: Issuer, introspections: Introspections, changes: dict[str, Any], reason: str
) -> None:
    raw_token = introspections.issue(Kind.SESSION, issuer.claims(**changes))
    error = await asking_peer.refusal("UnaryUnary", bearer(raw_token))
    assert (error.reason, asking_peer.probe.runs) == (reason, 0)


@pytest.mark.requirement("R24")
@pytest.mark.parametrize(
    "raw_token",
    [opaque_text(Kind.REFRESH), opaque_text(Kind.CLIENT_SECRET), opaque_text(Kind.SESSION)[:-1] + "-", "ids_", "idk_x"],
)
async def test_a_text_that_can_be_no_bearer_is_refused_without_asking(
    asking_peer: Peer, introspections: Introspections, raw_token: str
) -> None:
    assert (await asking_peer.refusal("UnaryUnary", bearer(raw_token))).reason == "TOKEN_MALFORMED"
    assert introspections.asked == []


async def test_a_confirmed_method_has_an_opaque_bearer_introspected_anew(
    asking_peer: Peer, issuer: Issuer, introspections: Introspections, confirmations: Confirmations
) -> None:
    raw_token = introspections.issue(Kind.API_KEY, issuer.claims())
    await asking_peer.call("UnaryUnary", bearer(raw_token))
    await asking_peer.call("Confirmed", bearer(raw_token))
    assert introspections.asked == [(raw_token, False), (raw_token, True)]
    assert confirmations.asked == []  # the introspection was the confirmation


async def test_a_guard_that_cannot_introspect_refuses_opaque_bearers(peer: Peer) -> None:
    assert (await peer.refusal("UnaryUnary", bearer(opaque_text(Kind.SESSION)))).reason == "TOKEN_MALFORMED"


async def test_a_stream_ends_when_the_session_behind_it_is_revoked(
    asking_peer: Peer, issuer: Issuer, introspections: Introspections, trust: TrustState, clock: FixedClock
) -> None:
    claims = issuer.claims()
    call = asking_peer.open("Watch", bearer(introspections.issue(Kind.SESSION, claims)))
    assert await call.read() == b"watching"
    trust.apply(1, 1, [Entry(EntryKind.GRANT, claims.grant_id, int(clock.now()) + 1_200)])
    assert await _end_of(call) == "TOKEN_REVOKED"


# -- long streams --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["Watch", "WatchByWriting"])
async def test_a_stream_ends_when_its_token_expires(peer: Peer, issuer: Issuer, clock: FixedClock, method: str) -> None:
    call = peer.open(method, bearer(issuer.mint()))
    assert await call.read() == b"watching"
    clock.advance(600 + 5)  # the lifetime and the leeway
    assert await _end_of(call) == "TOKEN_EXPIRED"
    assert peer.probe.cleaned_up.is_set()


@pytest.mark.parametrize("method", ["Watch", "WatchByWriting"])
async def test_a_stream_ends_when_its_grant_is_revoked(
    peer: Peer, issuer: Issuer, trust: TrustState, clock: FixedClock, method: str
) -> None:
    claims = issuer.claims()
    call = peer.open(method, bearer(issuer.sign(claims)))
    bystander = peer.open(method, bearer(issuer.mint()))
    assert (await call.read(), await bystander.read()) == (b"watching", b"watching")
    trust.apply(1, 1, [Entry(EntryKind.GRANT, claims.grant_id, int(clock.now()) + 1_200)])
    assert await _end_of(call) == "TOKEN_REVOKED"
    assert peer.probe.cleaned_up.is_set()
    assert not bystander.done()
    bystander.cancel()


async def test_a_stream_that_its_caller_leaves_is_cleaned_up(peer: Peer, issuer: Issuer) -> None:
    call = peer.open("Watch", bearer(issuer.mint()))
    await call.read()
    call.cancel()
    async with asyncio.timeout(5):
        await peer.probe.cleaned_up.wait()


async def _end_of(call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> str:
    async with asyncio.timeout(5):
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
        return str(await call.details()).partition(":")[0]
