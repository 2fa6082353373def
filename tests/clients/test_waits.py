"""Threads that wait for the identity service: few for long, the others briefly, and never all of them."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from identity_client import aio
from identity_client.errors import DependencyDown
from identity_client.sync.identity import Identity
from identity_client.sync.waits import MAXIMUM_PATIENT, PAUSE_SECONDS, SHORT_SECONDS, Waits
from identity_client.tokens.opaque import Kind
from tests.clients.fake_identity import CLIENT_ID, CLIENT_SECRET, FakeIdentity
from tests.clients.issuer import FixedClock, bearer, opaque_text
from tests.clients.shapes import TABLE, ShapePeer, until

PATIENT_SECONDS = 15.0


@pytest.fixture
def waits(clock: FixedClock) -> Waits:
    return Waits(clock)


def wait(waits: Waits, is_in_vain: bool = False) -> float:
    with waits.waiting(PATIENT_SECONDS) as seconds:
        if is_in_vain:
            raise DependencyDown()
        return seconds


def test_a_few_wait_long_and_the_others_briefly(waits: Waits) -> None:
    with ExitStack() as stack:
        seconds = [stack.enter_context(waits.waiting(PATIENT_SECONDS)) for _ in range(3 * MAXIMUM_PATIENT)]
    assert seconds == [PATIENT_SECONDS] * MAXIMUM_PATIENT + [SHORT_SECONDS] * 2 * MAXIMUM_PATIENT
    assert wait(waits) == PATIENT_SECONDS


def test_when_one_has_waited_in_vain_no_more_than_the_few_wait_for_a_while(waits: Waits, clock: FixedClock) -> None:
    with ExitStack() as stack:
        for _ in range(MAXIMUM_PATIENT):
            stack.enter_context(waits.waiting(PATIENT_SECONDS))
        with pytest.raises(DependencyDown):
            wait(waits, is_in_vain=True)
        with pytest.raises(DependencyDown) as caught:
            wait(waits)
        assert "slow" in str(caught.value)
        assert caught.value.retry_after_seconds == PAUSE_SECONDS
        clock.advance(PAUSE_SECONDS)
        assert wait(waits) == SHORT_SECONDS
        with pytest.raises(DependencyDown):
            wait(waits, is_in_vain=True)
    assert wait(waits) == PATIENT_SECONDS


def test_that_one_of_the_few_waits_in_vain_stops_nobody(waits: Waits) -> None:
    with pytest.raises(DependencyDown):
        wait(waits, is_in_vain=True)
    with ExitStack() as stack:
        for _ in range(MAXIMUM_PATIENT):
            stack.enter_context(waits.waiting(PATIENT_SECONDS))
        assert wait(waits) == SHORT_SECONDS


async def test_made_up_session_tokens_do_not_keep_the_threads_while_the_service_is_slow(clock: FixedClock) -> None:
    fake = FakeIdentity(clock)
    await fake.start()
    identity = Identity(aio.Connection(fake.address, CLIENT_ID, CLIENT_SECRET), clock=clock)
    await asyncio.to_thread(identity.__enter__)
    guard = identity.guard("shapes", rules=TABLE)
    async with ShapePeer(guard, threads=2 * MAXIMUM_PATIENT) as peer:
        known = bearer(fake.open_grant(Kind.SESSION, scopes=("read",)))
        await peer.call("UnaryUnary", known)
        fake.answers_introspection.clear()
        forged = [
            asyncio.ensure_future(peer.refusal("UnaryUnary", bearer(opaque_text(Kind.SESSION)))) for _ in range(40)
        ]
        await until(lambda: fake.calls["Introspect"] > MAXIMUM_PATIENT)
        for _ in range(10):
            await peer.call("UnaryUnary", bearer(fake.issuer.mint(scopes=("read",))))
            await peer.call("UnaryUnary", known)
        await until(lambda: sum(task.done() for task in forged) == 40 - MAXIMUM_PATIENT)
        assert fake.calls["Introspect"] <= 1 + 2 * MAXIMUM_PATIENT
        fake.answers_introspection.set()
        reasons = [(await task).reason for task in forged]
        assert reasons.count("DEPENDENCY_DOWN") == 40 - MAXIMUM_PATIENT
        assert reasons.count("TOKEN_REVOKED") == MAXIMUM_PATIENT
        assert (await peer.refusal("UnaryUnary", bearer(opaque_text(Kind.SESSION)))).reason == "TOKEN_REVOKED"
    await asyncio.to_thread(identity.__exit__, None, None, None)
    await fake.stop()
