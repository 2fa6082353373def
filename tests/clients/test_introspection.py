"""Opaque bearers at a peer: asked about once, remembered briefly, dead as soon as the trust state says so."""

from __future__ import annotations

import asyncio

import pytest

from identity_client.aio.introspection import MAXIMUM_ANSWERS, MAXIMUM_FLIGHTS, Introspections
from identity_client.errors import DependencyDown, IdentityError, Overloaded, TokenRevoked
from identity_client.tokens.claims import Claims
from identity_client.tokens.opaque import Kind
from identity_client.trust.entries import Entry, EntryKind
from identity_client.trust.state import TrustState
from tests.clients.issuer import FixedClock, Issuer, new_id, opaque_text
from tests.clients.shapes import until


class Service:
    """An identity service that answers when it is told to."""

    def __init__(self, issuer: Issuer) -> None:
        self.claims: Claims | None = issuer.claims()._replace(token_id="", key_id="")
        self.error: IdentityError | None = None
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def look(self, raw_token: str) -> Claims | None:
        self.asked.append(raw_token)
        answer = self.claims  # as of the question
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return answer


@pytest.fixture
def service(issuer: Issuer) -> Service:
    return Service(issuer)


@pytest.fixture
def introspections(service: Service, trust: TrustState, clock: FixedClock) -> Introspections:
    return Introspections(service.look, trust=trust, clock=clock)


TEXT = opaque_text(Kind.SESSION)


async def test_an_answer_is_remembered_for_10_seconds(
    introspections: Introspections, service: Service, clock: FixedClock
) -> None:
    for _ in range(3):
        assert await introspections.introspect(TEXT, False) == service.claims
    clock.advance(9.9)
    await introspections.introspect(TEXT, False)
    assert len(service.asked) == 1
    clock.advance(0.1)
    await introspections.introspect(TEXT, False)
    assert len(service.asked) == 2


async def test_an_answer_is_as_old_as_its_question(
    introspections: Introspections, service: Service, clock: FixedClock
) -> None:
    service.may_answer.clear()
    first = asyncio.ensure_future(introspections.introspect(TEXT, False))
    await until(lambda: bool(service.asked))
    clock.advance(10)
    service.may_answer.set()
    await first
    await introspections.introspect(TEXT, False)
    assert len(service.asked) == 2


async def test_an_answer_is_not_remembered_beyond_its_own_expiry(
    introspections: Introspections, service: Service, issuer: Issuer, clock: FixedClock
) -> None:
    service.claims = issuer.claims(lifetime_seconds=3)
    await introspections.introspect(TEXT, False)
    clock.advance(3)
    await introspections.introspect(TEXT, False)
    assert len(service.asked) == 2


async def test_callers_at_once_share_one_look_up_and_one_who_leaves_does_not_end_it(
    introspections: Introspections, service: Service
) -> None:
    service.may_answer.clear()
    callers = [asyncio.ensure_future(introspections.introspect(TEXT, False)) for _ in range(10)]
    await until(lambda: bool(service.asked))
    callers[0].cancel()
    await until(callers[0].done)
    service.may_answer.set()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert (answers[1:], service.asked) == ([service.claims] * 9, [TEXT])


async def test_a_look_up_that_all_its_callers_left_fails_unheard(
    introspections: Introspections, service: Service
) -> None:
    service.may_answer.clear()
    service.error = DependencyDown()
    caller = asyncio.ensure_future(introspections.introspect(TEXT, False))
    await until(lambda: bool(service.asked))
    caller.cancel()
    service.may_answer.set()
    await asyncio.gather(caller, return_exceptions=True)
    with pytest.raises(DependencyDown):
        await introspections.introspect(TEXT, False)


async def test_a_confirmed_call_is_asked_anew_and_joins_no_look_up_that_began_before_it(
    introspections: Introspections, service: Service
) -> None:
    await introspections.introspect(TEXT, False)
    service.may_answer.clear()
    other = opaque_text(Kind.SESSION)
    callers = [
        asyncio.ensure_future(introspections.introspect(text, is_anew))
        for text, is_anew in [(TEXT, True), (other, False), (other, True)]
    ]
    await until(lambda: len(service.asked) == 4)
    service.may_answer.set()
    await asyncio.gather(*callers)
    assert sorted(service.asked) == sorted([TEXT, TEXT, other, other])


async def test_a_late_answer_to_an_old_question_does_not_replace_a_younger_one(
    introspections: Introspections, service: Service, clock: FixedClock
) -> None:
    service.may_answer.clear()
    early = asyncio.ensure_future(introspections.introspect(TEXT, False))
    await until(lambda: bool(service.asked))
    service.claims, late_gate, service.may_answer = None, service.may_answer, asyncio.Event()
    service.may_answer.set()
    clock.advance(0.5)
    with pytest.raises(TokenRevoked):
        await introspections.introspect(TEXT, True)
    late_gate.set()
    await early
    with pytest.raises(TokenRevoked):
        introspections.find(TEXT)


async def test_a_flood_of_one_bad_text_is_asked_about_once_a_second(
    introspections: Introspections, service: Service, clock: FixedClock
) -> None:
    service.claims = None
    for _ in range(100):
        with pytest.raises(TokenRevoked, match="not active for this service"):
            await introspections.introspect(TEXT, False)
    assert len(service.asked) == 1
    clock.advance(1)
    with pytest.raises(TokenRevoked):
        await introspections.introspect(TEXT, False)
    assert len(service.asked) == 2


async def test_a_revoked_grant_is_dead_at_once_without_asking(
    introspections: Introspections, service: Service, trust: TrustState, clock: FixedClock
) -> None:
    claims = await introspections.introspect(TEXT, False)
    trust.apply(1, 1, [Entry(EntryKind.GRANT, claims.grant_id, int(clock.now()) + 1_200)])
    with pytest.raises(TokenRevoked):
        await introspections.introspect(TEXT, False)
    assert len(service.asked) == 1


async def test_revoked_tokens_and_keys_do_not_concern_an_opaque_text(
    introspections: Introspections, trust: TrustState, clock: FixedClock
) -> None:
    expire_time = int(clock.now()) + 1_200
    trust.apply(1, 2, [Entry(EntryKind.TOKEN, new_id(), expire_time), Entry(EntryKind.KEY, "k" * 43, expire_time)])
    for _ in range(2):
        assert (await introspections.introspect(TEXT, False)).token_id == ""


@pytest.mark.parametrize("kind", [EntryKind.ACCOUNT, EntryKind.ROLE])
async def test_a_changed_account_or_role_is_looked_up_again(
    introspections: Introspections, service: Service, trust: TrustState, clock: FixedClock, kind: EntryKind
) -> None:
    claims = await introspections.introspect(TEXT, False)
    name = claims.account_id if kind is EntryKind.ACCOUNT else "clerk"
    trust.apply(1, 1, [Entry(kind, name, int(clock.now()) + 1_200, minimum=2)])
    service.claims = claims._replace(generation=2, policy_version=2, roles=("cook",))
    assert (await introspections.introspect(TEXT, False)).roles == ("cook",)
    assert len(service.asked) == 2


async def test_while_the_service_is_down_what_is_remembered_is_good_for_its_time_and_then_unavailable(
    introspections: Introspections, service: Service, clock: FixedClock
) -> None:
    await introspections.introspect(TEXT, False)
    service.error = DependencyDown()
    clock.advance(9.9)
    await introspections.introspect(TEXT, False)
    clock.advance(0.1)
    with pytest.raises(DependencyDown):
        await introspections.introspect(TEXT, False)


async def test_what_is_remembered_is_bounded_and_bad_texts_do_not_drive_out_good_ones(
    introspections: Introspections, service: Service
) -> None:
    await introspections.introspect(TEXT, False)
    service.claims = None
    for number in range(MAXIMUM_ANSWERS + 1):
        with pytest.raises(TokenRevoked):
            await introspections.introspect(f"ids_{number}", False)
    assert introspections.find(TEXT) is not None
    assert introspections.find("ids_0") is None
    with pytest.raises(TokenRevoked):
        introspections.find("ids_1")


async def test_look_ups_under_way_are_bounded(introspections: Introspections, service: Service) -> None:
    service.may_answer.clear()
    callers = [
        asyncio.ensure_future(introspections.introspect(f"ids_{number}", False)) for number in range(MAXIMUM_FLIGHTS)
    ]
    await until(lambda: len(service.asked) == MAXIMUM_FLIGHTS)
    with pytest.raises(Overloaded):
        await introspections.introspect(TEXT, False)
    service.may_answer.set()
    await asyncio.gather(*callers)
    await introspections.introspect(TEXT, False)


async def test_no_text_is_kept(introspections: Introspections) -> None:
    await introspections.introspect(TEXT, False)
    assert TEXT not in repr(vars(introspections))
