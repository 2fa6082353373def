"""AuditService over the wire: who did what to whom, from where, and how it ended; listed, filtered and watched."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from identity.rpc import audit_service
from identity.v1 import (
    account_pb2,
    audit_pb2,
    authentication_pb2,
    credential_pb2,
    revocation_pb2,
    role_pb2,
    session_pb2,
    token_pb2,
)
from identity_client import errors
from tests.clients.issuer import FixedClock
from tests.clients.probe import until
from tests.rpc.api import ADMIN_PASSWORD, USER_PASSWORD, Api, Metadata, bearer
from tests.rpc.refusals import refusal, refused

SOME_ID = "A" * 22
Events = list[audit_pb2.AuditEvent]


async def events(api: Api, metadata: Metadata | None = None, **wanted: Any) -> Events:
    """All that fit, the oldest first."""
    request = audit_pb2.ListAuditEventsRequest(filter=audit_pb2.AuditFilter(**wanted), page_size=50)
    found: Events = []
    while True:
        answer = await api.audit.ListAuditEvents(request, metadata=metadata or await api.admin())
        found += answer.events
        if not answer.next_page_token:
            return found[::-1]
        request.page_token = answer.next_page_token


async def wrong_password(api: Api, username: str) -> None:
    await refused(api.login(username, "not the right password"))


@pytest.mark.requirement("R62")
async def test_an_event_says_who_what_whom_when_from_where_and_how_it_ended(api: Api) -> None:
    carol = await api.create_user("carol")
    session = await api.login("carol")
    admin = bearer((await api.login("root", ADMIN_PASSWORD, audience="identity")).access_token)
    root = (await api.accounts.GetAccount(account_pb2.GetAccountRequest(username="root"), metadata=admin)).account
    request = revocation_pb2.RevokeGrantRequest(grant_id=session.session_id, reason="laptop lost")
    await api.revocations.RevokeGrant(request, metadata=admin)

    [event] = await events(api, admin, action_prefix="grant.end.")
    assert (event.action, event.outcome, event.note) == ("grant.end.revoked", "ok", "laptop lost")
    assert (event.account_id, event.grant_id) == (carol.account_id, session.session_id)
    assert event.caller_account_id == root.account_id
    assert event.caller_grant_id
    assert event.origin == "127.0.0.1"
    assert event.user_agent.startswith("grpc-python-asyncio/")
    assert event.request_id
    assert event.event_time.seconds > 1_700_000_000
    assert not event.erased
    assert [found.event_id for found in await events(api, admin, request_id=event.request_id)] == [event.event_id]


@pytest.mark.requirement("R62")
async def test_every_act_has_its_row(api: Api) -> None:
    admin = await api.admin()
    await api.create_user("carol", "clerk")
    service = await api.create_service("orders", "peer")
    tokens = await api.login("carol")
    renewed = (await api.tokens.Refresh(token_pb2.RefreshRequest(refresh_token=tokens.refresh_token))).tokens
    await api.tokens.Refresh(token_pb2.RefreshRequest(refresh_token=tokens.refresh_token))  # its answer was lost
    await api.tokens.Refresh(token_pb2.RefreshRequest(refresh_token=renewed.refresh_token))
    await refused(api.tokens.Refresh(token_pb2.RefreshRequest(refresh_token=tokens.refresh_token)))  # stolen
    await refused(api.tokens.Refresh(token_pb2.RefreshRequest(refresh_token=renewed.refresh_token)))
    grant = await api.login_service("orders", service.client_secret)
    await api.tokens.Revoke(token_pb2.RevokeRequest(token=grant.access_token))
    own = bearer((await api.login("carol", audience="identity")).access_token)
    await api.sessions.Logout(session_pb2.LogoutRequest(), metadata=own)
    own = bearer((await api.login("carol", audience="identity")).access_token)
    await api.sessions.LogoutEverywhere(session_pb2.LogoutEverywhereRequest(), metadata=own)
    await wrong_password(api, "carol")
    await wrong_password(api, "nobody")
    change = authentication_pb2.ChangePasswordRequest(
        username="carol", current_password=USER_PASSWORD, new_password="another long enough one"
    )
    await api.authentication.ChangePassword(change)
    key = credential_pb2.CreateApiKeyRequest(username="orders", use=credential_pb2.API_KEY_USE_EXCHANGE)
    created = await api.credentials.CreateApiKey(key, metadata=admin)
    revoke = credential_pb2.RevokeCredentialRequest(credential_id=created.credential.credential_id)
    await api.credentials.RevokeCredential(revoke, metadata=admin)
    await api.roles.CreateRole(role_pb2.CreateRoleRequest(name="temp"), metadata=admin)
    update = role_pb2.UpdateRoleRequest(role=role_pb2.Role(name="temp", scopes=["orders.read"]))
    update.update_mask.paths.append("scopes")
    await api.roles.UpdateRole(update, metadata=admin)
    await api.roles.DeleteRole(role_pb2.DeleteRoleRequest(name="temp"), metadata=admin)
    await api.accounts.SetRoles(account_pb2.SetRolesRequest(username="carol", roles=["auditor"]), metadata=admin)
    await api.accounts.DisableAccount(account_pb2.DisableAccountRequest(username="carol"), metadata=admin)
    await refused(api.login("carol", "another long enough one"))
    await api.accounts.EnableAccount(account_pb2.EnableAccountRequest(username="carol"), metadata=admin)
    await api.revocations.RevokeAccount(revocation_pb2.RevokeAccountRequest(username="carol"), metadata=admin)

    root = (await api.accounts.GetAccount(account_pb2.GetAccountRequest(username="root"), metadata=admin)).account
    found = [event for event in await events(api, admin) if event.origin != "local"]
    acts = [(event.action, event.outcome, event.subject) for event in found if event.account_id != root.account_id]
    assert acts == [
        ("account.create", "ok", ""),
        ("account.create", "ok", ""),
        ("session.open", "ok", ""),
        ("session.refresh", "ok", ""),
        ("session.refresh_repeat", "ok", ""),
        ("session.refresh", "ok", ""),
        ("grant.end.refresh_reused", "ok", ""),
        ("session.refresh", "REFRESH_REUSED", ""),
        ("session.refresh", "SESSION_ENDED", ""),
        ("client_secret.use", "ok", ""),
        ("token.revoke", "ok", ""),
        ("session.open", "ok", ""),
        ("grant.end.logged_out", "ok", ""),
        ("session.open", "ok", ""),
        ("account.end_sessions.logged_out", "ok", ""),
        ("session.open", "PASSWORD_WRONG", ""),
        ("session.open", "NAME_UNKNOWN", ""),
        ("password.change", "ok", ""),
        ("session.open", "ok", ""),
        ("api_key.create", "ok", ""),
        ("grant.end.revoked", "ok", ""),
        ("role.create", "ok", "temp"),
        ("role.update", "ok", "temp orders.read"),
        ("role.delete", "ok", "temp"),
        ("account.set_roles", "ok", "auditor"),
        ("account.disable", "ok", ""),
        ("session.open", "ACCOUNT_DISABLED", ""),
        ("account.enable", "ok", ""),
        ("account.revoke", "ok", ""),
    ]


@pytest.mark.requirement("R62")
async def test_guesses_at_an_account_are_found_by_its_name_and_counted(api: Api) -> None:
    await api.create_user("carol")
    for _ in range(3):
        await wrong_password(api, "carol")
    await wrong_password(api, "caroline")
    [guess] = await events(api, username="carol", outcome="refused")
    assert (guess.outcome, guess.attempt_count) == ("PASSWORD_WRONG", 2)  # at least; told at 1, 2, 4, 8
    [other] = await events(api, outcome="NAME_UNKNOWN")
    assert len(guess.name_hash) == len(other.name_hash) == 64
    assert guess.name_hash != other.name_hash
    assert other.account_id == ""


async def clerk(api: Api) -> tuple[account_pb2.Account, Metadata]:
    """An account that may do nothing here, and its credentials."""
    account = await api.create_user("carol", "clerk")
    return account, bearer((await api.login("carol", audience="identity")).access_token)


async def refused_calls(api: Api, **wanted: Any) -> list[tuple[str, str, str]]:
    """Of the refused calls that fit: reason, method, account."""
    assert api.server.refused_calls is not None
    await api.server.refused_calls.written()
    found = await events(api, action_prefix="call.refused", **wanted)
    assert all(event.origin == "127.0.0.1" and event.user_agent and event.request_id for event in found)
    assert all(event.caller_account_id == event.account_id and event.caller_grant_id for event in found)
    return [(event.outcome, event.subject, event.account_id) for event in found]


@pytest.mark.requirement("R62")
async def test_a_call_that_was_refused_to_its_caller_is_found_by_account_and_outcome(api: Api) -> None:
    carol, own = await clerk(api)
    admin = await api.admin()
    root = (await api.accounts.GetAccount(account_pb2.GetAccountRequest(username="root"), metadata=admin)).account
    await refused(api.accounts.ListAccounts(account_pb2.ListAccountsRequest(), metadata=own))
    watch: Any = api.audit.WatchAuditEvents(audit_pb2.WatchAuditEventsRequest(), metadata=own)
    await refused(watch.read())
    forwarded = authentication_pb2.AuthenticateRequest(client_info=authentication_pb2.ClientInfo(ip_address="::1"))
    forwarded.password.username, forwarded.password.password = "carol", USER_PASSWORD
    await refused(api.authentication.Authenticate(forwarded, metadata=own))
    await refused(api.accounts.DisableAccount(account_pb2.DisableAccountRequest(username="root"), metadata=admin))

    by_carol = [
        ("PERMISSION_MISSING", "/identity.v1.AccountService/ListAccounts", carol.account_id),
        ("PERMISSION_MISSING", "/identity.v1.AuditService/WatchAuditEvents", carol.account_id),
        ("PERMISSION_MISSING", "/identity.v1.AuthenticationService/Authenticate", carol.account_id),
    ]
    by_root = [("LAST_ADMIN", "/identity.v1.AccountService/DisableAccount", root.account_id)]
    assert await refused_calls(api, username="carol") == by_carol
    assert await refused_calls(api, caller_username="carol") == by_carol
    assert await refused_calls(api, outcome="PERMISSION_MISSING") == by_carol
    assert await refused_calls(api, outcome="LAST_ADMIN") == by_root
    assert await refused_calls(api, outcome="refused") == by_carol + by_root


@pytest.mark.requirement("R62")
async def test_a_call_refused_to_the_bearer_of_an_api_key_is_found_too(api: Api) -> None:
    service = await api.create_service("orders")
    key = bearer((await api.create_api_key("orders", "identity")).api_key)
    await refused(api.accounts.ListAccounts(account_pb2.ListAccountsRequest(), metadata=key))
    [(reason, _, account_id)] = await refused_calls(api, username="orders")
    assert (reason, account_id) == ("PERMISSION_MISSING", service.account.account_id)


@pytest.mark.requirement("R62")
async def test_a_refused_call_names_the_grant_it_was_made_with(api: Api) -> None:
    await api.create_user("carol", "clerk")
    logins = [await api.login("carol", audience="identity") for _ in range(2)]
    forwarded = authentication_pb2.AuthenticateRequest(client_info=authentication_pb2.ClientInfo(ip_address="::1"))
    forwarded.password.username, forwarded.password.password = "carol", USER_PASSWORD
    for login in logins:
        own = bearer(login.access_token)
        await refused(api.accounts.ListAccounts(account_pb2.ListAccountsRequest(), metadata=own))
        await refused(api.authentication.Authenticate(forwarded, metadata=own))
    assert len(await refused_calls(api)) == 4
    found = await events(api, action_prefix="call.refused")
    for method in ("ListAccounts", "Authenticate"):
        named = [event.caller_grant_id for event in found if event.subject.endswith(method)]
        assert named == [login.session_id for login in logins]


async def read_all(call: Any) -> None:
    async for _ in call:
        pass


@pytest.mark.requirement("R62")
@pytest.mark.parametrize("reason", ["TOKEN_REVOKED", "TOKEN_OUTDATED", "TOKEN_EXPIRED"])
async def test_a_running_call_that_the_guard_ends_leaves_a_row(
    timed_api: Api, server_clock: FixedClock, reason: str
) -> None:
    api = timed_api
    carol, login = await api.create_user("carol", "admin"), await api.login("carol", audience="identity")
    request = audit_pb2.WatchAuditEventsRequest(filter=audit_pb2.AuditFilter(action_prefix="none."))
    watch: Any = api.audit.WatchAuditEvents(request, metadata=bearer(login.access_token))
    method = "/identity.v1.AuditService/WatchAuditEvents"
    await until(lambda: api.server.streams.count(method) == 1)
    admin = await api.admin()
    match reason:
        case "TOKEN_REVOKED":
            revocation = revocation_pb2.RevokeGrantRequest(grant_id=login.session_id)
            await api.revocations.RevokeGrant(revocation, metadata=admin)
        case "TOKEN_OUTDATED":
            await api.accounts.SetRoles(account_pb2.SetRolesRequest(username="carol", roles=[]), metadata=admin)
        case _:
            server_clock.wall += 3_600
    assert (await refusal(read_all(watch))).reason == reason
    assert await refused_calls(api) == []
    [event] = await events(api, action_prefix="call.ended")
    assert (event.outcome, event.subject, event.account_id) == (reason, method, carol.account_id)
    assert (event.caller_account_id, event.caller_grant_id) == (carol.account_id, login.session_id)
    assert event.origin == "127.0.0.1"


async def test_a_call_without_a_good_token_leaves_no_row(api: Api) -> None:
    token = (await api.login("root", ADMIN_PASSWORD, audience="identity")).access_token
    for metadata in ((), bearer("nonsense"), bearer(token[:-2] + "AA")):
        await refused(api.accounts.ListAccounts(account_pb2.ListAccountsRequest(), metadata=metadata))
    assert await refused_calls(api) == []
    assert await events(api, action_prefix="call.") == []


@pytest.mark.requirement("R62")
async def test_a_flood_of_refused_calls_writes_few_rows(timed_api: Api) -> None:
    api = timed_api
    _, own = await clerk(api)

    async def call() -> None:
        await refused(api.accounts.ListAccounts(account_pb2.ListAccountsRequest(), metadata=own))

    for _ in range(20):
        await asyncio.gather(*[call() for _ in range(50)])
    assert len(await refused_calls(api)) == 1
    [event] = await events(api, action_prefix="call.refused")
    assert event.attempt_count == 512  # at least; told at 1, 2, 4 and so on


async def test_a_refusal_stays_what_it_is_when_the_log_cannot_be_written(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, own = await clerk(api)
    assert api.server.house is not None
    audit = api.server.house.stores.audit
    can_go_on = asyncio.Event()

    async def down(*_: Any) -> None:
        await can_go_on.wait()
        raise errors.DependencyDown()

    monkeypatch.setattr(audit, "note_refusal", down)
    error = await refusal(api.accounts.ListAccounts(account_pb2.ListAccountsRequest(), metadata=own))
    assert isinstance(error, errors.PermissionMissing)
    can_go_on.set()
    assert await refused_calls(api) == []
    assert "missing in the audit log: DEPENDENCY_DOWN" in caplog.text


async def test_the_first_signing_key_stands_in_the_log(api: Api) -> None:
    [event] = await events(api, action_prefix="signing_key.")
    assert api.server.house is not None
    assert [key.key_id for key in api.server.house.public_keys] == [event.subject]


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "an account id": ({"account_id": "x"}, "filter.account_id"),
    "a caller's id": ({"caller_account_id": "A" * 23}, "filter.caller_account_id"),
    "a username": ({"username": " x"}, "username"),
    "a grant id": ({"grant_id": "' OR 1=1 --"}, "filter.grant_id"),
    "an action": ({"action_prefix": "%"}, "filter.action_prefix"),
    "a long action": ({"action_prefix": "a" * 65}, "filter.action_prefix"),
    "an outcome": ({"outcome": "Refused"}, "filter.outcome"),
    "a long outcome": ({"outcome": "A" * 65}, "filter.outcome"),
    "an origin": ({"origin": "x" * 129}, "filter.origin"),
    "control characters": ({"origin": "\0"}, "filter.origin"),
    "a request id": ({"request_id": "\n"}, "filter.request_id"),
    "a time before all": ({"start_time": Timestamp(seconds=-1)}, "filter.start_time"),
    "a time after all": ({"end_time": Timestamp(seconds=2**62)}, "filter.end_time"),
    "a broken time": ({"end_time": Timestamp(seconds=1, nanos=-5)}, "filter.end_time"),
    "an end before the start": (
        {"start_time": Timestamp(seconds=5), "end_time": Timestamp(seconds=5)},
        "filter.end_time",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_hostile_filter_is_named(api: Api, what: str) -> None:
    wanted, field = HOSTILE[what]
    request = audit_pb2.ListAuditEventsRequest(filter=audit_pb2.AuditFilter(**wanted))
    error = await refusal(api.audit.ListAuditEvents(request, metadata=await api.admin()))
    assert isinstance(error, errors.InvalidRequest)
    assert error.field == field
    watch: Any = api.audit.WatchAuditEvents(
        audit_pb2.WatchAuditEventsRequest(filter=request.filter), metadata=await api.admin()
    )
    assert isinstance(await refusal(watch.read()), errors.InvalidRequest)


@pytest.mark.parametrize(
    "token", ["x", "////", "LTE=", "MQ", "MS41", "AAAA", "MQAx", "OTk5OTk5OTk5OTk5OTk5OTk5OTk=", "MQ==" * 400, "²"]
)
async def test_a_hostile_page_token_is_refused(api: Api, token: str) -> None:
    request = audit_pb2.ListAuditEventsRequest(page_token=token)
    error = await refusal(api.audit.ListAuditEvents(request, metadata=await api.admin()))
    assert isinstance(error, errors.InvalidRequest)
    assert error.field == "page_token"


async def test_a_name_that_nobody_has_is_not_found(api: Api) -> None:
    request = audit_pb2.ListAuditEventsRequest(filter=audit_pb2.AuditFilter(caller_username="nobody"))
    error = await refusal(api.audit.ListAuditEvents(request, metadata=await api.admin()))
    assert isinstance(error, errors.AccountNotFound)


async def test_the_log_is_for_those_with_the_scope_alone(api: Api) -> None:
    await api.create_user("carol", "clerk")
    metadata = bearer((await api.login("carol", audience="identity")).access_token)
    listing = api.audit.ListAuditEvents(audit_pb2.ListAuditEventsRequest(), metadata=metadata)
    assert isinstance(await refusal(listing), errors.PermissionMissing)
    watch: Any = api.audit.WatchAuditEvents(audit_pb2.WatchAuditEventsRequest(), metadata=metadata)
    assert isinstance(await refusal(watch.read()), errors.PermissionMissing)


# -- watching --------------------------------------------------------------------------------------------------------


async def opened(api: Api, metadata: Metadata, **request: Any) -> tuple[Any, audit_pb2.WatchAuditEventsResponse]:
    """A stream, and its first message."""
    stream: Any = api.audit.WatchAuditEvents(audit_pb2.WatchAuditEventsRequest(**request), metadata=metadata)
    return stream, await stream.read()


async def next_events(stream: Any, count: int) -> Events:
    """The next so many."""
    found: Events = []
    while len(found) < count:
        found += (await stream.read()).events
    return found


@pytest.mark.requirement("R62")
async def test_a_watcher_sees_what_happens_from_now_on(api: Api) -> None:
    admin = await api.admin()
    stream, first = await opened(api, admin)
    assert list(first.events) == []
    assert first.last_event_id == (await events(api, admin))[-1].event_id
    await wrong_password(api, "nobody")
    [event] = await next_events(stream, 1)
    assert (event.action, event.outcome) == ("session.open", "NAME_UNKNOWN")
    assert event.event_id == first.last_event_id + 1
    await wrong_password(api, "nobody-else")
    [event] = await next_events(stream, 1)
    assert event.event_id == first.last_event_id + 2
    stream.cancel()


@pytest.mark.requirement("R62")
async def test_a_watcher_resumes_without_loss_or_repetition(api: Api) -> None:
    admin = await api.admin()
    for number in range(3):
        await wrong_password(api, f"nobody-{number}")
    listed = await events(api, admin)
    stream, first = await opened(api, admin, after_event_id=0)
    found = list(first.events)
    found += await next_events(stream, len(listed) - len(found)) if len(found) < len(listed) else []
    stream.cancel()
    assert found == listed
    stream, again = await opened(api, admin, after_event_id=listed[-2].event_id)
    assert list(again.events) == listed[-1:]
    stream.cancel()


@pytest.mark.parametrize("after", [-1, 1_000_000])
async def test_a_watcher_cannot_begin_where_the_log_is_not(api: Api, after: int) -> None:
    request = audit_pb2.WatchAuditEventsRequest(after_event_id=after)
    watch: Any = api.audit.WatchAuditEvents(request, metadata=await api.admin())
    error = await refusal(watch.read())
    assert isinstance(error, errors.InvalidRequest)
    assert error.field == "after_event_id"


async def test_a_watcher_of_something_rare_hears_how_far_the_log_was_read(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("identity.domain.audit.IDLE_SECONDS", 0.0)
    stream, first = await opened(api, await api.admin(), filter=audit_pb2.AuditFilter(outcome="NO_SUCH_REASON"))
    await wrong_password(api, "nobody")
    while (message := await stream.read()).last_event_id == first.last_event_id:
        assert list(message.events) == []
    assert list(message.events) == []
    stream.cancel()


async def test_a_stream_ends_with_the_token_behind_it(api: Api) -> None:
    tokens = await api.login("root", ADMIN_PASSWORD, audience="identity")
    stream, _ = await opened(api, bearer(tokens.access_token))
    revoke = revocation_pb2.RevokeGrantRequest(grant_id=tokens.session_id)
    await api.revocations.RevokeGrant(revoke, metadata=await api.admin())

    async def until_it_ends() -> None:
        while await stream.read() is not grpc.aio.EOF:
            pass

    assert isinstance(await refusal(until_it_ends()), errors.TokenRevoked)


async def test_a_stream_resumes_elsewhere_when_the_service_stops(api: Api) -> None:
    stream, _ = await opened(api, await api.admin())
    stopping = asyncio.create_task(api.server.stop(grace_seconds=100))  # the test's own limit is 120
    assert "The service is stopping" in str(await refusal(stream.read()))
    await stopping


async def test_a_reader_who_takes_nothing_is_cut(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_service, "SEND_SECONDS", 0.2)
    admin = await api.admin()
    with closing(sqlite3.connect(tmp_path / "identity.db")) as connection:
        copied = "time_ms, action, outcome, account_id, grant_id, caller_account_id, caller_grant_id, subject"
        fill = (
            f"INSERT INTO audit_events ({copied}, request_id, personal_hash) SELECT {copied}, ?, x'' FROM audit_events"
        )
        while connection.execute("SELECT count(*) FROM audit_events").fetchone()[0] < 20_000:
            connection.execute(fill, ["x" * 200])
        connection.commit()
    assert api.server.house is not None
    reader = api.server.house.audit
    stream: Any = api.audit.WatchAuditEvents(audit_pb2.WatchAuditEventsRequest(after_event_id=0), metadata=admin)
    await stream.read()
    while reader._watchers:
        await asyncio.sleep(0.05)

    async def until_it_ends() -> None:
        while await stream.read() is not grpc.aio.EOF:
            pass

    assert isinstance(await refusal(until_it_ends()), errors.DependencyDown)


async def test_only_so_many_watch_at_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("identity.domain.audit.MAXIMUM_WATCHERS", 1)
    admin = await api.admin()
    first, _ = await opened(api, admin)
    second: Any = api.audit.WatchAuditEvents(audit_pb2.WatchAuditEventsRequest(), metadata=admin)
    assert isinstance(await refusal(second.read()), errors.Overloaded)
    first.cancel()
    assert api.server.house is not None
    while api.server.house.audit._watchers:
        await asyncio.sleep(0.01)
    third, _ = await opened(api, admin)
    third.cancel()
