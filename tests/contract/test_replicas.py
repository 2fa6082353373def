"""Two replicas on one database, acting at the same moment: what one acknowledges holds against what the other issues.

Each round lets every way to a token run beside every way to take it back, on the same account, at random. Whatever was
issued is then judged twice: by the rows (as a confirmed call is), and by the feed alone (as a peer does). A peer may
never take for good what the rows refuse, and must be told for as long as the token lives.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from identity.domain.grants import Derivation, GrantKind, GrantSnapshot, SessionFilter
from identity.domain.refusals import Rejected
from identity.domain.values import Account, AccountRef, Act, EndReason, RoleChange, Standing
from identity.storage.database import Stores, open_stores
from identity.storage.sql.common import ENTRY_MARGIN_SECONDS
from identity_client.errors import IdentityError, LastAdmin
from identity_client.trust.entries import Entry, EntryKind
from tests.clients.issuer import FixedClock
from tests.contract.builders import (
    ACT,
    LIFETIME,
    add_key,
    admit_all,
    by_id,
    create_credential,
    create_service,
    create_user,
    identity_of,
    new_session,
    use_secret,
)

ROUNDS = 25

pytestmark = [pytest.mark.requirement("R4"), pytest.mark.requirement("R40")]


@pytest.fixture
async def replicas(stores: Stores, url: str, clock: FixedClock) -> AsyncIterator[list[Stores]]:
    """The same database, opened twice."""
    other = await open_stores(url, clock)
    yield [stores, other]
    await other.close()


@dataclass
class Scene:
    """One account with a session and a key, two replicas, and all that was issued."""

    replicas: list[Stores]
    account: Account
    key_id: str
    session: GrantSnapshot
    issued: list[GrantSnapshot] = field(default_factory=list)

    @property
    def any(self) -> Stores:
        return random.choice(self.replicas)


Move = Callable[[Scene], Awaitable[object]]


async def log_in(scene: Scene) -> None:
    scene.issued.append(await scene.any.sessions.open(new_session(scene.account), admit_all, ACT))


async def refresh(scene: Scene) -> None:
    held = await scene.any.sessions.find(scene.session.grant_id)
    if held is None:
        return  # deleted meanwhile
    rotated = await scene.any.sessions.rotate(held, 60, LIFETIME, admit_all, ACT)
    if rotated is not None:
        scene.issued.append(rotated)


async def use_key(scene: Scene) -> None:
    scene.issued.append(await use_secret(scene.any, scene.key_id))


async def exchange(scene: Scene) -> None:
    old = scene.session
    derivation = Derivation(old.grant_id, "", old.generation, LIFETIME, "orders", is_own=True)
    scene.issued.append(await scene.any.grants.derive(derivation, admit_all, ACT))


WAYS_IN: list[Move] = [log_in, refresh, use_key, exchange]


def which(scene: Scene) -> AccountRef:
    return by_id(scene.account.account_id)


async def end_every_session(scene: Scene) -> None:
    wanted = SessionFilter(account=which(scene))
    part = await scene.any.session_selection.next_part(wanted, None, 100)
    await scene.any.session_selection.end(wanted, part, "", ACT, confirm=True)


WAYS_OUT: dict[str, Move] = {
    "disable": lambda scene: scene.any.accounts.disable(which(scene), ACT),
    "roles": lambda scene: scene.any.accounts.set_roles(which(scene), (random.choice(["clerk", "manager"]),), ACT),
    "password": lambda scene: scene.any.accounts.set_password(which(scene), "$argon2id$new", False, ACT),
    "logout": lambda scene: scene.any.grants.end_sessions(scene.account.account_id, EndReason.LOGGED_OUT, ACT),
    "revoke": lambda scene: scene.any.grants.end_all(which(scene), "", ACT),
    "end": lambda scene: scene.any.grants.end(scene.session.grant_id, EndReason.REVOKED, "", ACT),
    "sessions": end_every_session,
    "narrow": lambda scene: scene.any.roles.update("reader", RoleChange(scopes=(random.choice("abcdef"),)), ACT),
    "delete": lambda scene: scene.any.accounts.delete(which(scene), "", ACT),
}


async def prepare(replicas: list[Stores], number: int) -> Scene:
    service, _ = await create_service(replicas[0], f"service{number}", "clerk", "reader")
    key = await create_credential(replicas[0], service, GrantKind.API_KEY)
    session = await replicas[1].sessions.open(new_session(service), admit_all, ACT)
    return Scene(replicas, service, key.grant_id, session, [session])


async def run_all(scene: Scene, moves: list[Move]) -> None:
    """All at once; refusals are part of the game, anything else is not."""
    random.shuffle(moves)
    for result in await asyncio.gather(*(move(scene) for move in moves), return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, IdentityError | Rejected):
            raise result


async def held_by_a_peer(stores: Stores) -> list[Entry]:
    return [entry for _, entry in await stores.revocations.entries_since(0, 100_000)]


def is_told(entries: list[Entry], issued: GrantSnapshot) -> bool:
    """Whether a peer that holds *entries* refuses a token of *issued* while it can live, whatever clocks say."""
    until = issued.issue_time + LIFETIME + ENTRY_MARGIN_SECONDS
    told = [entry for entry in entries if entry.expire_time >= until]
    return any(
        (entry.kind is EntryKind.GRANT and entry.name == issued.grant_id)
        or (entry.kind is EntryKind.ACCOUNT and entry.name == issued.account_id and issued.generation < entry.minimum)
        or (entry.kind is EntryKind.ROLE and entry.name in issued.roles and issued.policy_version < entry.minimum)
        for entry in told
    )


@pytest.mark.parametrize("way_out", WAYS_OUT)
async def test_whatever_is_issued_beside_a_revocation_is_refused_by_peers_if_it_is_by_the_rows(
    replicas: list[Stores], clock: FixedClock, way_out: str
) -> None:
    await add_key(replicas[0])
    await replicas[0].roles.create("reader", ("z",), "", ACT)
    for number in range(ROUNDS):
        scene = await prepare(replicas, number)
        clock.advance(random.choice([0, 1, 300]))
        ways_in = random.choices(WAYS_IN, k=4)
        await run_all(scene, [*ways_in, WAYS_OUT[way_out]])
        entries = await held_by_a_peer(scene.any)
        for issued in scene.issued:
            [standing] = await scene.any.revocations.standings([identity_of(issued)])
            assert is_told(entries, issued) == (standing is not Standing.LIVE), (way_out, number, issued)


async def test_many_at_once_end_in_one_truth_and_nobody_waits_for_ever(
    replicas: list[Stores], clock: FixedClock
) -> None:
    await add_key(replicas[0])
    await replicas[0].roles.create("reader", ("z",), "", ACT)
    for number in range(ROUNDS // 2):
        scenes = [await prepare(replicas, 10 * number + each) for each in range(3)]
        clock.advance(1)
        ways_out = [WAYS_OUT[name] for name in random.choices(list(WAYS_OUT), k=4)]
        async with asyncio.timeout(30):
            await asyncio.gather(*(run_all(scene, [*WAYS_IN, *ways_out]) for scene in scenes))
        entries = await held_by_a_peer(replicas[0])
        for scene in scenes:
            for issued in scene.issued:
                [standing] = await scene.any.revocations.standings([identity_of(issued)])
                assert is_told(entries, issued) == (standing is not Standing.LIVE), (number, issued)


@pytest.mark.requirement("R25")
async def test_of_many_rotations_over_two_replicas_one_wins(replicas: list[Stores]) -> None:
    await replicas[0].roles.create("reader", ("z",), "", ACT)
    for number in range(ROUNDS):
        scene = await prepare(replicas, number)
        held = await scene.any.sessions.find(scene.session.grant_id)
        assert held is not None
        tries = [replica.sessions.rotate(held, 60, LIFETIME, admit_all, ACT) for replica in replicas * 4]
        assert sum(result is not None for result in await asyncio.gather(*tries)) == 1


async def test_the_last_admin_stays_though_each_replica_removes_one(replicas: list[Stores]) -> None:
    kept = None
    for number in range(ROUNDS):
        admins = [by_id((await create_user(replicas[0], f"{name}{number}", "admin")).account_id) for name in "ab"]
        if kept is not None:
            await replicas[0].accounts.set_roles(kept, (), ACT)
        removals = (
            replicas[0].accounts.disable(admins[0], ACT),
            random.choice([replicas[1].accounts.disable, demote(replicas[1])])(admins[1], ACT),
        )
        results = await asyncio.gather(*removals, return_exceptions=True)
        [refused] = [index for index, result in enumerate(results) if isinstance(result, LastAdmin)]
        kept = admins[refused]


def demote(stores: Stores) -> Callable[[AccountRef, Act], Awaitable[object]]:
    return lambda ref, act: stores.accounts.set_roles(ref, (), act)


async def test_who_follows_the_feed_misses_nothing_however_commits_overtake_each_other(
    replicas: list[Stores], clock: FixedClock
) -> None:
    await add_key(replicas[0])
    services = [await create_service(replicas[0], f"service{number}", "clerk") for number in range(10)]
    accounts = [service for service, _ in services]
    opened = [await replicas[0].sessions.open(new_session(each), admit_all, ACT) for each in accounts * 12]
    is_over = asyncio.Event()
    seen: list[int] = []

    async def follow() -> None:
        while True:
            was_over = is_over.is_set()
            seen.extend([version for version, _ in await replicas[1].revocations.entries_since(len(seen), 7)])
            if was_over and len(seen) == (await replicas[0].revocations.head())[1]:
                return

    follower = asyncio.create_task(follow())
    ends = [random.choice(replicas).grants.end(session.grant_id, EndReason.REVOKED, "", ACT) for session in opened]
    generations = [
        random.choice(replicas).accounts.set_roles(by_id(each.account_id), ("manager",), ACT) for each in accounts
    ]
    await asyncio.gather(*ends, *generations)
    is_over.set()
    await follower
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) == len(opened) + len(accounts)
