"""A credential's use, and what changes while it is proved: no token comes of what has ended, and nobody waits for a
caller that proves nothing.

On PostgreSQL the change is whole before the proof is; SQLite lets it write right after the use.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.util import await_only

from identity.domain.grants import CredentialRecord, CredentialUse, GrantKind, GrantSnapshot, Prove, UsedAssertion
from identity.domain.refusals import Cause, Rejected
from identity.domain.values import Account, EndReason, Standing
from identity.storage.database import Stores, open_stores
from identity.storage.sql.common import ENTRY_MARGIN_SECONDS, Moment
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
    entries,
    identity_of,
    log_in,
    proves,
    use_secret,
)
from tests.databases import is_postgres, query

pytestmark = pytest.mark.requirement("R30")

USE = CredentialUse("internal", (), LIFETIME)
PROVE = proves(USE)
USES = "SELECT count(*) FROM audit_events WHERE action = 'client_secret.use'"
WAITING = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@dataclass
class Scene:
    """A service with a secret that was used, and two replicas: one uses it, the other changes something."""

    here: Stores
    there: Stores
    url: str
    service: Account
    grant_id: str

    async def use(
        self,
        change: Callable[[], Coroutine[Any, Any, object]],
        prove: Prove = PROVE,
        grant_id: str = "",
    ) -> GrantSnapshot:
        """Use the secret, or another grant; it is proved once *change* is done, or at least under way."""
        loop = asyncio.get_running_loop()
        under_way: list[Future[object]] = []

        def prove_meanwhile(record: CredentialRecord | None) -> CredentialUse:
            if not under_way:
                under_way.append(asyncio.run_coroutine_threadsafe(change(), loop))
                if is_postgres(self.url):
                    await_only(asyncio.wrap_future(under_way[0]))
            return prove(record)

        using = self.here.credentials.use(
            grant_id or self.grant_id, prove_meanwhile, admit_all, "client_secret.use", ACT
        )
        try:
            return await using
        finally:
            await asyncio.wrap_future(under_way[0])

    async def standing(self, issued: GrantSnapshot) -> Standing:
        return (await self.there.revocations.standings([identity_of(issued)]))[0]


@pytest.fixture
async def scene(stores: Stores, url: str, clock: FixedClock) -> AsyncIterator[Scene]:
    await add_key(stores)
    service, grant_id = await create_service(stores, "orders", "clerk")
    await use_secret(stores, grant_id)
    other = await open_stores(url, clock)
    yield Scene(stores, other, url, service, grant_id)
    await other.close()


async def revoke(scene: Scene) -> None:
    await scene.there.grants.end_credential(scene.grant_id, EndReason.REVOKED, "", ACT)


async def replace_secret(scene: Scene) -> None:
    await create_credential(scene.there, scene.service, GrantKind.CLIENT_SECRET)
    await revoke(scene)


async def revoke_account(scene: Scene) -> None:
    await scene.there.grants.end_all(by_id(scene.service.account_id), "", ACT)


async def disable(scene: Scene) -> None:
    await scene.there.accounts.disable(by_id(scene.service.account_id), ACT)


async def delete(scene: Scene) -> None:
    await scene.there.accounts.delete(by_id(scene.service.account_id), "", ACT)


async def set_roles(scene: Scene) -> None:
    await scene.there.accounts.set_roles(by_id(scene.service.account_id), ("manager",), ACT)


ENDS = [revoke, replace_secret, revoke_account, disable, delete]


@pytest.mark.parametrize("end", ENDS)
async def test_what_ends_while_it_is_proved_gives_nothing_that_lives(
    scene: Scene, end: Callable[[Scene], Coroutine[Any, Any, object]]
) -> None:
    if not is_postgres(scene.url):
        issued = await scene.use(partial(end, scene))
        assert await scene.standing(issued) is not Standing.LIVE
        return
    with pytest.raises(Rejected) as caught:
        await scene.use(partial(end, scene))
    assert caught.value.cause is Cause.CREDENTIAL_ENDED
    assert query(scene.url, USES) == [(1,)]


async def test_roles_that_change_while_it_is_proved_are_those_of_its_token(scene: Scene) -> None:
    assertion = UsedAssertion(bytes(32), USE.access_lifetime)
    key = await create_credential(scene.here, scene.service, GrantKind.PUBLIC_KEY, lookup_name="k" * 43)
    prove = proves(replace(USE, assertion=assertion))
    issued = await scene.use(partial(set_roles, scene), prove, key.grant_id)
    if is_postgres(scene.url):
        assert (issued.roles, issued.generation) == (("manager",), 2)
        assert await scene.standing(issued) is Standing.LIVE
    else:
        assert await scene.standing(issued) is Standing.OUTDATED


async def test_a_use_beside_another_never_shortens_how_long_peers_are_told_of_the_end(
    scene: Scene, clock: FixedClock
) -> None:
    clock.advance(60)
    short = proves(replace(USE, access_lifetime=LIFETIME + 1))
    await scene.use(partial(use_secret, scene.there, scene.grant_id, access_lifetime=LIFETIME + 100), short)
    await revoke(scene)
    [entry] = await entries(scene.there)
    assert entry[-1] == int(clock.now()) + LIFETIME + 100 + ENTRY_MARGIN_SECONDS


@pytest.mark.parametrize("is_known", ["secret", "session"])
async def test_nobody_waits_for_a_caller_that_proves_nothing(scene: Scene, is_known: str) -> None:
    session = await log_in(scene.here, await create_user(scene.here))
    grant_id = {"secret": scene.grant_id, "session": session.grant_id}[is_known]

    def fails(record: CredentialRecord | None) -> CredentialUse:
        assert (record is None) == (is_known == "session")
        raise Rejected(Cause.SECRET_WRONG)

    async def change() -> None:
        await disable(scene)
        await scene.there.grants.end(grant_id, EndReason.REVOKED, "", ACT)
        await scene.there.accounts.disable(by_id(session.account_id), ACT)

    with pytest.raises(Rejected) as caught:
        await scene.use(change, fails, grant_id)
    assert caught.value.cause is Cause.SECRET_WRONG


UNDER_WAY = {
    "the grant": "UPDATE grants SET end_time = 1 WHERE kind = 'client_secret'",
    "the account": "UPDATE accounts SET disable_time = 1, generation = 2",
}


@pytest.mark.parametrize("what", UNDER_WAY)
async def test_an_end_that_is_under_way_is_waited_for(scene: Scene, what: str) -> None:
    loop = asyncio.get_running_loop()
    has_ended, may_commit = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        has_ended.set()
        await may_commit.wait()

    def end(connection: Connection, _: Moment) -> None:
        connection.execute(text(UNDER_WAY[what]))
        if is_postgres(scene.url):
            await_only(hold())
        else:
            asyncio.run_coroutine_threadsafe(hold(), loop).result(timeout=10)

    ending = asyncio.ensure_future(scene.there._access.write(end))
    await has_ended.wait()
    using = asyncio.ensure_future(use_secret(scene.here, scene.grant_id))
    if is_postgres(scene.url):
        await until_somebody_waits(scene.url, using)
    may_commit.set()
    await ending
    with pytest.raises(Rejected):
        await using
    assert query(scene.url, USES) == [(1,)]


async def until_somebody_waits(url: str, using: asyncio.Future[GrantSnapshot]) -> None:
    while not using.done() and not await asyncio.to_thread(query, url, WAITING):
        await asyncio.sleep(0)
