"""Roles as rows: what they grant now, and what a change of one tells peers."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import Connection

from identity.domain.grants import GrantSnapshot
from identity.domain.values import RoleChange, Standing
from identity.storage.database import Stores
from identity.storage.sql import roles as sql_roles
from identity.storage.sql.common import Moment
from identity.storage.sql.rows import find_grant, scopes_of
from identity_client.errors import (
    PermissionMissing,
    RoleAlreadyExists,
    RoleBuiltIn,
    RoleInUse,
    RoleNotFound,
    StateConflict,
    UnknownRole,
)
from identity_client.trust.entries import EntryKind
from tests.clients.issuer import FixedClock, new_id
from tests.contract.builders import (
    ACT,
    LIFETIME,
    act_of,
    add_key,
    admit_all,
    by_id,
    create_user,
    dump,
    entries,
    identity_of,
    log_in,
)
from tests.databases import execute

MEMBERS = 1_000


async def scopes_now(stores: Stores, grant_id: str) -> tuple[str, ...]:
    def work(connection: Connection, _: Moment) -> tuple[str, ...]:
        row = find_grant(connection, grant_id)
        assert row is not None
        return scopes_of(connection, row)

    return await stores._access.read(work)


def add_members(url: str, role: str, count: int) -> None:
    """Accounts that bear *role*, in one go."""
    columns = "(account_id, kind, username, normalised_username, roles, generation, credential_version"
    rows = [f"('{new_id()}', 'user', 'member{n}', 'member{n}', '{role}', 1, 1, 0, 0)" for n in range(count)]
    execute(url, f"INSERT INTO accounts {columns}, create_time, update_time) VALUES {', '.join(rows)}")


async def test_a_role_is_created_found_listed_changed_and_deleted(stores: Stores, clock: FixedClock) -> None:
    created = await stores.roles.create("reader", ("a", "b"), "reads", ACT)
    assert (created.scopes, created.description, created.is_built_in) == (("a", "b"), "reads", False)
    assert await stores.roles.get("reader") == created
    clock.advance(10)
    changed, version = await stores.roles.update("reader", RoleChange(description="reads much"), ACT)
    assert (changed.scopes, changed.description, version) == (("a", "b"), "reads much", None)
    assert (changed.create_time, changed.update_time) == (created.create_time, created.update_time + 10)
    names = [role.name for role in await stores.roles.list_page("", 100)]
    assert names == ["admin", "auditor", "clerk", "manager", "peer", "reader"]
    assert [role.name for role in await stores.roles.list_page("clerk", 2)] == ["manager", "peer"]
    await stores.roles.delete("reader", ACT)
    with pytest.raises(RoleNotFound):
        await stores.roles.get("reader")


async def test_what_cannot_be_done_to_a_role_changes_nothing(stores: Stores, url: str) -> None:
    carol = by_id((await create_user(stores, "carol", "clerk", "peer")).account_id)
    before = dump(url)
    for call, error in (
        (stores.roles.create("clerk", (), "", ACT), RoleAlreadyExists),
        (stores.roles.create("admin", (), "", ACT), RoleAlreadyExists),
        (stores.roles.update("nothing", RoleChange(scopes=("a",)), ACT), RoleNotFound),
        (stores.roles.update("admin", RoleChange(scopes=()), ACT), RoleBuiltIn),
        (stores.roles.update("peer", RoleChange(description="x"), ACT), RoleBuiltIn),
        (stores.roles.delete("nothing", ACT), RoleNotFound),
        (stores.roles.delete("peer", ACT), RoleBuiltIn),
        (stores.roles.delete("clerk", ACT), RoleInUse),
        (stores.accounts.set_roles(carol, ("clerk", "nothing"), ACT), UnknownRole),
    ):
        with pytest.raises(error):
            await call
    assert dump(url) == before


async def test_only_an_admin_changes_roles(stores: Stores, url: str) -> None:
    act = act_of(await log_in(stores, await create_user(stores, "carol", "clerk")))
    before = dump(url)
    for call in (
        stores.roles.create("reader", (), "", act),
        stores.roles.update("clerk", RoleChange(scopes=("identity.admin",)), act),
        stores.roles.delete("manager", act),
    ):
        with pytest.raises(PermissionMissing):
            await call
    assert dump(url) == before


@pytest.mark.parametrize("other", ["a-b", "a_", "xa_b", "a_bc", "axb", "a%b"])
async def test_a_role_is_in_use_by_those_who_bear_its_very_name(stores: Stores, url: str, other: str) -> None:
    await stores.roles.create("a_b", (), "", ACT)
    add_members(url, f"clerk {other}", 1)
    await stores.roles.delete("a_b", ACT)
    await stores.roles.create("a_b", (), "", ACT)
    execute(url, f"UPDATE accounts SET roles = '{other} a_b'")
    with pytest.raises(RoleInUse):
        await stores.roles.delete("a_b", ACT)


@pytest.mark.requirement("R3")
async def test_narrowing_a_role_of_a_thousand_is_one_entry_and_widening_none(
    stores: Stores, url: str, clock: FixedClock
) -> None:
    await stores.roles.create("reader", ("a", "b"), "", ACT)
    add_members(url, "reader", MEMBERS)
    _, widened = await stores.roles.update("reader", RoleChange(scopes=("a", "b", "c")), ACT)
    _, same = await stores.roles.update("reader", RoleChange(scopes=("a", "b", "c")), ACT)
    assert (widened, same, await entries(stores)) == (None, None, [])
    _, narrowed = await stores.roles.update("reader", RoleChange(scopes=("a", "d", "e", "f")), ACT)
    policy_version = (await log_in(stores, await create_user(stores, "carol"))).policy_version
    assert narrowed == 1
    expire_time = int(clock.now()) + 3_600 + 630  # the longest that a token may live
    assert await entries(stores) == [(1, EntryKind.ROLE, "reader", policy_version, expire_time)]
    assert {account.generation for account in await stores.accounts.list_page("", MEMBERS + 1)} == {1}


@pytest.mark.requirement("R3")
async def test_the_database_itself_outdates_tokens_of_a_narrowed_role_and_no_others(stores: Stores) -> None:
    await add_key(stores)
    await stores.roles.create("reader", ("a",), "", ACT)
    carol, dave = await create_user(stores, "carol", "clerk", "reader"), await create_user(stores, "dave", "clerk")
    old, others = await log_in(stores, carol), await log_in(stores, dave)
    await stores.roles.update("reader", RoleChange(scopes=("a", "b")), ACT)
    assert await stores.revocations.standings([identity_of(old)]) == [Standing.LIVE]
    await stores.roles.update("reader", RoleChange(scopes=("b",)), ACT)
    new = await log_in(stores, carol)
    standings = await stores.revocations.standings([identity_of(old), identity_of(others), identity_of(new)])
    assert standings == [Standing.OUTDATED, Standing.LIVE, Standing.LIVE]


async def test_a_role_that_was_deleted_and_made_anew_does_not_revive_tokens_of_the_old_one(stores: Stores) -> None:
    await add_key(stores)
    await stores.roles.create("reader", ("a",), "", ACT)
    carol = await create_user(stores, "carol", "reader")
    snapshot = await log_in(stores, carol)
    await stores.accounts.set_roles(by_id(carol.account_id), (), ACT)
    await stores.roles.delete("reader", ACT)
    await stores.roles.create("reader", ("a",), "", ACT)
    old = replace(identity_of(snapshot), generation=2)  # as if the account had the role all along
    assert await stores.revocations.standings([old]) == [Standing.OUTDATED]


async def test_what_roles_grant_is_read_anew_after_each_change(stores: Stores) -> None:
    await stores.roles.create("reader", ("a",), "", ACT)
    grant_id = (await log_in(stores, await create_user(stores, "carol", "clerk", "reader"))).grant_id
    for scopes in (("b",), ("b", "c"), (), ("a",)):
        assert await stores.roles.update("reader", RoleChange(scopes=scopes), ACT)
        for _ in range(8):  # by whichever of the readers
            assert await scopes_now(stores, grant_id) == scopes


async def test_a_policy_that_was_rolled_back_is_never_taken_for_the_one_that_came_instead(stores: Stores) -> None:
    """Both have the same version number; only one of them is."""
    await stores.roles.create("reader", ("a",), "", ACT)
    carol = await create_user(stores, "carol", "reader")
    grant_id = (await log_in(stores, carol)).grant_id

    def widen_look_and_fail(connection: Connection, _: Moment) -> None:
        sql_roles._move_policy(connection)
        connection.exec_driver_sql("UPDATE roles SET scopes = 'a root' WHERE name = 'reader'")
        row = find_grant(connection, grant_id)
        assert row is not None
        assert scopes_of(connection, row) == ("a", "root")
        raise StateConflict

    failed, changed, renewed = await asyncio.gather(
        stores._access.write(widen_look_and_fail),
        stores.roles.update("reader", RoleChange(scopes=("a", "b")), ACT),
        log_in(stores, carol),
        return_exceptions=True,
    )
    assert isinstance(failed, StateConflict)
    assert not isinstance(changed, BaseException)
    assert not isinstance(renewed, BaseException)
    assert renewed.scopes in (("a",), ("a", "b"))  # whichever was first
    for _ in range(8):  # by whichever connection
        assert (await log_in(stores, carol)).scopes == ("a", "b")


@pytest.mark.requirement("R3")
@pytest.mark.parametrize("is_change_first", [True, False])
async def test_a_renewal_beside_a_change_of_roles_has_both_old_or_both_new(
    stores: Stores, is_change_first: bool
) -> None:
    carol = await create_user(stores, "carol", "clerk")
    held = await stores.sessions.find((await log_in(stores, carol)).grant_id)
    assert held is not None
    change = stores.accounts.set_roles(by_id(carol.account_id), ("manager",), ACT)

    async def renew() -> GrantSnapshot:
        """As its caller does: what was changed between the decision and the writing is decided again."""
        while (rotated := await stores.sessions.rotate(held, 60, LIFETIME, admit_all, ACT)) is None:
            pass
        return rotated

    renewal = renew()
    if is_change_first:
        _, rotated = await asyncio.gather(change, renewal)
    else:
        rotated, _ = await asyncio.gather(renewal, change)
    assert (rotated.roles, rotated.generation) in ((("clerk",), 1), (("manager",), 2))
