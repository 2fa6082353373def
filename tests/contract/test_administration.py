"""What the stores promise to administrators: the last admin, requests that act once, sessions by filter."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from identity.domain.grants import CredentialTerms, GrantKind, GrantSnapshot, NewCredential, SessionFilter, SessionPart
from identity.domain.once import REMEMBERED_SECONDS
from identity.domain.refusals import Rejected
from identity.domain.session_revoker import SessionRevoker
from identity.domain.values import Account, AccountKind, Act, Ended, EndReason, NewAccount, Once
from identity.storage.database import Stores
from identity.storage.sql.common import ENTRY_MARGIN_SECONDS, OPAQUE_CACHE_SECONDS
from identity.storage.sql.session_selection import SqlSessionSelection
from identity_client.errors import (
    AccountNotFound,
    LastAdmin,
    RequestIdReused,
    SecretAlreadyShown,
    TokenOutdated,
    TokenRevoked,
)
from identity_client.trust.entries import EntryKind
from tests.clients.issuer import FixedClock, new_id
from tests.contract.builders import (
    ACT,
    LIFETIME,
    act_of,
    admit_all,
    by_id,
    count_rows,
    create_service,
    create_user,
    entries,
    log_in,
    new_session,
)

Removal = Callable[[Stores, Account], Awaitable[Any]]

REMOVALS: dict[str, Removal] = {
    "demoted": lambda stores, account: stores.accounts.set_roles(by_id(account.account_id), (), ACT),
    "disabled": lambda stores, account: stores.accounts.disable(by_id(account.account_id), ACT),
    "deleted": lambda stores, account: stores.accounts.delete(by_id(account.account_id), "", ACT),
}


# -- the last admin --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R61")
@pytest.mark.parametrize("second", REMOVALS)
@pytest.mark.parametrize("first", REMOVALS)
@pytest.mark.parametrize("order", [0, 1])
async def test_of_all_admins_removed_at_once_by_whatever_way_one_stays(
    stores: Stores, first: str, second: str, order: int
) -> None:
    admins = [await create_user(stores, name, "admin") for name in ("root", "eve")]
    removed = [admins[order], admins[1 - order]]
    attempts = [REMOVALS[first](stores, removed[0]), REMOVALS[second](stores, removed[1])]
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    [refused] = [index for index, outcome in enumerate(outcomes) if type(outcome) is LastAdmin]
    left = [each.username for each in await stores.accounts.list_page("", 9) if each.disable_time is None]
    assert removed[refused].username in left


@pytest.mark.requirement("R61")
async def test_a_disabled_admin_a_service_and_a_similar_role_are_no_admin_to_rely_on(stores: Stores) -> None:
    root, former = await create_user(stores, "root", "admin"), await create_user(stores, "former", "admin")
    await stores.accounts.disable(by_id(former.account_id), ACT)
    await create_service(stores, "robot", "admin")
    for name in ("administrator", "sub.admin"):
        await stores.roles.create(name, ("identity.admin",), "", ACT)
        await create_user(stores, f"a-{name}", name)
    with pytest.raises(LastAdmin):
        await stores.accounts.set_roles(by_id(root.account_id), ("administrator",), ACT)
    await stores.accounts.set_roles(by_id(former.account_id), (), ACT)  # who is none may cease to look like one
    await stores.accounts.delete(by_id(former.account_id), "", ACT)
    assert (await stores.accounts.get(by_id(root.account_id))).roles == ("admin",)


@pytest.mark.requirement("R11")
@pytest.mark.parametrize("order", ["log-in first", "reset first"])
async def test_no_log_in_by_the_old_password_outlives_a_reset(stores: Stores, order: str) -> None:
    carol = await create_user(stores, "carol")
    log_in_ = log_in(stores, carol)
    reset = stores.accounts.set_password(by_id(carol.account_id), "$argon2id$new", True, ACT)
    both: list[Awaitable[Any]] = [log_in_, reset] if order == "log-in first" else [reset, log_in_]
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    refused = [type(outcome) for outcome in outcomes if isinstance(outcome, Exception)]
    assert refused == ([] if order == "log-in first" else [Rejected])
    assert await live_sessions(stores) == set()


# -- requests that act once ------------------------------------------------------------------------------------------


def once(act: Act, name: str = "request-1", digest: bytes = b"digest", method: str = "CreateUserRequest") -> Act:
    return replace(act, once=Once(name, method, digest))


async def admin_act(stores: Stores, username: str = "root") -> Act:
    return act_of(await log_in(stores, await create_user(stores, username, "admin")))


def new_user(username: str = "carol") -> NewAccount:
    return NewAccount(new_id(), AccountKind.USER, username, username, (), "$argon2id$...")


def new_service(username: str = "orders") -> tuple[NewAccount, NewCredential]:
    account = NewAccount(new_id(), AccountKind.SERVICE, username, username, ())
    return account, NewCredential(new_id(), GrantKind.CLIENT_SECRET, secret_hash=bytes(32))


async def test_a_repeat_answers_what_the_first_created_as_it_is_now(stores: Stores, url: str) -> None:
    act = once(await admin_act(stores))
    created = await stores.accounts.create(new_user(), None, act)
    audited = count_rows(url, "audit_events")
    changed, _ = await stores.accounts.set_roles(by_id(created.account_id), ("clerk",), ACT)
    assert await stores.accounts.create(new_user(), None, act) == changed
    assert count_rows(url, "accounts") == 2
    assert count_rows(url, "audit_events") == audited + 1  # of set_roles


async def test_ten_sendings_at_once_create_one(stores: Stores, url: str) -> None:
    act = once(await admin_act(stores))
    answers = await asyncio.gather(*(stores.accounts.create(new_user(), None, act) for _ in range(10)))
    assert len({answer.account_id for answer in answers}) == 1
    assert count_rows(url, "accounts") == 2


async def test_a_secret_is_not_shown_twice_and_the_repeat_names_what_was_created(stores: Stores) -> None:
    act = once(await admin_act(stores))
    created = await stores.accounts.create(*new_service(), act)
    with pytest.raises(SecretAlreadyShown) as caught:
        await stores.accounts.create(*new_service(), act)
    assert caught.value.resource_id == created.account_id


async def test_a_repeated_credential_without_a_secret_is_answered(stores: Stores) -> None:
    act = once(await admin_act(stores))
    service, _ = await create_service(stores)
    new = NewCredential(new_id(), GrantKind.CERTIFICATE, CredentialTerms("x"), lookup_name="dns:orders")
    created = await stores.credentials.create(by_id(service.account_id), new, act)
    again = replace(new, grant_id=new_id())
    assert await stores.credentials.create(by_id(service.account_id), again, act) == created


@pytest.mark.parametrize("other", [{"digest": b"other"}, {"method": "CreateRoleRequest"}])
async def test_the_same_name_for_another_request_is_refused(stores: Stores, other: dict[str, Any]) -> None:
    act = await admin_act(stores)
    await stores.accounts.create(new_user(), None, once(act))
    with pytest.raises(RequestIdReused):
        await stores.accounts.create(new_user("dave"), None, once(act, **other))
    with pytest.raises(RequestIdReused):
        await stores.roles.create("new", (), "", once(act, **other))


async def test_a_name_belongs_to_its_caller_alone(stores: Stores) -> None:
    await stores.accounts.create(new_user("carol"), None, once(await admin_act(stores)))
    other = once(await admin_act(stores, "eve"), digest=b"other")
    assert (await stores.accounts.create(new_user("dave"), None, other)).username == "dave"


async def test_a_refused_request_is_not_remembered(stores: Stores) -> None:
    act = once(await admin_act(stores))
    with pytest.raises(Exception, match="role"):
        await stores.accounts.create(replace(new_user(), roles=("nobody",)), None, act)
    assert (await stores.accounts.create(new_user(), None, act)).username == "carol"


async def test_a_repeat_by_who_may_no_longer_act_is_refused(stores: Stores) -> None:
    act = once(await admin_act(stores))
    await stores.accounts.create(new_user(), None, act)
    assert act.caller is not None
    await stores.grants.end(act.caller.grant_id, EndReason.REVOKED, "", ACT)
    with pytest.raises(TokenRevoked):
        await stores.accounts.create(new_user(), None, act)


async def test_what_was_created_and_deleted_is_gone_for_the_repeat_too(stores: Stores) -> None:
    act = once(await admin_act(stores))
    created = await stores.accounts.create(new_user(), None, act)
    await stores.accounts.delete(by_id(created.account_id), "", ACT)
    with pytest.raises(AccountNotFound):
        await stores.accounts.create(new_user(), None, act)


async def test_after_a_day_the_name_is_free_and_the_sweep_removes_it(
    stores: Stores, clock: FixedClock, url: str
) -> None:
    root = await create_user(stores, "root", "admin")

    async def sent(username: str, digest: bytes) -> Account:
        act = once(act_of(await log_in(stores, root)), digest=digest)
        return await stores.accounts.create(new_user(username), None, act)

    await sent("carol", b"one")
    clock.advance(REMEMBERED_SECONDS - 1)
    with pytest.raises(RequestIdReused):
        await sent("dave", b"two")
    clock.advance(1)
    assert (await sent("dave", b"two")).username == "dave"
    await stores.sweeper.sweep("", 100)
    assert count_rows(url, "done_requests") == 1
    clock.advance(REMEMBERED_SECONDS)
    await stores.sweeper.sweep("", 100)
    assert count_rows(url, "done_requests") == 0


# -- sessions by filter ----------------------------------------------------------------------------------------------


async def parts(stores: Stores, which: SessionFilter, limit: int) -> list[SessionPart]:
    found = [await stores.session_selection.next_part(which, None, limit)]
    while found[-1].through is not None:
        found.append(await stores.session_selection.next_part(which, found[-1].through, limit))
    return found


async def end(stores: Stores, which: SessionFilter, limit: int = 100) -> set[str]:
    """End them; -> the ids of those that were live before and are not now."""
    before = await live_sessions(stores)
    count = 0
    for part in await parts(stores, which, limit):
        assert await stores.session_selection.count(which, part) <= limit
        count += (await stores.session_selection.end(which, part, "", ACT, confirm=False)).grant_count
    ended = before - await live_sessions(stores)
    assert len(ended) == count
    return ended


async def live_sessions(stores: Stores) -> set[str]:
    accounts = await stores.accounts.list_page("", 100)
    pages = [await stores.sessions.list_page(each.account_id, None, 100) for each in accounts]
    return {session.session_id for page in pages for session in page}


@pytest.mark.requirement("R6")
@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_every_live_session_ends_once_in_parts_of_any_size(stores: Stores, clock: FixedClock, limit: int) -> None:
    opened = []
    for name in ("carol", "dave", "eve"):
        account = await create_user(stores, name)
        for _ in range(3):
            opened.append((await log_in(stores, account)).grant_id)
            clock.advance(1)
    await create_service(stores)
    await stores.grants.end(opened.pop(), EndReason.REVOKED, "", ACT)
    assert await end(stores, SessionFilter(), limit) == set(opened)
    assert [version for version, *_ in await entries(stores)] == list(range(1, len(opened) + 2))


async def log_in_from(stores: Stores, account: Account, origin: str) -> str:
    session = new_session(account)
    return (await stores.sessions.open(session, admit_all, replace(ACT, origin=origin))).grant_id


CONDITIONS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "an account": ({"account": "dave"}, {"later"}),
    "a time": ({"issued_before": 5}, {"192.0.2.7", "::ffff:192.0.2.8", "2001:db8::1", "unix", ""}),
    "a time is not included": ({"issued_before": 0}, set()),
    "a network": ({"origin": "192.0.2.0/24"}, {"192.0.2.7", "::ffff:192.0.2.8", "later"}),
    "another network": ({"origin": "2001:db8::/32"}, {"2001:db8::1"}),
    "a network and a time": ({"origin": "192.0.2.0/24", "issued_before": 5}, {"192.0.2.7", "::ffff:192.0.2.8"}),
    "a network and an account": ({"origin": "0.0.0.0/0", "account": "dave"}, {"later"}),
    "nobody's network": ({"origin": "198.51.100.0/24"}, set()),
}


@pytest.mark.requirement("R6")
@pytest.mark.parametrize("limit", [2, 100])
@pytest.mark.parametrize("given", CONDITIONS)
async def test_each_condition_holds_and_all_together(stores: Stores, clock: FixedClock, given: str, limit: int) -> None:
    carol, dave = await create_user(stores, "carol"), await create_user(stores, "dave")
    start = int(clock.now())
    opened = {}
    for place in ("192.0.2.7", "::ffff:192.0.2.8", "2001:db8::1", "unix", ""):
        opened[place] = await log_in_from(stores, carol, place)
    clock.advance(10)
    opened["later"] = await log_in_from(stores, dave, "192.0.2.9")
    conditions, expected = CONDITIONS[given]
    which = SessionFilter(
        account=by_id(dave.account_id) if "account" in conditions else None,
        issued_before=start + conditions["issued_before"] if "issued_before" in conditions else None,
        origin=ip_network(conditions["origin"]) if "origin" in conditions else None,
    )
    assert await end(stores, which, limit) == {opened[name] for name in expected}


@pytest.mark.requirement("R6")
async def test_a_session_of_which_no_token_can_be_alive_costs_no_entry(stores: Stores, clock: FixedClock) -> None:
    carol = await create_user(stores, "carol")
    await log_in(stores, carol)
    opaque = await log_in(stores, carol, token_hash=bytes(32), refresh_salt=None)
    clock.advance(LIFETIME + 31)
    fresh = await log_in(stores, carol)
    assert len(await end(stores, SessionFilter())) == 3
    now = int(clock.now())
    found = {(kind, name): expire_time - now for _, kind, name, _, expire_time in await entries(stores)}
    assert found == {
        (EntryKind.GRANT, opaque.grant_id): OPAQUE_CACHE_SECONDS + ENTRY_MARGIN_SECONDS,
        (EntryKind.GRANT, fresh.grant_id): LIFETIME + ENTRY_MARGIN_SECONDS,
    }
    assert (await stores.accounts.get(by_id(carol.account_id))).generation == 1


@pytest.mark.requirement("R6")
@pytest.mark.parametrize("order", ["refresh first", "revocation first"])
async def test_a_refresh_beside_the_revocation_leaves_no_token_alive(stores: Stores, order: str) -> None:
    snapshot = await log_in(stores, await create_user(stores, "carol"))
    held = await stores.sessions.find(snapshot.grant_id)
    assert held is not None
    refresh = stores.sessions.rotate(held, 60, LIFETIME, lambda _: None, ACT)
    revoke = stores.session_selection.end(SessionFilter(), SessionPart(None, None), "", ACT, confirm=False)
    both: list[Awaitable[Any]] = [refresh, revoke] if order == "refresh first" else [revoke, refresh]
    outcomes = await asyncio.gather(*both)
    rotated = outcomes[0] if order == "refresh first" else outcomes[1]
    assert (rotated is None) == (order == "revocation first")
    [(_, kind, name, _, expire_time)] = await entries(stores)
    assert (kind, name) == (EntryKind.GRANT, snapshot.grant_id)
    assert expire_time == (rotated or snapshot).issue_time + LIFETIME + ENTRY_MARGIN_SECONDS


async def test_a_session_ended_meanwhile_is_not_counted_again(stores: Stores) -> None:
    snapshot = await log_in(stores, await create_user(stores, "carol"))
    part = await stores.session_selection.next_part(SessionFilter(), None, 1)
    await stores.grants.end(snapshot.grant_id, EndReason.LOGGED_OUT, "", ACT)
    ended = await stores.session_selection.end(SessionFilter(), part, "", ACT, confirm=False)
    assert (ended.grant_count, ended.version) == (0, None)


async def test_the_acts_of_one_part_are_one_row_of_the_log_and_an_empty_act_is_one_too(
    stores: Stores, url: str
) -> None:
    carol = await create_user(stores, "carol")
    await log_in(stores, carol)
    before = count_rows(url, "audit_events")
    await stores.session_selection.end(SessionFilter(), SessionPart(None, None), "", ACT, confirm=True)
    await stores.session_selection.end(SessionFilter(), SessionPart(None, None), "", ACT, confirm=True)
    later = SessionPart((carol.account_id, 0, ""), None)
    await stores.session_selection.end(SessionFilter(), later, "", ACT, confirm=True)
    assert count_rows(url, "audit_events") == before + 2


class Silent:
    """A feed that has nobody to wait for."""

    async def published(self, version: int | None) -> None:
        pass

    async def keys_changed(self) -> None:
        pass

    async def set_back(self) -> None:
        pass


class Interrupted(SqlSessionSelection):
    """Something happens after the first part."""

    def __init__(self, stores: Stores, happens: Callable[[], Awaitable[Any]]) -> None:
        super().__init__(stores._access)
        self._happens: Callable[[], Awaitable[Any]] | None = happens

    async def end(self, *arguments: Any, **options: Any) -> Ended:
        ended = await super().end(*arguments, **options)
        if self._happens is not None:
            await self._happens()
            self._happens = None
        return ended


MEANWHILE: dict[str, Callable[[Stores, GrantSnapshot], Awaitable[Any]]] = {
    "disabled": lambda stores, root: stores.accounts.disable(by_id(root.account_id), ACT),
    "demoted": lambda stores, root: stores.accounts.set_roles(by_id(root.account_id), (), ACT),
    "logged out": lambda stores, root: stores.grants.end(root.grant_id, EndReason.LOGGED_OUT, "", ACT),
}


@pytest.mark.requirement("R6")
@pytest.mark.parametrize("what", MEANWHILE)
async def test_an_admin_who_is_stopped_meanwhile_ends_no_further_session(
    stores: Stores, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("identity.domain.session_revoker.PART_SESSIONS", 1)
    await create_user(stores, "chief", "admin")
    root = await log_in(stores, await create_user(stores, "root", "admin"))
    carol = await create_user(stores)
    for _ in range(3):
        await log_in(stores, carol)
    selection = Interrupted(stores, lambda: MEANWHILE[what](stores, root))
    revoker = SessionRevoker(selection, stores.accounts, Silent())
    with pytest.raises((TokenOutdated, TokenRevoked)):
        await revoker.end(SessionFilter(account=by_id(carol.account_id)), "", act_of(root))
    assert len(await stores.sessions.list_page(carol.account_id, None, 100)) == 2


@pytest.mark.requirement("R6")
async def test_an_admin_whose_own_session_is_among_them_ends_the_rest_too(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("identity.domain.session_revoker.PART_SESSIONS", 1)
    account = await create_user(stores, "root", "admin")
    own = [await log_in(stores, account) for _ in range(5)]
    for name in ("carol", "dave"):
        await log_in(stores, await create_user(stores, name))
    revoker = SessionRevoker(stores.session_selection, stores.accounts, Silent())
    assert await revoker.end(SessionFilter(), "", act_of(own[2])) == 7
    assert await live_sessions(stores) == set()
