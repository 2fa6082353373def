"""What the feed and the disk promise: no gaps, nothing lost, and a clear word when the database is away."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from identity.domain.audit_events import AuditFilter
from identity.domain.grants import GrantSnapshot
from identity.domain.values import (
    Act,
    EndReason,
    Standing,
)
from identity.storage.database import Stores, open_stores
from identity.storage.sql.audit import NAMES_A_MINUTE
from identity.storage.sql.common import ENTRY_MARGIN_SECONDS
from identity.storage.sql.revocations import TOKENS_OF_A_GRANT
from identity_client.errors import (
    DependencyDown,
    Overloaded,
)
from identity_client.trust.entries import EntryKind
from tests.clients.issuer import FixedClock, new_id
from tests.clients.shapes import until
from tests.contract.builders import (
    ACT,
    LIFETIME,
    TERMS,
    act_of,
    add_key,
    audited,
    by_id,
    count_rows,
    create_service,
    create_user,
    entries,
    identity_of,
    log_in,
    use_secret,
)
from tests.databases import is_postgres

# -- the feed --------------------------------------------------------------------------------------------------------


async def test_versions_have_no_gap_whatever_fails_in_between(stores: Stores) -> None:
    chance = random.Random(17)
    carol = await create_user(stores)
    sessions = [await log_in(stores, carol) for _ in range(60)]

    async def act(number: int) -> None:
        choice = chance.random()
        if choice < 0.5:
            await stores.grants.end(sessions[number].grant_id, EndReason.REVOKED, "", ACT)
        elif choice < 0.7:
            await stores.grants.end(new_id(), EndReason.REVOKED, "", ACT)  # not found: takes no number
        else:
            identity = identity_of(sessions[number])
            await stores.revocations.revoke_token(identity, sessions[number].issue_time + LIFETIME, "", ACT)

    await asyncio.gather(*(act(number) for number in range(60)), return_exceptions=True)
    versions = [version for version, *_ in await entries(stores)]
    assert versions == list(range(1, len(versions) + 1))
    assert (await stores.revocations.live_entries())[1] == len(versions) > 30


async def test_what_a_caller_began_is_done_though_the_caller_leaves(stores: Stores) -> None:
    carol = await create_user(stores)
    sessions = [await log_in(stores, carol) for _ in range(20)]
    tasks = [
        asyncio.ensure_future(stores.grants.end(session.grant_id, EndReason.REVOKED, "", ACT)) for session in sessions
    ]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await create_user(stores, "dave")
    async with asyncio.timeout(10):
        while len(await entries(stores)) < 20:  # on PostgreSQL beside what comes later
            await asyncio.sleep(0.01)
    assert len(await entries(stores)) == 20


async def test_a_token_is_recorded_once_and_not_when_it_is_past(stores: Stores, clock: FixedClock) -> None:
    snapshot = await log_in(stores, await create_user(stores))
    identity, expire_time = identity_of(snapshot), snapshot.issue_time + LIFETIME
    assert await stores.revocations.revoke_token(identity, expire_time, "", ACT) == 1
    assert await stores.revocations.revoke_token(identity, expire_time, "", ACT) is None
    clock.advance(LIFETIME + 30)
    assert await stores.revocations.revoke_token(identity_of(snapshot), expire_time, "", ACT) is None


async def revoke_tokens(stores: Stores, snapshot: GrantSnapshot, count: int, act: Act = ACT) -> None:
    for _ in range(count):
        expire_time = snapshot.issue_time + LIFETIME
        await stores.revocations.revoke_token(identity_of(snapshot), expire_time, "", act)


async def kinds(stores: Stores) -> list[EntryKind]:
    return [kind for _, kind, *_ in await entries(stores)]


@pytest.mark.requirement("R2")
async def test_many_revoked_tokens_of_one_session_become_the_session(stores: Stores, url: str) -> None:
    await add_key(stores)
    carol = await create_user(stores)
    snapshot, other = await log_in(stores, carol), await log_in(stores, carol)
    await revoke_tokens(stores, snapshot, TOKENS_OF_A_GRANT)
    assert await stores.revocations.standings([identity_of(snapshot)]) == [Standing.LIVE]
    await revoke_tokens(stores, snapshot, 85)
    assert await kinds(stores) == [EntryKind.TOKEN] * TOKENS_OF_A_GRANT + [EntryKind.GRANT]
    assert [name for _, kind, name, *_ in await entries(stores) if kind is EntryKind.GRANT] == [snapshot.grant_id]
    assert await stores.revocations.standings([identity_of(snapshot), identity_of(other)]) == [
        Standing.REVOKED,
        Standing.LIVE,
    ]
    assert audited(url)[-2:] == ["token.revoke ok", "grant.end.revoked ok"]


@pytest.mark.requirement("R2")
async def test_a_credential_outlives_many_revoked_tokens_and_its_holder_is_told_to_wait(
    stores: Stores, clock: FixedClock
) -> None:
    _, grant_id = await create_service(stores)
    snapshot = await use_secret(stores, grant_id)
    await revoke_tokens(stores, snapshot, TOKENS_OF_A_GRANT)
    with pytest.raises(Overloaded) as caught:
        await revoke_tokens(stores, snapshot, 1)
    assert caught.value.retry_after_seconds == LIFETIME + ENTRY_MARGIN_SECONDS
    assert await kinds(stores) == [EntryKind.TOKEN] * TOKENS_OF_A_GRANT
    clock.advance(int(caught.value.retry_after_seconds))
    again = await use_secret(stores, grant_id)
    await revoke_tokens(stores, again, TOKENS_OF_A_GRANT)
    assert await kinds(stores) == [EntryKind.TOKEN] * TOKENS_OF_A_GRANT * 2


@pytest.mark.requirement("R2")
async def test_an_administrator_is_never_refused_the_revocation_of_a_token(stores: Stores) -> None:
    await add_key(stores)
    admin = act_of(await log_in(stores, await create_user(stores, "root", "admin")))
    session = await log_in(stores, await create_user(stores))
    credential = await use_secret(stores, (await create_service(stores))[1])
    for snapshot in (session, credential):
        await revoke_tokens(stores, snapshot, TOKENS_OF_A_GRANT + 5, admin)
    assert await kinds(stores) == [EntryKind.TOKEN] * (TOKENS_OF_A_GRANT + 5) * 2
    for snapshot in (session, credential):
        assert await stores.revocations.standings([identity_of(snapshot)]) == [Standing.LIVE]


async def test_live_entries_end_with_their_expiry(stores: Stores, clock: FixedClock) -> None:
    snapshot = await log_in(stores, await create_user(stores))
    await stores.grants.end(snapshot.grant_id, EndReason.REVOKED, "", ACT)
    epoch, version, live = await stores.revocations.live_entries()
    assert (len(epoch), version) == (16, 1)
    assert [entry.name for batch in live for entry in batch] == [snapshot.grant_id]
    clock.advance(LIFETIME + 630)
    assert (await stores.revocations.live_entries())[2] == []


async def test_live_entries_of_every_kind_come_in_batches_of_bounded_size(
    stores: Stores, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("identity.storage.sql.revocations.BATCH_ENTRIES", 2)
    carol = await create_user(stores)
    sessions = [await log_in(stores, carol) for _ in range(4)]
    for session in sessions[:3]:
        await stores.grants.end(session.grant_id, EndReason.REVOKED, "", ACT)
    await stores.revocations.revoke_token(identity_of(sessions[3]), sessions[3].issue_time + LIFETIME, "", ACT)
    await stores.accounts.set_roles(by_id(carol.account_id), ("admin",), ACT)
    *_, batches = await stores.revocations.live_entries()
    assert [len(batch) for batch in batches] == [2, 2, 1]
    since = await stores.revocations.entries_since(0, 10)
    assert {entry for batch in batches for entry in batch} == {entry for _, entry in since}


async def test_the_doorbell_rings_for_revocations_and_for_nothing_else(stores: Stores, url: str) -> None:
    rung: list[int] = []
    stores.set_doorbell(lambda: rung.append(1))
    if is_postgres(url):
        await until(lambda: rung)  # once, when it listens
        rung.clear()
    session = await log_in(stores, await create_user(stores))
    await stores.sessions.find(session.grant_id)
    assert not rung
    await stores.grants.end(session.grant_id, EndReason.REVOKED, "", ACT)
    assert rung
    if is_postgres(url):
        await until(lambda: rung == [1, 1])  # as every other replica hears it


async def test_standings_follow_the_rows(stores: Stores, clock: FixedClock) -> None:
    await add_key(stores)
    carol = await create_user(stores)
    live, ended, expired = [await log_in(stores, carol) for _ in range(3)]
    await stores.grants.end(ended.grant_id, EndReason.REVOKED, "", ACT)
    identities = [identity_of(live), identity_of(ended), identity_of(live, key_id="unknown")]
    assert await stores.revocations.standings(identities) == [Standing.LIVE, Standing.REVOKED, Standing.REVOKED]
    clock.advance(TERMS.idle_lifetime)
    assert await stores.revocations.standings([identity_of(expired)]) == [Standing.REVOKED]


# -- keys, files, outages --------------------------------------------------------------------------------------------


async def test_of_many_first_keys_one_becomes_active(stores: Stores) -> None:
    records = await asyncio.gather(*(add_key(stores, f"key{n}") for n in range(10)))
    assert len({record.key_id for record in records}) == 1
    assert len(await stores.signing_keys.list_keys()) == 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_the_database_is_for_its_owner_alone(stores: Stores, tmp_path: Path) -> None:
    await create_user(stores)
    files = list(tmp_path.glob("identity.db*"))
    assert len(files) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_commits_are_flushed_to_the_disk(stores: Stores) -> None:
    def pragmas(connection: object, _: object) -> list[int | str]:
        execute = connection.exec_driver_sql  # type: ignore[attr-defined]
        return [execute(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous", "foreign_keys")]

    assert await stores._access.write(pragmas) == ["wal", 2, 1]


async def test_everything_survives_a_new_start(stores: Stores, url: str, clock: FixedClock) -> None:
    carol = await create_user(stores)
    session = await log_in(stores, carol)
    await stores.grants.end(session.grant_id, EndReason.REVOKED, "", ACT)
    before = await stores.revocations.live_entries()
    again = await open_stores(url, clock)
    assert await again.revocations.live_entries() == before
    assert await again.accounts.get(by_id(carol.account_id)) == carol
    await again.close()


async def test_a_closed_store_is_unavailable(url: str, clock: FixedClock) -> None:
    stores = await open_stores(url, clock)
    await stores.close()
    with pytest.raises(DependencyDown):
        await create_user(stores)
    with pytest.raises(DependencyDown):
        await stores.revocations.live_entries()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_locked_database_is_unavailable_and_recovers(stores: Stores, tmp_path: Path) -> None:
    await stores._access.write(lambda connection, _: connection.exec_driver_sql("PRAGMA busy_timeout = 50"))
    with closing(sqlite3.connect(tmp_path / "identity.db", isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(DependencyDown):
            await create_user(stores)
        assert await stores.accounts.list_page("", 1) == []  # readers go on
        blocker.execute("ROLLBACK")
    assert await create_user(stores)


async def test_a_database_that_cannot_be_opened_is_unavailable(tmp_path: Path, clock: FixedClock) -> None:
    with pytest.raises(DependencyDown):
        await open_stores(f"sqlite:///{tmp_path / 'nowhere' / 'identity.db'}", clock)


async def test_invented_names_do_not_fill_the_log(stores: Stores, url: str) -> None:
    for number in range(NAMES_A_MINUTE + 50):
        await stores.audit.note_refusal("session.open", "BAD_CREDENTIALS", f"{number:064}", ACT)
    assert count_rows(url, "audit_events") == NAMES_A_MINUTE + 1


async def test_invented_names_do_not_hide_what_a_known_caller_tries(stores: Stores) -> None:
    for number in range(NAMES_A_MINUTE + 50):
        await stores.audit.note_refusal("session.open", "BAD_CREDENTIALS", f"{number:064}", ACT)
    carol, dave = (
        await log_in(stores, await create_user(stores)),
        await log_in(stores, await create_user(stores, "dave")),
    )
    for caller in (carol, dave):
        act = act_of(caller)
        await stores.audit.note_refusal("call.refused", "PERMISSION_MISSING", "", act, caller.account_id, "/method")
    page = await stores.audit.list_page(AuditFilter(action_prefix="call.refused"), None, 10)
    assert [event.account_id for event in page.events] == [dave.account_id, carol.account_id]


async def test_refusals_are_noted_once_a_minute_per_name_and_origin(
    stores: Stores, url: str, clock: FixedClock
) -> None:
    for name in ("a" * 64, "a" * 64, "b" * 64):
        await stores.audit.note_refusal("session.open", "BAD_CREDENTIALS", name, ACT)
    clock.advance(60)
    await stores.audit.note_refusal("session.open", "BAD_CREDENTIALS", "a" * 64, ACT)
    assert count_rows(url, "audit_events") == 3
