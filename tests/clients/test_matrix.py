"""Every server x shape x credential: who gets in, who does not, and that nothing of a refused call is even read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from identity_client import aio
from identity_client.access.judge import Judge
from identity_client.principal import Principal
from identity_client.sync.guard import Guard as ThreadedGuard
from identity_client.tokens.verifier import Verifier
from identity_client.trust.entries import Entry, EntryKind
from identity_client.trust.state import TrustState
from tests.clients.issuer import FixedClock, Issuer, bearer
from tests.clients.shapes import COLUMNS, LONG, RULES, SHAPES, ShapePeer, end_of, until

REVOKED_GRANT = "AAAAAAAAAAAAAAAAAAAAAA"
CHANGED_ACCOUNT = "BBBBBBBBBBBBBBBBBBBBBA"
GOOD: dict[str, Any] = {"scopes": ("read",)}

REFUSALS: dict[str, tuple[str, Callable[[Issuer], object]]] = {
    "none": ("CREDENTIALS_MISSING", lambda issuer: ()),
    "bad": ("TOKEN_MALFORMED", lambda issuer: bearer("no.token.at-all")),
    "expired": (
        "TOKEN_EXPIRED",
        lambda issuer: bearer(issuer.mint(**GOOD, lifetime_seconds=-5, issue_time=1_899_999_400)),
    ),
    "revoked": ("TOKEN_REVOKED", lambda issuer: bearer(issuer.mint(**GOOD, grant_id=REVOKED_GRANT))),
    "outdated": ("TOKEN_OUTDATED", lambda issuer: bearer(issuer.mint(**GOOD, account_id=CHANGED_ACCOUNT))),
    "wrong audience": ("WRONG_AUDIENCE", lambda issuer: bearer(issuer.mint(**GOOD, audience="stock"))),
    "low scope": ("PERMISSION_MISSING", lambda issuer: bearer(issuer.mint(scopes=("write",)))),
}


@pytest.fixture
def judge(trust: TrustState, clock: FixedClock) -> Judge:
    expire_time = int(clock.now()) + 1_200
    trust.apply(1, 1, [Entry(EntryKind.GRANT, REVOKED_GRANT, expire_time)])
    trust.apply(2, 2, [Entry(EntryKind.ACCOUNT, CHANGED_ACCOUNT, expire_time, minimum=2)])
    verifier = Verifier(audiences=frozenset({"shapes", "internal"}), trust=trust, clock=clock)
    return Judge(rules=RULES, verifier=verifier, trust=trust, clock=clock)


@pytest.fixture(params=COLUMNS)
async def peer(request: pytest.FixtureRequest, judge: Judge) -> AsyncIterator[ShapePeer]:
    guard: aio.Guard | ThreadedGuard
    if request.param == "threaded":
        guard = ThreadedGuard(judge, audience="shapes", confirm=_confirm)
    else:
        guard = aio.Guard(judge, audience="shapes", confirm=_confirm_async)
    # Few threads: whatever a call left on one, the next call would find.
    async with ShapePeer(guard, is_sync=request.param == "aio, sync handlers", threads=4) as running:
        yield running


def _confirm(_: Principal) -> None:
    """Everyone is live."""


async def _confirm_async(_: Principal) -> None:
    """Everyone is live."""


@pytest.mark.requirement("R70")
@pytest.mark.requirement("R23")
@pytest.mark.parametrize("method", SHAPES)
@pytest.mark.parametrize("credential", REFUSALS)
async def test_a_refused_call_runs_no_handler_and_no_message_of_it_is_read(
    peer: ShapePeer, issuer: Issuer, method: str, credential: str
) -> None:
    reason, make = REFUSALS[credential]
    error = await peer.refusal(method, make(issuer))
    assert error.reason == reason
    assert error.status == ("PERMISSION_DENIED" if reason == "PERMISSION_MISSING" else "UNAUTHENTICATED")
    assert (error.refused_by, error.refused_audience) == ("guard", "shapes")
    assert (peer.handlers.runs, peer.handlers.consumed) == (0, 0)


@pytest.mark.requirement("R70")
@pytest.mark.parametrize("method", SHAPES)
async def test_a_good_token_is_admitted_and_its_handler_knows_the_caller(
    peer: ShapePeer, issuer: Issuer, method: str
) -> None:
    claims = issuer.claims(**GOOD)
    assert set(await peer.call(method, bearer(issuer.sign(claims)))) == {claims.account_id.encode()}
    assert peer.handlers.runs == 1


@pytest.mark.requirement("R70")
async def test_a_method_without_a_rule_is_closed_and_one_that_is_not_registered_is_unimplemented(
    peer: ShapePeer, issuer: Issuer
) -> None:
    metadata = bearer(issuer.mint(**GOOD))
    assert (await peer.refusal("NotRuled", metadata)).reason == "METHOD_NOT_GUARDED"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await peer.call("NeverHeardOf", metadata)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_10000_interleaved_calls_of_different_users_see_their_own_principal_only(
    peer: ShapePeer, issuer: Issuer
) -> None:
    users = [issuer.claims(**GOOD) for _ in range(50)]
    metadata = {user.account_id: bearer(issuer.sign(user)) for user in users}
    calls = iter(range(10_000 // len(COLUMNS)))

    async def work() -> set[bool]:
        seen = set()
        for number in calls:
            if number % 5 == 4:
                seen.add(await peer.call("Public") == [b"nobody"])
                continue
            user = users[number % len(users)]
            answers = await peer.call(SHAPES[number % 5], metadata[user.account_id])
            seen.add(set(answers) == {user.account_id.encode()})
        return seen

    assert set().union(*await asyncio.gather(*(work() for _ in range(32)))) == {True}


# -- long calls ----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R72")
@pytest.mark.parametrize("method", LONG)
@pytest.mark.parametrize("cause", ["expired", "revoked"])
async def test_a_long_call_ends_with_the_reason_when_its_token_no_longer_holds(
    peer: ShapePeer, issuer: Issuer, trust: TrustState, clock: FixedClock, method: str, cause: str
) -> None:
    claims = issuer.claims(**GOOD)
    call = await peer.begin(method, bearer(issuer.sign(claims)))
    bystander = await peer.begin(method, bearer(issuer.mint(**GOOD, lifetime_seconds=3_000)))
    if cause == "expired":
        clock.advance(600 + 5)  # the lifetime and the leeway
    else:
        trust.apply(3, 3, [Entry(EntryKind.GRANT, claims.grant_id, int(clock.now()) + 1_200)])
    trust.touch(0)
    assert await end_of(call) == f"TOKEN_{cause.upper()}"
    peer.handlers.released.set()
    await until(lambda: peer.handlers.cleaned_up >= 1)
    assert peer.handlers.ended_regularly == 0
    if method != "LongUnaryStream":
        assert not bystander.done()
    bystander.cancel()
