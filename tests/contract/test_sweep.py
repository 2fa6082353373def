"""Sweeping: a bounded part at a time, only what has been dead for a day, and nothing that came back to life."""

from __future__ import annotations

import pytest

from identity.domain.grants import CredentialTerms, GrantKind, UsedAssertion
from identity.domain.values import EndReason
from identity.storage.database import Stores
from identity.storage.sql import sweep as sql_sweep
from tests.clients.issuer import FixedClock
from tests.contract.builders import (
    ACT,
    LIFETIME,
    TERMS,
    count_rows,
    create_credential,
    create_service,
    create_user,
    entries,
    log_in,
    use_secret,
)
from tests.databases import execute, query

DAY = 86_400


def ids(url: str) -> set[str]:
    return {grant_id for (grant_id,) in query(url, "SELECT grant_id FROM grants")}


async def sweep_all(stores: Stores, limit: int = 1_000) -> int:
    """Sweep once through; -> in how many runs."""
    after, runs = await stores.sweeper.sweep("", limit), 1
    while after:
        after, runs = await stores.sweeper.sweep(after, limit), runs + 1
    return runs


@pytest.mark.requirement("R12")
async def test_what_has_been_dead_for_a_day_goes_and_not_a_second_before(
    stores: Stores, url: str, clock: FixedClock
) -> None:
    carol = await create_user(stores)
    service, secret_id = await create_service(stores)
    ended = (await log_in(stores, carol)).grant_id
    await stores.grants.end(ended, EndReason.REVOKED, "", ACT)
    terms = CredentialTerms(expire_time=int(clock.now()) + TERMS.idle_lifetime)
    key = await create_credential(stores, service, GrantKind.API_KEY, terms=terms)
    expiring = (await log_in(stores, carol)).grant_id
    clock.advance(DAY - 1)
    await sweep_all(stores)
    assert ids(url) == {ended, expiring, key.grant_id, secret_id}
    clock.advance(1)
    await sweep_all(stores)
    assert ids(url) == {expiring, key.grant_id, secret_id}
    clock.advance(TERMS.idle_lifetime - 1)
    await sweep_all(stores)
    assert ids(url) == {expiring, key.grant_id, secret_id}
    clock.advance(1)
    await sweep_all(stores)
    assert ids(url) == {secret_id}
    clock.advance(1_000 * DAY)
    await sweep_all(stores)
    assert ids(url) == {secret_id}  # a credential without an end stays


@pytest.mark.requirement("R12")
async def test_one_run_looks_at_no_more_than_its_share(stores: Stores, url: str, clock: FixedClock) -> None:
    carol = await create_user(stores)
    for _ in range(25):
        session = await log_in(stores, carol)
        await stores.grants.end(session.grant_id, EndReason.REVOKED, "", ACT)
        live = await log_in(stores, carol)
    clock.advance(DAY + TERMS.absolute_lifetime)
    sizes = [count_rows(url, "grants")]
    after = ""
    while after or len(sizes) == 1:
        after = await stores.sweeper.sweep(after, 10)
        sizes.append(count_rows(url, "grants"))
    assert live
    assert sizes == [50, 40, 30, 20, 10, 0, 0]
    assert await sweep_all(stores, 10) == 1


async def test_a_walk_passes_over_the_living(stores: Stores, url: str, clock: FixedClock) -> None:
    service, _ = await create_service(stores)
    living = {(await create_credential(stores, service, GrantKind.API_KEY)).grant_id for _ in range(30)}
    dead = await create_credential(stores, service, GrantKind.API_KEY)
    await stores.grants.end(dead.grant_id, EndReason.REVOKED, "", ACT)
    clock.advance(DAY)
    assert await sweep_all(stores, 4) == 9
    assert living < ids(url)
    assert dead.grant_id not in ids(url)


@pytest.mark.requirement("R12")
async def test_a_session_that_came_back_between_look_and_removal_stays(
    stores: Stores, url: str, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a clock that was set back: the removal asks again, by the time and the row of its own transaction."""
    carol = await create_user(stores)
    session, gone = [(await log_in(stores, carol)).grant_id for _ in range(2)]
    clock.advance(DAY + TERMS.idle_lifetime)
    look = sql_sweep._look

    def look_then_use(connection: object, moment: object, after: str, limit: int) -> tuple[str, list[str]]:
        found = look(connection, moment, after, limit)  # type: ignore[arg-type]
        execute(url, f"UPDATE grants SET expire_time = expire_time + 999999 WHERE grant_id = '{session}'")
        return found

    monkeypatch.setattr(sql_sweep, "_look", look_then_use)
    await stores.sweeper.sweep("", 10)
    assert ids(url) == {session}
    assert gone != session


async def test_revocations_and_assertions_go_once_nothing_can_be_refused_by_them(
    stores: Stores, url: str, clock: FixedClock
) -> None:
    carol, (service, _) = await create_user(stores), await create_service(stores)
    sessions = [await log_in(stores, carol) for _ in range(5)]
    for session in sessions:
        await stores.grants.end(session.grant_id, EndReason.REVOKED, "", ACT)
    key = await create_credential(stores, service, GrantKind.PUBLIC_KEY, lookup_name="k" * 43)
    for number in range(5):
        used = UsedAssertion(bytes([number]) * 32, int(clock.now()) + 65)
        await use_secret(stores, key.grant_id, assertion=used)
    clock.advance(64)
    await sweep_all(stores)
    assert count_rows(url, "used_assertions") == 5
    clock.advance(1)
    await stores.sweeper.sweep("", 3)
    assert count_rows(url, "used_assertions") == 2
    await stores.sweeper.sweep("", 3)
    assert count_rows(url, "used_assertions") == 0
    clock.advance(LIFETIME + 630 - 65 - 1)
    await sweep_all(stores)
    assert len(await entries(stores)) == 5
    clock.advance(1)
    await stores.sweeper.sweep("", 3)
    assert len(await entries(stores)) == 2
    await stores.sweeper.sweep("", 3)
    assert await entries(stores) == []


async def test_a_dead_session_still_answers_for_a_day(stores: Stores, clock: FixedClock) -> None:
    session = await log_in(stores, await create_user(stores))
    await stores.grants.end(session.grant_id, EndReason.REVOKED, "", ACT)
    clock.advance(DAY - 1)
    await sweep_all(stores)
    assert await stores.sessions.find(session.grant_id) is not None
    clock.advance(1)
    await sweep_all(stores)
    assert await stores.sessions.find(session.grant_id) is None
