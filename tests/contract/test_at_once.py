"""What PostgreSQL confirms and writes in one statement: the decision is made on rows that nobody holds, so whatever of
them changes before the statement has held, compared and written must undo it.

A change comes at each of two moments: between the reading and the statement, and while the statement waits for whoever
makes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from sqlalchemy import func, select

from identity.domain.grants import CredentialUse, GrantKind, GrantSnapshot, UsedAssertion
from identity.domain.refusals import Cause, Rejected
from identity.storage import direct
from identity.storage.database import Stores, open_stores
from identity.storage.postgres import _engine
from identity.storage.tables import accounts
from identity_client.errors import DependencyDown
from tests.clients.issuer import FixedClock
from tests.contract.builders import (
    ACT,
    LIFETIME,
    admit_all,
    by_id,
    count_rows,
    create_credential,
    create_service,
    create_user,
    dump,
    log_in,
    proves,
    use_secret,
)
from tests.postgres_server import execute, query

pytestmark = [
    pytest.mark.parametrize("database_url", ["postgresql"], indirect=True),
    pytest.mark.requirement("R4"),
    pytest.mark.requirement("R40"),
]

CHANGES = {
    "disabled": "UPDATE accounts SET disable_time = 1, generation = generation + 1",
    "roles": "UPDATE accounts SET roles = 'manager', generation = generation + 1",
    "ended": "UPDATE grants SET end_time = 1",
    "another use": "UPDATE grants SET latest_expire_time = 4000000000",
}
SET_BACK = "SELECT grant_id FROM grants WHERE latest_expire_time < 4000000000"

REPEATABLE_READ = "default_transaction_isolation = 'repeatable read'"

Admitted = Callable[[GrantSnapshot], None]
Use = Callable[[Admitted], Coroutine[Any, Any, GrantSnapshot | None]]


class Meanwhile:
    """An Admit, by which the decision is made: does *change* the first time, and keeps what it was shown."""

    def __init__(self, change: Callable[[], object]) -> None:
        self._change = change
        self.seen: list[GrantSnapshot] = []

    def __call__(self, snapshot: GrantSnapshot) -> None:
        self.seen.append(snapshot)
        if len(self.seen) == 1:
            self._change()


@pytest.fixture(params=["first use", "another use", "rotation", "repeat"])
async def use(request: pytest.FixtureRequest, stores: Stores) -> Use:
    """Everything that is issued so; another use within a second of the first moves nothing of its grant."""
    service, grant_id = await create_service(stores, "orders", "clerk")
    if "use" in request.param:
        if request.param == "another use":
            await use_secret(stores, grant_id)
        prove = proves(CredentialUse("internal", (), LIFETIME))
        return lambda admit: stores.credentials.use(grant_id, prove, admit, "client_secret.use", ACT)
    session_id = (await log_in(stores, service)).grant_id

    async def renew(admit: Admitted) -> GrantSnapshot | None:
        """As the use-case does, which decides again where a session was not as it was found."""
        for _ in range(3):
            held = await stores.sessions.find(session_id)
            assert held is not None
            if request.param == "rotation":
                renewed = await stores.sessions.rotate(held, 60, LIFETIME, admit, ACT)
            else:
                renewed = await stores.sessions.repeat(held, LIFETIME, admit, ACT)
            if renewed is not None:
                return renewed
        return None

    return renew


def is_of_now(url: str, issued: GrantSnapshot) -> bool:
    """Whether the rows allow what was issued."""
    [now] = query(
        url,
        "SELECT roles, generation, disable_time, end_time FROM accounts JOIN grants USING (account_id) "
        "WHERE grant_id = $1",
        issued.grant_id,
    )
    return now == (" ".join(issued.roles), issued.generation, None, None)


async def outcome_of(using: Awaitable[GrantSnapshot | None]) -> GrantSnapshot | None:
    """What was issued, None for a refusal."""
    try:
        return await using
    except Exception as error:
        if isinstance(error, DependencyDown):
            raise
        return None


@pytest.mark.parametrize("change", CHANGES)
async def test_what_changes_between_the_reading_and_the_statement_counts(url: str, use: Use, change: str) -> None:
    events = count_rows(url, "audit_events")
    meanwhile = Meanwhile(lambda: execute(url, CHANGES[change]))
    issued = await outcome_of(use(meanwhile))
    assert meanwhile.seen
    assert issued is None or (is_of_now(url, issued) and issued == meanwhile.seen[-1])
    assert (issued is None) == (change in ("disabled", "ended"))
    assert count_rows(url, "audit_events") == events + (issued is not None)
    assert query(url, "SELECT event_id FROM audit_events EXCEPT SELECT event_id FROM audit_personal") == []
    assert change != "another use" or query(url, SET_BACK) == []


@asynccontextmanager
async def changing(url: str, sql: str) -> AsyncIterator[asyncpg.transaction.Transaction]:
    """A transaction that has made the change, and not committed it."""
    connection = await asyncpg.connect(url)
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(sql)
        yield transaction
    finally:
        await connection.close()


async def until_it_waits(url: str) -> None:
    """Until one of the service's statements waits for a lock."""
    connection = await asyncpg.connect(url)
    try:
        while not await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        ):
            await asyncio.sleep(0)
    finally:
        await connection.close()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_what_changes_while_the_statement_waits_counts_once_it_is_committed(
    url: str, use: Use, change: str, end: str
) -> None:
    async with changing(url, CHANGES[change]) as transaction:
        using = asyncio.create_task(outcome_of(use(admit_all)))
        await until_it_waits(url)
        await getattr(transaction, end)()
        issued = await using
    assert issued is None or is_of_now(url, issued)
    assert (end, change) != ("commit", "another use") or query(url, SET_BACK) == []
    assert (issued is None) == (end == "commit" and change in ("disabled", "ended"))


async def test_what_must_give_way_to_another_is_decided_again(url: str, clock: FixedClock) -> None:
    """Where the database's own settings make a statement fail that waited for a change, in place of looking again."""
    query(f"{url.rpartition('/')[0]}/postgres", f"ALTER DATABASE {url.rpartition('/')[2]} SET {REPEATABLE_READ}")
    stores = await open_stores(url, clock)
    _, grant_id = await create_service(stores)
    async with changing(url, CHANGES["roles"]) as transaction:
        using = asyncio.create_task(use_secret(stores, grant_id))
        await until_it_waits(url)
        await transaction.commit()
        assert (await using).generation == 2
    await stores.close()


async def test_whoever_issues_holds_the_account_before_the_grant(url: str, use: Use) -> None:
    async with changing(url, "SELECT 1 FROM accounts FOR UPDATE"):
        using = asyncio.create_task(use(admit_all))
        await until_it_waits(url)
        execute(url, "SELECT 1 FROM grants FOR UPDATE NOWAIT")  # raises where somebody holds one
    assert await using


async def test_many_uses_at_once_are_all_written_and_their_grant_remembers_the_last(
    stores: Stores, url: str, clock: FixedClock
) -> None:
    _, grant_id = await create_service(stores)
    for _ in range(3):
        await asyncio.gather(*(use_secret(stores, grant_id) for _ in range(40)))
        clock.advance(61)
    assert query(url, "SELECT count(*) FROM audit_events WHERE action = 'client_secret.use'") == [(120,)]
    assert query(url, "SELECT latest_expire_time FROM grants") == [(int(clock.now()) - 61 + LIFETIME,)]


async def test_of_many_rotations_at_once_one_is_written(stores: Stores, url: str) -> None:
    session = await stores.sessions.find((await log_in(stores, await create_user(stores))).grant_id)
    assert session is not None
    rotated = await asyncio.gather(*(stores.sessions.rotate(session, 60, LIFETIME, admit_all, ACT) for _ in range(20)))
    assert len([one for one in rotated if one is not None]) == 1
    assert query(url, "SELECT count FROM grants") == [(1,)]
    assert query(url, "SELECT count(*) FROM audit_events WHERE action = 'session.refresh'") == [(1,)]


async def test_an_assertion_is_spent_in_the_transaction_of_its_use(stores: Stores, url: str) -> None:
    service, _ = await create_service(stores)
    key = {"lookup_name": "k" * 43, "public_key": (bytes(32), bytes(32))}
    grant_id = (await create_credential(stores, service, GrantKind.PUBLIC_KEY, **key)).grant_id
    wanted = CredentialUse("internal", (), LIFETIME, UsedAssertion(bytes(32), int(2e9)))
    before = dump(url)

    def refuse(_: GrantSnapshot) -> None:
        raise Rejected(Cause.SECRET_WRONG)

    with pytest.raises(Rejected):
        await stores.credentials.use(grant_id, proves(wanted), refuse, "assertion.use", ACT)
    assert dump(url) == before
    assert await use_secret(stores, grant_id, assertion=wanted.assertion)
    assert query(url, "SELECT count(*) FROM audit_events WHERE action = 'client_secret.use'") == [(1,)]
    with pytest.raises(Rejected):
        await use_secret(stores, grant_id, assertion=wanted.assertion)


@pytest.mark.parametrize("blow", ["pg_cancel_backend", "pg_terminate_backend"])
async def test_a_statement_that_is_torn_writes_nothing_and_costs_no_connection(
    stores: Stores, url: str, use: Use, blow: str
) -> None:
    events = count_rows(url, "audit_events")
    for _ in range(10):  # more than there are connections for it
        async with changing(url, "UPDATE accounts SET generation = generation + 1"):
            using = asyncio.create_task(use(admit_all))
            await until_it_waits(url)
            query(url, f"SELECT {blow}(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            with pytest.raises(DependencyDown):
                await using
    assert count_rows(url, "audit_events") == events
    assert await use(admit_all)


async def test_a_caller_who_leaves_does_not_stop_what_has_begun(stores: Stores, url: str, use: Use) -> None:
    events = count_rows(url, "audit_events")
    async with changing(url, "SELECT 1 FROM accounts FOR UPDATE"):
        using = asyncio.create_task(use(admit_all))
        await until_it_waits(url)
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using
    await stores.close()  # waits for what runs
    assert count_rows(url, "audit_events") == events + 1


async def test_a_connection_whose_statement_was_left_is_used_no_more(stores: Stores, url: str) -> None:
    """Its other end may be gone without a word: whoever came next would wait for it."""
    await create_service(stores, "orders", "clerk")
    engine, pid = _engine(url, 1), select(func.pg_backend_pid())

    async def run(statement: Any) -> int:
        found: int = await direct.run_direct(engine, lambda connection: connection.execute(statement).scalar())
        return found

    before = await run(pid)
    assert await run(pid) == before
    async with changing(url, "SELECT 1 FROM accounts FOR UPDATE"):
        asking = asyncio.create_task(run(pid.select_from(accounts).with_for_update()))
        await until_it_waits(url)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert await run(pid) != before
    await engine.dispose()


async def test_what_runs_with_every_call_is_compiled_once(stores: Stores, clock: FixedClock, url: str) -> None:
    """A statement that is built for each call is compiled for each call, which takes longer than to run it."""
    service, grant_id = await create_service(stores)
    session = await log_in(stores, service)

    async def all_of_it() -> None:
        await use_secret(stores, grant_id)
        await stores.accounts.find_password("orders")
        await stores.accounts.is_audience("orders")
        await stores.credentials.find_by_name(GrantKind.PUBLIC_KEY, "name")
        await stores.grants.find_secret_hash(grant_id)
        await stores.leases.take("job", "holder", 60)
        await stores.revocations.head()
        await stores.revocations.entries_since(0, 10)
        held = await stores.sessions.find(session.grant_id)
        assert held is not None
        await stores.sessions.repeat(held, LIFETIME, admit_all, ACT)
        await stores.sessions.rotate(held, 60, LIFETIME, admit_all, ACT)

    await all_of_it()
    compiled = direct._compiled.cache_info()
    await all_of_it()
    await stores.accounts.get(by_id(service.account_id))
    assert direct._compiled.cache_info().misses == compiled.misses
    assert direct._compiled.cache_info().hits > compiled.hits
