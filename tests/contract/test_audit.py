"""The audit log on the disk: what is written stays as it was, or shows; what is read is right while it grows."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from identity.domain.audit_events import OK, REFUSED, AuditEvent, AuditFilter
from identity.domain.audit_seals import ChainBroken, SealKey
from identity.domain.grants import SessionTerms
from identity.domain.sealer import SEAL_EVENTS, Sealer
from identity.domain.values import Act, EndReason, RoleChange
from identity.storage import inspection
from identity.storage.database import Stores, open_stores
from identity.storage.sql import audit as sql_audit
from identity.storage.sql.audit import erase_audit
from identity.storage.sql.audit_check import AuditReport, check_audit
from identity_client.errors import DependencyDown
from tests.clients.issuer import FixedClock
from tests.contract.builders import (
    ACT,
    act_of,
    admit_all,
    by_id,
    create_service,
    create_user,
    log_in,
    new_session,
    use_secret,
)
from tests.databases import execute, is_postgres, path_of, query

KEY = SealKey(bytes(32))
EVERYTHING = AuditFilter()


@pytest.fixture
def sealer(stores: Stores, clock: FixedClock) -> Sealer:
    return Sealer(stores.audit_seals, KEY, retention_days=0, clock=clock)


async def checked(url: str, key: SealKey = KEY) -> AuditReport:
    return await inspection.look(url, lambda connection: check_audit(connection, key))


def tamper(url: str, *statements: str) -> None:
    for statement in statements:
        assert execute(url, statement) != 0, statement


async def add_events(stores: Stores, count: int) -> None:
    """Ordinary ones, through the front door."""
    for number in range(count):
        await stores.accounts.note_challenge(f"{number:022}", ACT)


async def three_seals(stores: Stores, sealer: Sealer) -> None:
    """Events 1-10 under seal 1 (three of them the fixture's), 11-20 under seal 2, 21-30 under seal 3."""
    for count in (7, 10, 10):
        await add_events(stores, count)
        await sealer.seal()


async def all_events(stores: Stores, wanted: AuditFilter = EVERYTHING, limit: int = 1_000) -> list[AuditEvent]:
    """Every page, the newest event first."""
    events, before = [], None
    while True:
        page = await stores.audit.list_page(wanted, before, limit)
        assert len(page.events) <= limit
        events += page.events
        if page.next_id is None:
            return events
        before = page.next_id


# -- seals -----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R62")
async def test_an_untouched_log_has_nothing_wrong(stores: Stores, sealer: Sealer, url: str) -> None:
    await three_seals(stores, sealer)
    await add_events(stores, 2)
    report = await checked(url)
    assert report.problems == []
    assert report.newest is not None
    assert (report.newest.seal_number, report.newest.last_event_id, report.unsealed_count) == (3, 30, 2)


CUT_OFF = ("DELETE FROM audit_events WHERE event_id > 20", "DELETE FROM audit_seals WHERE seal_number = 3")
NUMBERED_BACK = "UPDATE sqlite_sequence SET seq = 20 WHERE name = 'audit_events'"
NUMBERED_BACK_IN_POSTGRES = "SELECT setval(pg_get_serial_sequence('audit_events', 'event_id'), 20)"
TAMPERINGS = {
    "a changed event": (
        ["UPDATE audit_events SET outcome = 'ok ' WHERE event_id = 15"],
        ["seal 2 (events 11-20): an event was changed, or events were exchanged"],
    ),
    "a changed time": (
        ["UPDATE audit_events SET time_ms = time_ms - 1 WHERE event_id = 21"],
        ["seal 3 (events 21-30): an event was changed, or events were exchanged"],
    ),
    "an actor taken out": (
        ["UPDATE audit_events SET account_id = NULL WHERE event_id = 10"],
        ["seal 1 (events 1-10): an event was changed, or events were exchanged"],
    ),
    "a removed event": (
        ["DELETE FROM audit_events WHERE event_id = 15"],
        ["seal 2 (events 11-20): 1 of 10 events were removed"],
    ),
    "exchanged events": (
        [
            "UPDATE audit_events SET event_id = -event_id WHERE event_id = 12",
            "UPDATE audit_events SET event_id = 12 WHERE event_id = 13",
            "UPDATE audit_events SET event_id = 13 WHERE event_id = -12",
            "DELETE FROM audit_personal WHERE event_id IN (12, 13)",
        ],
        ["seal 2 (events 11-20): an event was changed, or events were exchanged"],
    ),
    "an event inserted into a range": (
        [
            "DELETE FROM audit_events WHERE event_id = 20",
            "INSERT INTO audit_events SELECT 20, time_ms, action, outcome, account_id, grant_id, caller_account_id, "
            "caller_grant_id, subject, request_id, personal_hash FROM audit_events WHERE event_id = 19",
            "DELETE FROM audit_personal WHERE event_id = 20",
        ],
        ["seal 2 (events 11-20): an event was changed, or events were exchanged"],
    ),
    "an event inserted before the first": (
        [
            "INSERT INTO audit_events SELECT 0, time_ms, action, outcome, account_id, grant_id, caller_account_id, "
            "caller_grant_id, subject, request_id, personal_hash FROM audit_events WHERE event_id = 1",
        ],
        ["1 events were inserted before the first"],
    ),
    "a removed seal": (
        ["DELETE FROM audit_seals WHERE seal_number = 2"],
        ["seals 2-2 (events 11-20) were removed"],
    ),
    "a removed range with its seal": (
        ["DELETE FROM audit_seals WHERE seal_number = 1", "DELETE FROM audit_events WHERE event_id <= 10"],
        ["seals 1-1 (events 1-10) were removed"],
    ),
    "a forged seal": (
        [
            "DELETE FROM audit_events WHERE event_id = 20",
            "UPDATE audit_seals SET event_count = 9 WHERE seal_number = 2",
        ],
        ["seal 2 (events 11-20) is forged or was changed"],
    ),
    "the end cut off": (
        [*CUT_OFF],
        [
            "seals 3-3 were removed: the end of the log was cut off",
            "after the last seal (events 21-30): 10 events were removed",
        ],
    ),
    "the end cut off and the numbering set back": (
        [*CUT_OFF, NUMBERED_BACK],
        ["seals 3-3 were removed: the end of the log was cut off"],
    ),
    "the end cut off and the head forged": (
        [*CUT_OFF, NUMBERED_BACK, "UPDATE audit_head SET seal_number = 2"],
        ["the head of the seals is forged"],
    ),
    "the head removed": (["DELETE FROM audit_head"], ["the head of the seals is missing"]),
    "events removed as if for their age": (
        ["DELETE FROM audit_events WHERE event_id <= 10", "UPDATE audit_head SET removed_through = 1"],
        ["the head of the seals is forged", "seal 1 (events 1-10): 10 of 10 events were removed"],
    ),
    "a changed note": (
        ["UPDATE audit_personal SET note = 'harmless' WHERE event_id = 14"],
        ["event 14: its origin, user agent, note or name hash was changed"],
    ),
    "the numbering set back": (
        [NUMBERED_BACK],
        ["the numbering of events was set back from 30 to 20"],
    ),
}


@pytest.mark.requirement("R62")
@pytest.mark.parametrize("what", TAMPERINGS)
async def test_whatever_is_tampered_with_is_found_and_named(
    stores: Stores, sealer: Sealer, url: str, what: str
) -> None:
    await three_seals(stores, sealer)
    statements, problems = TAMPERINGS[what]
    if is_postgres(url):  # whose numbers may have gaps
        statements = [NUMBERED_BACK_IN_POSTGRES if each == NUMBERED_BACK else each for each in statements]
        problems = [problem for problem in problems if "after the last seal" not in problem]
    tamper(url, *statements)
    assert (await checked(url)).problems == problems


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_genuine_seal_from_a_copy_of_the_database_does_not_fit(
    stores: Stores, sealer: Sealer, url: str, clock: FixedClock, tmp_path: Path
) -> None:
    await three_seals(stores, sealer)
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(path_of(url))) as connection, closing(sqlite3.connect(copy)) as target:
        connection.backup(target)
    await add_events(stores, 10)
    await sealer.seal()
    await add_events(stores, 1)
    await sealer.seal()
    other = await open_stores(f"sqlite:///{copy}", clock)
    await add_events(other, 10)
    await Sealer(other.audit_seals, KEY, 0, clock).seal()
    await other.close()

    tables = {"audit_events": "event_id BETWEEN 31 AND 40", "audit_personal": "event_id BETWEEN 31 AND 40"}
    with closing(sqlite3.connect(path_of(url))) as connection:
        connection.execute(f"ATTACH '{copy}' AS copy")
        for table, which in (tables | {"audit_seals": "seal_number = 4"}).items():
            connection.execute(f"DELETE FROM {table} WHERE {which}")
            connection.execute(f"INSERT INTO {table} SELECT * FROM copy.{table} WHERE {which}")
        connection.commit()
    assert (await checked(url)).problems == [
        "seal 5 (events 41-41) does not follow the seal before it: one of both was replaced"
    ]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_events_removed_before_their_seal_are_missed(stores: Stores, sealer: Sealer, url: str) -> None:
    await three_seals(stores, sealer)
    await add_events(stores, 5)
    tamper(url, "DELETE FROM audit_events WHERE event_id IN (32, 35)")
    assert (await checked(url)).problems == ["after the last seal (events 31-35): 2 events were removed"]


async def test_seals_of_another_key_prove_nothing(stores: Stores, sealer: Sealer, url: str) -> None:
    await three_seals(stores, sealer)
    report = await checked(url, SealKey(bytes(31) + b"\x01"))
    assert report.problems == [
        "the head of the seals is forged",
        "seals 1-3 (events 1-30) are forged or were changed",
    ]


@pytest.mark.parametrize("what", ["a forged seal", "the end cut off", "the head removed"])
async def test_what_is_broken_is_not_sealed_over(stores: Stores, sealer: Sealer, url: str, what: str) -> None:
    await three_seals(stores, sealer)
    statements = [each.replace("seal_number = 2", "seal_number = 3") for each in TAMPERINGS[what][0]]
    tamper(url, *statements)
    await add_events(stores, 5)
    with pytest.raises(ChainBroken):
        await sealer.seal()


@pytest.mark.requirement("R62")
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_failed_act_leaves_no_number_behind(stores: Stores, sealer: Sealer, url: str) -> None:
    await create_user(stores)
    results = await asyncio.gather(*(create_user(stores) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(result, Exception) for result in results)
    await create_user(stores, "dave")
    await sealer.seal()
    assert [event.event_id for event in await all_events(stores)] == [5, 4, 3, 2, 1]
    assert (await checked(url)).problems == []


async def test_sealers_at_once_seal_every_range_once(
    stores: Stores, sealer: Sealer, url: str, clock: FixedClock
) -> None:
    other = Sealer(stores.audit_seals, KEY, retention_days=0, clock=clock)
    for _ in range(10):
        await asyncio.gather(add_events(stores, 5), sealer.seal(), other.seal(), sealer.seal())
    await sealer.seal()
    report = await checked(url)
    assert report.problems == []
    assert report.unsealed_count == 0


async def test_a_seal_made_while_old_events_were_removed_is_made_again(
    stores: Stores, sealer: Sealer, url: str, clock: FixedClock
) -> None:
    await three_seals(stores, sealer)
    await add_events(stores, 5)
    head, newest = await stores.audit_seals.find_end()
    assert head is not None
    made = KEY.seal(newest, 35, await stores.audit_seals.rows_after(30, 10), 0)
    clock.advance(2 * 86_400)
    await Sealer(stores.audit_seals, KEY, retention_days=1, clock=clock).remove_old()
    assert not await stores.audit_seals.add(made, head, KEY.head(made.seal_number, head.removed_through))
    await sealer.seal()
    report = await checked(url)
    assert (report.problems, report.removed_through, report.unsealed_count) == ([], 3, 0)


async def test_a_seal_covers_no_more_than_can_be_read_at_once(stores: Stores, sealer: Sealer, url: str) -> None:
    await asyncio.gather(*(add_events(stores, 1) for _ in range(SEAL_EVENTS + 10)))
    await sealer.seal()
    report = await checked(url)
    assert report.problems == []
    assert report.newest is not None
    assert (report.newest.seal_number, report.unsealed_count) == (2, 0)
    assert report.newest.first_event_id == SEAL_EVENTS + 1


# -- erasing and forgetting ------------------------------------------------------------------------------------------


@pytest.mark.requirement("R62")
async def test_erasing_a_person_keeps_every_seal_valid(stores: Stores, sealer: Sealer, url: str) -> None:
    carol, dave = await create_user(stores), await create_user(stores, "dave")
    place = Act("request", "192.0.2.7", user_agent="carols-phone/1")
    session = await stores.sessions.open(new_session(carol), admit_all, place)
    by_carol = replace(act_of(session, scope=""), origin="192.0.2.8")
    await stores.accounts.disable(by_id(dave.account_id), by_carol)
    await stores.audit.note_refusal("session.open", "PASSWORD_WRONG", "c" * 64, place, carol.account_id)
    await stores.audit.note_refusal("session.open", "THROTTLED", "c" * 64, place)
    await stores.audit.note_refusal("session.open", "NAME_UNKNOWN", "e" * 64, ACT)
    await stores.grants.end_sessions(carol.account_id, EndReason.LOGGED_OUT, by_carol)
    await create_user(stores, "eve")
    await sealer.seal()

    erased = await stores._access.write(lambda connection, _: erase_audit(connection, carol.account_id))
    await sealer.seal()

    assert (await checked(url)).problems == []
    events = await all_events(stores)
    assert erased == 6 == sum(event.personal is None for event in events)
    for event in events:
        concerns_carol = carol.account_id in (event.account_id, event.caller_account_id)
        assert (event.personal is None) == (concerns_carol or event.outcome == "THROTTLED")
    assert not any(trace in repr(rows(url)) for trace in ("192.0.2.", "carols-phone", "c" * 64))


@pytest.mark.requirement("R62")
async def test_which_role_an_erased_person_gave_and_what_it_grants_is_still_known(stores: Stores) -> None:
    root, carol = await create_user(stores, "root", "admin"), await create_user(stores)
    by_root = act_of(await log_in(stores, root), scope="")
    await stores.roles.create("seller", ("orders.read",), "", by_root)
    await stores.roles.update("seller", RoleChange(scopes=("orders.read", "orders.write")), by_root)
    await stores.accounts.set_roles(by_id(carol.account_id), ("clerk", "seller"), by_root)
    await stores._access.write(lambda connection, _: erase_audit(connection, root.account_id))
    done = [event for event in await all_events(stores) if event.caller_account_id == root.account_id]
    assert all(event.personal is None for event in done)
    assert {(event.action, event.subject) for event in done} == {
        ("role.create", "seller orders.read"),
        ("role.update", "seller orders.read orders.write"),
        ("account.set_roles", "clerk seller"),
    }


async def test_what_an_erased_person_did_can_still_be_listed(stores: Stores, sealer: Sealer) -> None:
    carol = await create_user(stores)
    await log_in(stores, carol)
    await stores._access.write(lambda connection, _: erase_audit(connection, carol.account_id))
    found = await all_events(stores, AuditFilter(account_id=carol.account_id))
    assert [event.action for event in found] == ["session.open", "account.create"]


@pytest.mark.requirement("R62")
async def test_only_whole_old_ranges_are_removed_and_their_seals_stay(
    stores: Stores, sealer: Sealer, url: str, clock: FixedClock
) -> None:
    retaining = Sealer(stores.audit_seals, KEY, retention_days=30, clock=clock)
    await three_seals(stores, sealer)
    clock.advance(20 * 86_400)
    await add_events(stores, 10)
    await sealer.seal()
    await retaining.remove_old()
    assert len(await all_events(stores)) == 40  # nothing is old enough

    clock.advance(11 * 86_400)
    await add_events(stores, 1)
    await retaining.remove_old()
    await sealer.seal()
    assert [event.event_id for event in await all_events(stores)] == list(range(41, 30, -1))
    report = await checked(url)
    assert report.problems == []
    assert (report.removed_through, report.first and report.first.seal_number) == (3, 1)

    copy = "SELECT 15, time_ms, action, outcome, account_id, grant_id, caller_account_id, caller_grant_id, subject"
    tamper(url, f"INSERT INTO audit_events {copy}, request_id, personal_hash FROM audit_events WHERE event_id = 35")
    assert (await checked(url)).problems == [
        "seal 2 (events 11-20): 1 events were inserted where all had been removed for their age"
    ]


async def test_what_is_kept_for_ever_is_not_removed(
    stores: Stores, sealer: Sealer, url: str, clock: FixedClock
) -> None:
    await three_seals(stores, sealer)
    clock.advance(100 * 366 * 86_400)
    await sealer.remove_old()
    assert len(await all_events(stores)) == 30


async def test_old_events_are_removed_a_few_at_a_time(
    stores: Stores, sealer: Sealer, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("identity.domain.sealer.REMOVED_EVENTS", 15)
    retaining = Sealer(stores.audit_seals, KEY, retention_days=1, clock=clock)
    await three_seals(stores, sealer)
    clock.advance(2 * 86_400)
    left = []
    for _ in range(4):
        await retaining.remove_old()
        left.append(len(await all_events(stores)))
    assert left == [20, 10, 0, 0]


# -- refusals --------------------------------------------------------------------------------------------------------


async def test_repeated_refusals_are_counted_with_few_writes(stores: Stores, clock: FixedClock) -> None:
    for _ in range(100):
        await stores.audit.note_refusal("session.open", "PASSWORD_WRONG", "a" * 64, ACT)
    [refused] = await all_events(stores, AuditFilter(outcome=REFUSED))
    assert refused.attempt_count == 64  # at least so many: told when the count has doubled
    clock.advance(60)
    await stores.audit.note_refusal("session.open", "PASSWORD_WRONG", "a" * 64, ACT)
    assert [event.attempt_count for event in await all_events(stores, AuditFilter(outcome=REFUSED))] == [1, 64]


async def test_counting_refusals_breaks_no_seal(stores: Stores, sealer: Sealer, url: str) -> None:
    for _ in range(5):
        await stores.audit.note_refusal("session.open", "PASSWORD_WRONG", "a" * 64, ACT)
        await sealer.seal()
    assert (await checked(url)).problems == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_refusal_that_could_not_be_written_is_written_next_time(stores: Stores, url: str) -> None:
    await stores._access.write(lambda connection, _: connection.exec_driver_sql("PRAGMA busy_timeout = 50"))
    with closing(sqlite3.connect(path_of(url), isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with pytest.raises(DependencyDown):
                await stores.audit.note_refusal("session.open", "PASSWORD_WRONG", "a" * 64, ACT)
        blocker.execute("ROLLBACK")
    await stores.audit.note_refusal("session.open", "PASSWORD_WRONG", "a" * 64, ACT)
    assert len(await all_events(stores, AuditFilter(outcome=REFUSED))) == 1


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def story(stores: Stores, clock: FixedClock) -> dict[str, str]:
    """Some events of many kinds, an hour apart; -> names of what took part."""
    carol = await create_user(stores)
    clock.advance(3_600)
    service, secret_id = await create_service(stores)
    clock.advance(3_600)
    session = await log_in(stores, carol, terms=SessionTerms(100_000, 100_000))
    await use_secret(stores, secret_id)
    clock.advance(3_600)
    await stores.audit.note_refusal("session.open", "PASSWORD_WRONG", "c" * 64, ACT, carol.account_id)
    elsewhere = replace(act_of(session, scope=""), request_id="other", origin="2001:db8::1")
    await stores.accounts.disable(by_id(service.account_id), elsewhere)
    return {
        "carol": carol.account_id,
        "service": service.account_id,
        "session": session.grant_id,
        "secret": secret_id,
    }


WANTED: dict[str, tuple[Callable[[dict[str, str], int], AuditFilter], list[str]]] = {
    "everything": (
        lambda story, now: EVERYTHING,
        ["account.disable", "session.open!", "client_secret.use", "session.open", "account.create", "account.create"],
    ),
    "whom": (
        lambda story, now: AuditFilter(account_id=story["carol"]),
        ["session.open!", "session.open", "account.create"],
    ),
    "who": (lambda story, now: AuditFilter(caller_account_id=story["carol"]), ["account.disable"]),
    "which grant": (lambda story, now: AuditFilter(grant_id=story["secret"]), ["client_secret.use", "account.create"]),
    "what": (
        lambda story, now: AuditFilter(action_prefix="account."),
        ["account.disable", "account.create", "account.create"],
    ),
    "what, to the letter": (lambda story, now: AuditFilter(action_prefix="account_"), []),
    "done": (lambda story, now: AuditFilter(outcome=OK, action_prefix="session"), ["session.open"]),
    "refused": (lambda story, now: AuditFilter(outcome=REFUSED), ["session.open!"]),
    "refused for a reason": (lambda story, now: AuditFilter(outcome="PASSWORD_WRONG"), ["session.open!"]),
    "refused for another": (lambda story, now: AuditFilter(outcome="NAME_UNKNOWN"), []),
    "where": (lambda story, now: AuditFilter(origin="2001:db8::1"), ["account.disable"]),
    "in which call": (lambda story, now: AuditFilter(request_id="other"), ["account.disable"]),
    "since": (lambda story, now: AuditFilter(start_ms=now), ["account.disable", "session.open!"]),
    "before": (lambda story, now: AuditFilter(end_ms=now - 7_200_000), ["account.create"]),
    "in between": (
        lambda story, now: AuditFilter(start_ms=now - 7_200_000, end_ms=now),
        ["client_secret.use", "session.open", "account.create"],
    ),
    "all of it": (
        lambda story, now: AuditFilter(account_id=story["carol"], outcome=OK, end_ms=now, action_prefix="s"),
        ["session.open"],
    ),
}


@pytest.mark.requirement("R62")
@pytest.mark.parametrize("page_size", [1, 2, 1_000])
@pytest.mark.parametrize("what", WANTED)
async def test_filters_choose_and_pages_lose_nothing(
    stores: Stores, clock: FixedClock, story: dict[str, str], what: str, page_size: int
) -> None:
    wanted, expected = WANTED[what]
    found = await all_events(stores, wanted(story, int(clock.now() * 1_000)), page_size)
    acts = [event.action + ("" if event.outcome == OK else "!") for event in found if event.action != "role.create"]
    assert acts == expected


@pytest.mark.requirement("R62")
async def test_pages_are_right_while_events_are_added(stores: Stores) -> None:
    await add_events(stores, 50)
    expected = [event.event_id for event in await all_events(stores)]
    found, before = [], None
    while True:
        page = await stores.audit.list_page(EVERYTHING, before, 7)
        await add_events(stores, 9)
        found += [event.event_id for event in page.events]
        if page.next_id is None:
            break
        before = page.next_id
    assert found == expected


async def test_a_rare_event_is_found_over_short_pages(
    stores: Stores, sealer: Sealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_audit, "SCANNED_EVENTS", 10)
    await create_user(stores)
    await add_events(stores, 55)
    await sealer.seal()
    rare = AuditFilter(action_prefix="account.create")
    first = await stores.audit.list_page(rare, None, 5)
    assert (first.events, first.next_id) == ([], 50)
    assert [event.event_id for event in await all_events(stores, rare)] == [4]

    after, found = 0, []
    while after < 59:
        page = await stores.audit.read_after(rare, after, 5)
        found += page.events
        assert page.next_id is not None
        after = page.next_id
    assert [event.event_id for event in found] == [4]


async def test_times_are_found_though_the_clock_was_set_back(stores: Stores, clock: FixedClock) -> None:
    before = int(clock.now() * 1_000)
    clock.advance(600)
    await add_events(stores, 5)
    clock.advance(-500)
    await add_events(stores, 5)
    found = await all_events(stores, AuditFilter(start_ms=before + 1, end_ms=before + 200_000))
    assert [event.event_id for event in found] == [13, 12, 11, 10, 9]


async def test_times_are_found_though_the_clock_had_leapt_ahead(stores: Stores, clock: FixedClock) -> None:
    before = int(clock.now() * 1_000)
    clock.advance(600)
    await add_events(stores, 2)
    clock.advance(-500)
    await add_events(stores, 8)
    found = await all_events(stores, AuditFilter(start_ms=before + 500_000))
    assert [event.event_id for event in found] == [5, 4]


def rows(url: str) -> list[tuple[object, ...]]:
    """All that is stored of the log."""
    return query(url, "SELECT * FROM audit_events LEFT JOIN audit_personal USING (event_id)")
