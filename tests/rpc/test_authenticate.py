"""Logging in, over the wire."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from identity.domain.passwords import PasswordHasher
from identity.house import LOCAL_ACT
from identity.server import Server
from identity.v1 import account_pb2, authentication_pb2
from identity_client import status
from identity_client.errors import (
    BadCredentials,
    DependencyDown,
    InvalidRequest,
    Overloaded,
    PermissionMissing,
    ScopeNotGranted,
    UnknownAudience,
    WrongAudience,
)
from tests.rpc.api import ADMIN_PASSWORD, USER_PASSWORD, Api, MakeSettings, bearer
from tests.rpc.refusals import refused


async def test_a_password_gives_tokens_by_default(api: Api) -> None:
    tokens = await api.login("root", ADMIN_PASSWORD, audience="identity")
    assert tokens.access_token.count(".") == 2
    assert tokens.refresh_token.startswith("idr_")
    assert list(tokens.scopes) == ["identity.admin", "identity.admin.read", "identity.audit"]


async def test_a_password_gives_an_access_token_alone_when_asked(api: Api) -> None:
    response = await api.authentication.Authenticate(
        authentication_pb2.AuthenticateRequest(
            password=authentication_pb2.PasswordCredential(username="root", password=ADMIN_PASSWORD),
            grant_type=authentication_pb2.GRANT_TYPE_ACCESS_TOKEN,
        )
    )
    assert response.WhichOneof("result") == "access"


async def test_a_client_secret_gives_an_access_token_with_the_service_as_client(api: Api) -> None:
    service = await api.create_service("orders", "peer")
    grant = await api.login_service("orders", service.client_secret)
    assert grant.grant_id == service.grant_id
    assert list(grant.scopes) == ["identity.introspect", "identity.watch"]


@pytest.mark.parametrize("spelling", ["ROOT", "Root", "\uff52\uff4f\uff4f\uff54"])
async def test_a_username_is_the_same_however_it_is_typed(api: Api, spelling: str) -> None:
    assert (await api.login(spelling, ADMIN_PASSWORD)).session_id


@pytest.mark.requirement("R50")
async def test_unknown_wrong_and_disabled_are_refused_with_equal_bytes(api: Api) -> None:
    await api.create_user("carol")
    await api.create_user("dave")
    await api.accounts.DisableAccount(account_pb2.DisableAccountRequest(username="dave"), metadata=await api.admin())
    errors = [
        await refused(api.login("nobody", USER_PASSWORD)),
        await refused(api.login("carol", "the wrong password")),
        await refused(api.login("dave", USER_PASSWORD)),
    ]
    assert all(isinstance(status.from_rpc_error(error), BadCredentials) for error in errors)
    answers = {(error.code(), error.details(), tuple(error.trailing_metadata() or ())) for error in errors}
    assert len(answers) == 1


@pytest.mark.requirement("R50")
async def test_a_log_in_brings_the_hash_to_todays_cost(make_settings: MakeSettings) -> None:
    hashes: list[str] = []
    for memory_kib in (64, 128, 128):
        server = Server(make_settings(hash_memory_kib=memory_kib))
        api = Api(server, await server.start())
        assert server.house is not None
        if not hashes:
            await server.house.accounts.create_user("carol", USER_PASSWORD, (), LOCAL_ACT)
        assert (await api.login("carol")).access_token
        record = await server.house.stores.accounts.find_password("carol")
        assert record is not None
        hashes.append(record.password_hash)
        await api.channel.close()
        await server.stop()
    assert [text.split("$")[3] for text in hashes] == ["m=64,t=1,p=1", "m=128,t=1,p=1", "m=128,t=1,p=1"]
    assert hashes[1] == hashes[2]


@pytest.mark.requirement("R50")
@pytest.mark.parametrize("failure", [DependencyDown, Overloaded])
async def test_a_hash_that_cannot_be_renewed_now_does_not_undo_the_log_in(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, failure: type[Exception]
) -> None:
    server = Server(make_settings())
    api = Api(server, await server.start())
    assert server.house is not None
    await server.house.accounts.create_user("carol", USER_PASSWORD, (), LOCAL_ACT)

    async def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(PasswordHasher, "is_outdated", lambda *_: True)
    monkeypatch.setattr(server.house.stores.accounts, "replace_hash", fail)
    assert (await api.login("carol")).access_token
    await api.channel.close()
    await server.stop()


async def test_a_service_cannot_log_in_with_anothers_secret(api: Api) -> None:
    await api.create_service("orders")
    other = await api.create_service("billing")
    error = await refused(api.login_service("orders", other.client_secret))
    assert isinstance(status.from_rpc_error(error), BadCredentials)


async def test_a_disabled_service_cannot_log_in_until_it_is_enabled(api: Api) -> None:
    service = await api.create_service("orders")
    admin = await api.admin()
    await api.accounts.DisableAccount(account_pb2.DisableAccountRequest(username="orders"), metadata=admin)
    error = await refused(api.login_service("orders", service.client_secret))
    assert isinstance(status.from_rpc_error(error), BadCredentials)
    await api.accounts.EnableAccount(account_pb2.EnableAccountRequest(username="orders"), metadata=admin)
    assert (await api.login_service("orders", service.client_secret)).access_token


async def test_an_audience_must_be_known(api: Api) -> None:
    error = await refused(api.login("root", ADMIN_PASSWORD, audience="nowhere"))
    assert isinstance(status.from_rpc_error(error), UnknownAudience)


async def test_who_may_not_log_in_learns_nothing_about_audiences(api: Api) -> None:
    await api.create_user("dave")
    await api.accounts.DisableAccount(account_pb2.DisableAccountRequest(username="dave"), metadata=await api.admin())
    for username, password in (("root", "the wrong password"), ("dave", USER_PASSWORD), ("nobody", USER_PASSWORD)):
        error = await refused(api.login(username, password, audience="nowhere"))
        assert isinstance(status.from_rpc_error(error), BadCredentials)


async def test_scopes_can_be_narrowed_and_not_widened(api: Api) -> None:
    narrow = await api.login("root", ADMIN_PASSWORD, "identity", scopes=("identity.audit",))
    assert list(narrow.scopes) == ["identity.audit"]
    error = await refused(api.login("root", ADMIN_PASSWORD, "identity", scopes=("identity.watch",)))
    assert isinstance(status.from_rpc_error(error), ScopeNotGranted)


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("audience", ["", "internal", "orders"])
async def test_what_an_admin_may_do_here_does_not_stand_in_a_token_for_others(api: Api, audience: str) -> None:
    await api.create_service("orders")
    tokens = await api.login("root", ADMIN_PASSWORD, audience)
    assert list(tokens.scopes) == []
    call = api.accounts.ListAccounts(account_pb2.ListAccountsRequest(), metadata=bearer(tokens.access_token))
    assert isinstance(status.from_rpc_error(await refused(call)), PermissionMissing | WrongAudience)
    asked = await refused(api.login("root", ADMIN_PASSWORD, audience, scopes=("identity.admin",)))
    assert isinstance(status.from_rpc_error(asked), ScopeNotGranted)


async def test_right_credentials_with_a_wrong_wish_leave_a_trace(api: Api, tmp_path: Path) -> None:
    await refused(api.login("root", ADMIN_PASSWORD, audience="nowhere"))
    await refused(api.login("root", ADMIN_PASSWORD, "identity", scopes=("identity.watch",)))
    with closing(sqlite3.connect(tmp_path / "identity.db")) as connection:
        outcomes = connection.execute("SELECT outcome FROM audit_events WHERE action = 'session.open'").fetchall()
    assert [outcome for (outcome,) in outcomes] == ["UNKNOWN_AUDIENCE", "SCOPE_NOT_GRANTED"]


@pytest.mark.parametrize(
    ("request_text", "field"),
    [
        ({}, "credential"),
        ({"password": {}}, "password.username"),
        ({"password": {"username": "root"}}, "password.password"),
        ({"password": {"username": "a" * 129, "password": "x"}}, "password.username"),
        ({"password": {"username": "root", "password": "x" * 1025}}, "password.password"),
        ({"password": {"username": "root", "password": "line\nbreak"}}, "password.password"),
        ({"client_secret": {"client_id": "orders"}}, "client_secret.client_secret"),
        ({"client_secret": {"client_id": "orders", "client_secret": "idc_typo"}}, "client_secret.client_secret"),
        ({"client_secret": {"client_id": "o", "client_secret": "x"}, "grant_type": 1}, "grant_type"),
        ({"password": {"username": "root", "password": "x"}, "grant_type": 99}, "grant_type"),
        ({"password": {"username": "root", "password": "x"}, "audience": "a" * 129}, "audience"),
        ({"password": {"username": "root", "password": "x"}, "scopes": ["s" * 65]}, "scopes"),
    ],
)
async def test_a_bad_field_is_named(api: Api, request_text: dict[str, object], field: str) -> None:
    request = authentication_pb2.AuthenticateRequest(**request_text)  # type: ignore[arg-type]
    error = status.from_rpc_error(await refused(api.authentication.Authenticate(request)))
    assert isinstance(error, InvalidRequest)
    assert error.field == field
