"""One account cannot fill the feed: what its holder ends is refused all the same, and costs one entry from then on."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest

from identity.domain.grants import GrantKind, GrantSnapshot, SessionFilter
from identity.domain.refusals import Rejected
from identity.domain.values import Account, Act, EndReason, Standing
from identity.storage.database import Stores, open_stores
from identity.storage.sql.common import ENTRY_MARGIN_SECONDS
from identity.storage.sql.ending import ENTRIES_OF_AN_ACCOUNT
from identity.storage.sql.revocations import TOKENS_OF_A_GRANT
from identity_client.errors import DependencyDown, GrantNotFound, IdentityError, Overloaded
from identity_client.trust.entries import Entry, EntryKind
from identity_client.trust.revocations import Revocations
from tests.clients.issuer import FixedClock
from tests.contract.builders import (
    ACT,
    LIFETIME,
    act_of,
    add_key,
    admit_all,
    audited,
    by_id,
    create_credential,
    create_service,
    create_user,
    identity_of,
    log_in,
    use_secret,
)
from tests.databases import query

pytestmark = pytest.mark.requirement("R2")

AT_ONCE = 12


async def fill(stores: Stores, account: Account, count: int = ENTRIES_OF_AN_ACCOUNT, act: Act = ACT) -> None:
    """Log in, and end it by *act*, *count* times, some at once: whoever waits behind 200 may wait in vain."""
    for start in range(0, count, AT_ONCE):
        sessions = await asyncio.gather(*(log_in(stores, account) for _ in range(min(AT_ONCE, count - start))))
        ends = [stores.grants.end(session.grant_id, EndReason.REVOKED, "", act) for session in sessions]
        assert all(ended.grant_count == 1 for ended in await asyncio.gather(*ends))


async def held_by_a_peer(stores: Stores) -> Revocations:
    held = Revocations()
    for batch in (await stores.revocations.live_entries())[2]:
        held.add(batch)
    return held


async def kinds(stores: Stores) -> Counter[EntryKind]:
    return Counter(entry.kind for entry in await held_by_a_peer(stores))


async def newest_entry(stores: Stores) -> Entry:
    [(_, entry)] = await stores.revocations.list_page(None, None, 1)
    return entry


def is_told(held: Revocations, token: GrantSnapshot) -> bool:
    """Whether a peer refuses a token of *token*."""
    is_outdated = token.generation < held.minimum(EntryKind.ACCOUNT, token.account_id)
    return is_outdated or held.contains(EntryKind.GRANT, token.grant_id)


async def standing(stores: Stores, snapshot: GrantSnapshot) -> Standing:
    return (await stores.revocations.standings([identity_of(snapshot)]))[0]


End = Callable[[Stores, GrantSnapshot], Awaitable[object]]

WAYS: dict[str, End] = {
    "revoke": lambda stores, it: stores.grants.end(it.grant_id, EndReason.REVOKED, "", ACT),
    "reuse": lambda stores, it: stores.grants.end(it.grant_id, EndReason.REFRESH_REUSED, "", ACT),
    "log out": lambda stores, it: stores.grants.end_session(
        it.account_id, it.grant_id, EndReason.LOGGED_OUT, act_of(it, scope="")
    ),
    "token": lambda stores, it: stores.revocations.revoke_token(identity_of(it), it.issue_time + LIFETIME, "", ACT),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_full_account_costs_one_entry_however_much_it_ends(stores: Stores, url: str, way: str) -> None:
    await add_key(stores)
    carol, dave = await create_user(stores), await create_user(stores, "dave")
    of_dave = await log_in(stores, dave)
    await fill(stores, carol)
    assert await kinds(stores) == {EntryKind.GRANT: ENTRIES_OF_AN_ACCOUNT}
    for _ in range(10):
        ended, beside = await log_in(stores, carol), await log_in(stores, carol)
        await WAYS[way](stores, ended)
        held = await held_by_a_peer(stores)
        for each in (ended, beside):
            assert is_told(held, each)
            assert await standing(stores, each) is Standing.REVOKED
    assert await kinds(stores) == {EntryKind.GRANT: ENTRIES_OF_AN_ACCOUNT, EntryKind.ACCOUNT: 1}
    assert (await stores.accounts.get(by_id(carol.account_id))).generation == 11
    assert audited(url)[-1] == "account.end_sessions.too_many_ended ok"
    assert await standing(stores, of_dave) is Standing.LIVE
    await WAYS["revoke"](stores, of_dave)
    assert (await newest_entry(stores)).name == of_dave.grant_id


async def test_the_last_entry_that_has_room_ends_nothing_else(stores: Stores) -> None:
    await add_key(stores)
    carol = await create_user(stores)
    await fill(stores, carol, ENTRIES_OF_AN_ACCOUNT - 1)
    last, beside = await log_in(stores, carol), await log_in(stores, carol)
    await WAYS["log out"](stores, last)
    assert await kinds(stores) == {EntryKind.GRANT: ENTRIES_OF_AN_ACCOUNT}
    assert await standing(stores, beside) is Standing.LIVE


async def test_tokens_and_grants_of_an_account_count_together(stores: Stores) -> None:
    carol = await create_user(stores)
    await fill(stores, carol, ENTRIES_OF_AN_ACCOUNT - 10)
    session = await log_in(stores, carol)
    for _ in range(10):
        await WAYS["token"](stores, session)
    await WAYS["log out"](stores, await log_in(stores, carol))
    assert (await newest_entry(stores)).kind is EntryKind.ACCOUNT


async def test_the_audit_log_tells_why_the_other_sessions_ended(stores: Stores, url: str) -> None:
    carol = await create_user(stores)
    await fill(stores, carol)
    ended, beside = await log_in(stores, carol), await log_in(stores, carol)
    await WAYS["log out"](stores, ended)
    assert audited(url)[-2:] == ["grant.end.logged_out ok", "account.end_sessions.too_many_ended ok"]
    [(note,)] = query(url, "SELECT note FROM audit_personal ORDER BY event_id DESC LIMIT 1")
    assert note == f"{ENTRIES_OF_AN_ACCOUNT} of its sessions and tokens were ended lately"
    reasons = {}
    for each in (ended, beside):
        status = await stores.grants.find_status(each.grant_id)
        assert status is not None
        reasons[each.grant_id] = status.end_reason
    assert reasons == {ended.grant_id: "logged_out", beside.grant_id: "too_many_ended"}


async def test_an_account_has_room_again_once_its_entries_have_expired(stores: Stores, clock: FixedClock) -> None:
    carol = await create_user(stores)
    await fill(stores, carol)
    clock.advance(LIFETIME + ENTRY_MARGIN_SECONDS)
    session = await log_in(stores, carol)
    await WAYS["log out"](stores, session)
    assert (await newest_entry(stores)).name == session.grant_id


async def test_what_nobody_takes_any_more_ends_without_the_others(stores: Stores, clock: FixedClock) -> None:
    await add_key(stores)
    carol = await create_user(stores)
    old = await log_in(stores, carol, access_lifetime=30)
    clock.advance(100)
    await fill(stores, carol)
    beside = await log_in(stores, carol)
    assert await stores.grants.end(old.grant_id, EndReason.REVOKED, "", ACT) is not None
    assert await standing(stores, old) is Standing.REVOKED
    assert await standing(stores, beside) is Standing.LIVE
    assert await kinds(stores) == {EntryKind.GRANT: ENTRIES_OF_AN_ACCOUNT}


async def test_what_administrators_end_is_neither_counted_nor_limited(stores: Stores) -> None:
    await add_key(stores)
    admin = act_of(await log_in(stores, await create_user(stores, "root", "admin")))
    carol = await create_user(stores)
    await fill(stores, carol, ENTRIES_OF_AN_ACCOUNT + 10, admin)
    await fill(stores, carol)  # has all of its own room
    ended, beside, alike = [await log_in(stores, carol) for _ in range(3)]
    await stores.grants.end(ended.grant_id, EndReason.REVOKED, "", admin)
    await stores.revocations.revoke_token(identity_of(alike), alike.issue_time + LIFETIME, "", admin)
    assert await standing(stores, beside) is Standing.LIVE
    count = 2 * ENTRIES_OF_AN_ACCOUNT + 11
    assert await kinds(stores) == {EntryKind.GRANT: count, EntryKind.TOKEN: 1}


async def test_a_token_that_fell_with_its_full_account_ends_nothing_when_it_is_revoked_again(stores: Stores) -> None:
    await add_key(stores)
    carol = await create_user(stores)
    await fill(stores, carol)
    token = await log_in(stores, carol)
    expire_time = token.issue_time + LIFETIME
    assert await stores.revocations.revoke_token(identity_of(token), expire_time, "", ACT) is not None
    later = await log_in(stores, carol)
    assert await stores.revocations.revoke_token(identity_of(token), expire_time, "", ACT) is None
    assert await standing(stores, later) is Standing.LIVE


async def test_an_administrators_own_log_outs_count_as_anybodys(stores: Stores) -> None:
    root = await create_user(stores, "root", "admin")
    await fill(stores, root)
    session, ended = await log_in(stores, root), await log_in(stores, root)
    await stores.grants.end(ended.grant_id, EndReason.REVOKED, "", act_of(session))
    assert (await newest_entry(stores)).kind is EntryKind.ACCOUNT


async def test_a_full_service_has_its_tokens_outdated_and_keeps_its_other_credentials(stores: Stores) -> None:
    await add_key(stores)
    service, secret_id = await create_service(stores)
    await fill(stores, service)
    key = await create_credential(stores, service, GrantKind.API_KEY)
    of_secret, of_key = await use_secret(stores, secret_id), await use_secret(stores, key.grant_id)
    await stores.grants.end_credential(secret_id, EndReason.REVOKED, "", act_of(of_key, scope=""))
    assert await standing(stores, of_secret) is Standing.REVOKED
    assert await standing(stores, of_key) is Standing.OUTDATED
    with pytest.raises(Rejected):
        await use_secret(stores, secret_id)
    assert await standing(stores, await use_secret(stores, key.grant_id)) is Standing.LIVE


async def test_whoever_took_tokens_of_many_credentials_ends_these_tokens_alone(
    stores: Stores, url: str, clock: FixedClock
) -> None:
    await add_key(stores)
    service, secret_id = await create_service(stores)
    taken = ENTRIES_OF_AN_ACCOUNT // TOKENS_OF_A_GRANT + 1
    keys = [await create_credential(stores, service, GrantKind.API_KEY) for _ in range(taken)]
    kept = await use_secret(stores, secret_id)
    refused = []
    for key in keys:
        issued = [await use_secret(stores, key.grant_id) for _ in range(TOKENS_OF_A_GRANT)]
        refused += [error for each in issued if (error := await refusal_of(WAYS["token"](stores, each)))]
    assert len(refused) == taken * TOKENS_OF_A_GRANT - ENTRIES_OF_AN_ACCOUNT
    assert {error.retry_after_seconds for error in refused} == {LIFETIME + ENTRY_MARGIN_SECONDS}
    assert await kinds(stores) == {EntryKind.TOKEN: ENTRIES_OF_AN_ACCOUNT}
    assert Counter(audited(url))["token.revoke ok"] == ENTRIES_OF_AN_ACCOUNT
    assert await standing(stores, kept) is Standing.LIVE
    clock.advance(int(refused[0].retry_after_seconds))
    assert await refusal_of(WAYS["token"](stores, await use_secret(stores, secret_id))) is None


async def refusal_of(call: Awaitable[object]) -> Overloaded | None:
    try:
        await call
    except Overloaded as error:
        return error
    return None


async def test_an_administrator_ends_tokens_of_a_full_service_and_its_holder_ends_the_credential(
    stores: Stores,
) -> None:
    await add_key(stores)
    admin = act_of(await log_in(stores, await create_user(stores, "root", "admin")))
    service, secret_id = await create_service(stores)
    key = await create_credential(stores, service, GrantKind.API_KEY)
    await fill(stores, service)
    of_secret, of_key = await use_secret(stores, secret_id), await use_secret(stores, key.grant_id)
    assert await refusal_of(WAYS["token"](stores, of_secret))
    await stores.revocations.revoke_token(identity_of(of_key), of_key.issue_time + LIFETIME, "", admin)
    assert (await newest_entry(stores)).kind is EntryKind.TOKEN
    assert await standing(stores, of_secret) is Standing.LIVE
    await WAYS["revoke"](stores, of_secret)
    assert await standing(stores, of_secret) is Standing.REVOKED
    assert (await newest_entry(stores)).kind is EntryKind.ACCOUNT


async def test_a_full_service_that_is_an_administrator_ends_its_own_tokens_with_all_others(stores: Stores) -> None:
    await add_key(stores)
    service, secret_id = await create_service(stores)
    await fill(stores, service)
    own, beside = await use_secret(stores, secret_id), await use_secret(stores, secret_id)
    await stores.revocations.revoke_token(identity_of(own), own.issue_time + LIFETIME, "", act_of(own, scope=""))
    for each in (own, beside):
        assert await standing(stores, each) is Standing.OUTDATED
    assert (await newest_entry(stores)).kind is EntryKind.ACCOUNT


async def test_a_session_of_a_full_account_ends_with_its_tokens_and_costs_one_entry(stores: Stores) -> None:
    carol = await create_user(stores)
    session, beside = await log_in(stores, carol), await log_in(stores, carol)
    for _ in range(TOKENS_OF_A_GRANT):
        await WAYS["token"](stores, session)
    await fill(stores, carol, ENTRIES_OF_AN_ACCOUNT - TOKENS_OF_A_GRANT)
    await WAYS["token"](stores, session)
    held = await held_by_a_peer(stores)
    assert is_told(held, session)
    assert is_told(held, beside)
    count = ENTRIES_OF_AN_ACCOUNT - TOKENS_OF_A_GRANT
    assert await kinds(stores) == {EntryKind.TOKEN: TOKENS_OF_A_GRANT, EntryKind.GRANT: count, EntryKind.ACCOUNT: 1}


async def test_nobody_ends_the_sessions_of_a_full_account_by_naming_one_of_them(stores: Stores) -> None:
    await add_key(stores)
    carol, dave = await create_user(stores), await create_user(stores, "dave")
    await fill(stores, carol)
    victim, intruder = await log_in(stores, carol), await log_in(stores, dave)
    own = act_of(intruder, scope="")
    for act in (own, ACT):
        with pytest.raises(GrantNotFound):
            await stores.grants.end_session(dave.account_id, victim.grant_id, EndReason.LOGGED_OUT, act)
    assert await standing(stores, victim) is Standing.LIVE
    assert EntryKind.ACCOUNT not in await kinds(stores)


# -- at the same moment ----------------------------------------------------------------------------------------------


@pytest.fixture
async def replicas(
    stores: Stores, url: str, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[Stores]]:
    """The same database, opened twice; whoever has to give way to another fails instead of trying again."""
    monkeypatch.setattr("identity.storage.postgres._GIVE_WAY", set())
    other = await open_stores(url, clock)
    yield [stores, other]
    await other.close()


async def test_those_who_end_at_the_same_moment_pass_the_limit_by_no_more_than_they_are(
    replicas: list[Stores],
) -> None:
    await add_key(replicas[0])
    carol = await create_user(replicas[0])
    await fill(replicas[0], carol, ENTRIES_OF_AN_ACCOUNT - 1)
    sessions: list[GrantSnapshot] = []

    async def end_one_after_another() -> None:
        for _ in range(4):
            session = await log_in(random.choice(replicas), carol)
            await WAYS["revoke"](random.choice(replicas), session)
            sessions.append(session)

    await asyncio.gather(*(end_one_after_another() for _ in range(AT_ONCE)))
    count = await kinds(replicas[0])
    assert ENTRIES_OF_AN_ACCOUNT <= count[EntryKind.GRANT] < ENTRIES_OF_AN_ACCOUNT + AT_ONCE
    held = await held_by_a_peer(replicas[0])
    for session in sessions:
        assert is_told(held, session)
        assert await standing(replicas[0], session) is Standing.REVOKED


async def test_nobody_gives_way_where_a_full_account_ends_sessions_beside_everything_else(
    replicas: list[Stores],
) -> None:
    await add_key(replicas[0])
    carol = await create_user(replicas[0])
    reference = by_id(carol.account_id)
    await fill(replicas[0], carol)
    issued: list[GrantSnapshot] = []

    async def open_session() -> None:
        issued.append(await log_in(random.choice(replicas), carol))

    async def refresh(session: GrantSnapshot) -> None:
        at = random.choice(replicas)
        held = await at.sessions.find(session.grant_id)
        assert held is not None
        rotated = await at.sessions.rotate(held, 60, LIFETIME, admit_all, ACT)
        issued.extend([rotated] if rotated else [])

    async def end_by_filter() -> None:
        at, which = random.choice(replicas), SessionFilter(account=reference)
        part = await at.session_selection.next_part(which, None, 100)
        await at.session_selection.end(which, part, "", ACT, confirm=True)

    async def change(act: Act) -> None:
        roles = (random.choice(["clerk", "manager", "auditor"]),)
        await random.choice(replicas).accounts.set_roles(reference, roles, act)

    for _ in range(15):
        sessions = [await log_in(random.choice(replicas), carol) for _ in range(AT_ONCE)]
        issued.extend(sessions)
        ways = random.choices(list(WAYS.values()), k=AT_ONCE)
        moves: list[Callable[[], Awaitable[object]]] = [
            *(partial(way, random.choice(replicas), session) for way, session in zip(ways, sessions, strict=True)),
            *(partial(refresh, session) for session in sessions),
            *[open_session] * 3,
            end_by_filter,
            partial(change, ACT),
        ]
        random.shuffle(moves)
        await must_not_fail(moves)
    held = await held_by_a_peer(replicas[0])
    for each in issued:
        assert is_told(held, each) == (await standing(replicas[0], each) is not Standing.LIVE)


async def must_not_fail(moves: list[Callable[[], Awaitable[object]]]) -> None:
    """All at once; what ended before its turn is refused, and that is all."""
    async with asyncio.timeout(30):
        for result in await asyncio.gather(*(move() for move in moves), return_exceptions=True):
            is_refused = isinstance(result, IdentityError | Rejected) and not isinstance(result, DependencyDown)
            if isinstance(result, BaseException) and not is_refused:
                raise result
