"""Ending many sessions in one call, the list of what was taken back, and why a text is good or not."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from identity.server import Server
from identity.signing import open_key
from identity.storage.sealing import MasterKey
from identity.v1 import (
    account_pb2,
    authentication_pb2,
    credential_pb2,
    revocation_pb2,
    role_pb2,
    session_pb2,
    token_pb2,
)
from identity_client.errors import AccountNotFound, InvalidRequest, SessionEnded, TokenOutdated, TokenRevoked
from identity_client.tokens import opaque
from tests.rpc.api import ADMIN_PASSWORD, USER_PASSWORD, Api, MakeSettings, MovableClock, bearer, prepare
from tests.rpc.refusals import refusal

FAILED, PASSED = revocation_pb2.CHECK_OUTCOME_FAILED, revocation_pb2.CHECK_OUTCOME_PASSED


async def revoke_sessions(api: Api, *, dry_run: bool = False, **conditions: Any) -> int:
    request = revocation_pb2.RevokeSessionsRequest(
        filter=revocation_pb2.SessionFilter(**conditions), dry_run=dry_run, reason="breach"
    )
    return (await api.revocations.RevokeSessions(request, metadata=await api.admin())).ended_grant_count


async def open_session(api: Api, username: str) -> str:
    """-> a session token for this service."""
    request = authentication_pb2.AuthenticateRequest(
        password=authentication_pb2.PasswordCredential(username=username, password=USER_PASSWORD),
        grant_type=authentication_pb2.GRANT_TYPE_SESSION,
        audience="identity",
    )
    return (await api.authentication.Authenticate(request)).session.session_token


# -- many sessions ---------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R6")
async def test_one_call_logs_everyone_out_and_nothing_issued_before_works_afterwards(api: Api) -> None:
    for name in ("carol", "dave"):
        await api.create_user(name)
    service = await api.create_service("orders", "peer")
    tokens = [await api.login(name, audience="identity") for name in ("carol", "dave", "carol")]
    texts = [each.access_token for each in tokens] + [await open_session(api, "dave")]
    admin = await api.admin()
    request = revocation_pb2.RevokeSessionsRequest(filter=revocation_pb2.SessionFilter(all=True), reason="breach")
    live = await revoke_sessions(api, all=True, dry_run=True)
    answer = await api.revocations.RevokeSessions(request, metadata=admin)
    assert answer.ended_grant_count == live
    for text in (*texts, admin[0][1].removeprefix("Bearer ")):
        call = api.sessions.ListSessions(session_pb2.ListSessionsRequest(), metadata=bearer(text))
        assert isinstance(await refusal(call), TokenOutdated | TokenRevoked)
    for each in tokens:
        refresh = api.tokens.Refresh(token_pb2.RefreshRequest(refresh_token=each.refresh_token))
        assert isinstance(await refusal(refresh), SessionEnded)
    assert (await api.login("carol")).access_token
    assert (await api.login_service("orders", service.client_secret)).access_token  # a credential is no session


@pytest.mark.requirement("R6")
async def test_more_sessions_than_one_part_end_in_one_call(api: Api, tmp_path: Path) -> None:
    await api.create_user("carol")
    session = await api.login("carol")
    with closing(sqlite3.connect(tmp_path / "identity.db")) as connection, connection:
        columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(grants)") if name != "grant_id"]
        names = ", ".join(columns)
        connection.executemany(
            f"INSERT INTO grants (grant_id, {names}) SELECT ?, {names} FROM grants WHERE grant_id = ?",
            [(f"{number:021}A", session.session_id) for number in range(1_200)],
        )
    assert await revoke_sessions(api, username="carol", dry_run=True) == 1_201
    assert await revoke_sessions(api, username="carol") == 1_201
    assert await revoke_sessions(api, username="carol") == 0


async def test_a_dry_run_ends_nothing_and_leaves_no_trace(api: Api, tmp_path: Path) -> None:
    await api.create_user("carol")
    tokens = await api.login("carol", audience="identity")
    assert await revoke_sessions(api, username="CAROL", dry_run=True) == 1
    call = api.sessions.ListSessions(session_pb2.ListSessionsRequest(), metadata=bearer(tokens.access_token))
    assert len((await call).sessions) == 1
    with closing(sqlite3.connect(tmp_path / "identity.db")) as connection:
        assert connection.execute("SELECT count(*) FROM audit_events WHERE action = 'sessions.revoke'").fetchone() == (
            0,
        )


async def test_sessions_end_by_place_and_time(api: Api) -> None:
    await api.create_user("carol")
    await api.login("carol")
    long_ago, soon = Timestamp(seconds=int(time.time()) - 3_600), Timestamp(seconds=int(time.time()) + 60)
    assert await revoke_sessions(api, username="carol", issued_before=long_ago) == 0
    assert await revoke_sessions(api, username="carol", origin="192.0.2.0/24") == 0
    assert await revoke_sessions(api, username="carol", origin="127.0.0.0/8", issued_before=soon) == 1


@pytest.mark.parametrize(
    ("conditions", "field"),
    [
        ({}, "filter"),
        ({"all": False}, "filter"),
        ({"all": True, "origin": "192.0.2.7"}, "filter"),
        ({"all": True, "username": "carol"}, "filter"),
        ({"origin": "nowhere"}, "filter.origin"),
        ({"origin": "192.0.2.7/24"}, "filter.origin"),
        ({"origin": "192.0.2.0/33"}, "filter.origin"),
        ({"origin": "1" * 4_000}, "filter.origin"),
        ({"account_id": "short"}, "filter.account_id"),
        ({"username": ""}, "username"),
    ],
)
async def test_a_filter_that_is_not_meant_so_ends_nothing(api: Api, conditions: dict[str, Any], field: str) -> None:
    error = await refusal(revoke_sessions(api, **conditions))
    assert isinstance(error, InvalidRequest)
    assert error.field == field


async def test_sessions_of_an_unknown_account_are_not_everyones(api: Api) -> None:
    assert isinstance(await refusal(revoke_sessions(api, username="nobody")), AccountNotFound)


# -- the list of revocations -----------------------------------------------------------------------------------------


async def test_revocations_are_listed_by_kind_page_by_page_while_more_come(api: Api) -> None:
    carol = await api.create_user("carol", "clerk")
    tokens = [await api.login("carol", audience="identity") for _ in range(4)]
    admin = await api.admin()

    async def page(token: str = "", kind: int = 0, size: int = 2) -> revocation_pb2.ListRevocationsResponse:
        request = revocation_pb2.ListRevocationsRequest(kind=kind, page_size=size, page_token=token)  # type: ignore[arg-type]
        return await api.revocations.ListRevocations(request, metadata=admin)

    for each in tokens[:3]:
        await api.tokens.Revoke(token_pb2.RevokeRequest(token=each.access_token))
    first = await page(kind=revocation_pb2.REVOCATION_KIND_TOKEN)
    await api.tokens.Revoke(token_pb2.RevokeRequest(token=tokens[3].access_token))
    rest = await page(first.next_page_token, revocation_pb2.REVOCATION_KIND_TOKEN)
    assert [each.version for each in (*first.revocations, *rest.revocations)] == [3, 2, 1]
    assert not rest.next_page_token
    await api.tokens.Revoke(token_pb2.RevokeRequest(token=tokens[0].refresh_token))
    await api.accounts.SetRoles(account_pb2.SetRolesRequest(username="carol"), metadata=admin)
    newest = await page(size=2)
    by_account, by_grant = newest.revocations
    assert (by_account.account_id, by_account.minimum_generation) == (carol.account_id, 2)
    assert (by_grant.kind, by_grant.grant_id) == (revocation_pb2.REVOCATION_KIND_GRANT, tokens[0].session_id)
    assert not (await page(kind=revocation_pb2.REVOCATION_KIND_KEY)).revocations


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"kind": 9}, "kind"),
        ({"page_size": 1_001}, "page_size"),
        ({"page_token": "!"}, "page_token"),
        ({"page_token": "LTE="}, "page_token"),
        ({"page_token": "MTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5"}, "page_token"),
    ],
)
async def test_a_hostile_page_of_revocations_is_refused(api: Api, fields: dict[str, Any], field: str) -> None:
    request = revocation_pb2.ListRevocationsRequest(**fields)
    error = await refusal(api.revocations.ListRevocations(request, metadata=await api.admin()))
    assert isinstance(error, InvalidRequest)
    assert error.field == field


# -- explanations ----------------------------------------------------------------------------------------------------


async def explain(api: Api, text: str) -> revocation_pb2.ExplainTokenResponse:
    request = revocation_pb2.ExplainTokenRequest(token=text)
    answer = await api.revocations.ExplainToken(request, metadata=await api.admin())
    assert text not in str(answer), "the text was repeated"
    return answer


def failures(answer: revocation_pb2.ExplainTokenResponse) -> dict[str, str]:
    """Failed check -> reason."""
    assert answer.good == all(check.outcome == PASSED for check in answer.checks)
    return {check.name: check.reason for check in answer.checks if check.outcome == FAILED}


async def test_a_good_text_of_each_kind_is_explained(api: Api) -> None:
    carol = await api.create_user("carol", "clerk")
    tokens, session = await api.login("carol"), await open_session(api, "carol")
    secret = (await api.create_service("orders", "peer")).client_secret
    for text, kind in (
        (tokens.access_token, revocation_pb2.EXPLAINED_KIND_ACCESS_TOKEN),
        (tokens.refresh_token, revocation_pb2.EXPLAINED_KIND_REFRESH_TOKEN),
        (session, revocation_pb2.EXPLAINED_KIND_SESSION_TOKEN),
        (secret, revocation_pb2.EXPLAINED_KIND_CLIENT_SECRET),
    ):
        answer = await explain(api, text)
        assert (answer.kind, answer.good, failures(answer)) == (kind, True, {})
        assert (answer.account_id == carol.account_id) == (text != secret)
    answer = await explain(api, tokens.access_token)
    assert (answer.grant_id, list(answer.audiences), list(answer.roles)) == (tokens.session_id, ["internal"], ["clerk"])


async def test_an_access_token_is_told_everything_that_speaks_against_it(api: Api) -> None:
    await api.create_user("eve", "admin", "clerk")
    token = (await api.login("eve")).access_token
    admin = await api.admin()
    header, payload, _ = token.split(".")
    assert failures(await explain(api, f"{header}.{payload}.{'A' * 86}"))["signature"] == "BAD_SIGNATURE"
    assert failures(await explain(api, f"{token} ")) == {"form": "TOKEN_MALFORMED"}
    await api.tokens.Revoke(token_pb2.RevokeRequest(token=token))
    assert failures(await explain(api, token)) == {"revocation": "TOKEN_REVOKED"}
    await api.accounts.SetRoles(account_pb2.SetRolesRequest(username="eve", roles=["clerk"]), metadata=admin)
    assert failures(await explain(api, token)) == {"revocation": "TOKEN_REVOKED", "account": "TOKEN_OUTDATED"}
    await api.accounts.DisableAccount(account_pb2.DisableAccountRequest(username="eve"), metadata=admin)
    assert failures(await explain(api, token)) == dict.fromkeys(("revocation", "grant", "account"), "TOKEN_REVOKED")


async def test_what_only_the_verifier_refuses_is_not_called_good(api: Api, tmp_path: Path) -> None:
    house = api.server.house
    assert house is not None
    claims = house.verifier.verify_any_audience((await api.login("root", ADMIN_PASSWORD)).access_token)
    [record] = await house.stores.signing_keys.list_keys()
    signer = open_key(record, MasterKey.from_file(tmp_path / "master.key"))
    too_long_lived = signer.sign(claims._replace(expire_time=claims.issue_time + 7_200))
    assert failures(await explain(api, too_long_lived)) == {"verifier": "TOKEN_MALFORMED"}


async def test_a_narrowed_role_is_named(api: Api) -> None:
    admin = await api.admin()
    await api.roles.CreateRole(
        role_pb2.CreateRoleRequest(name="seller", scopes=["orders.read", "orders.write"]), metadata=admin
    )
    await api.create_user("carol", "seller")
    token = (await api.login("carol")).access_token
    request = role_pb2.UpdateRoleRequest(role=role_pb2.Role(name="seller", scopes=["orders.read"]))
    request.update_mask.paths.append("scopes")
    await api.roles.UpdateRole(request, metadata=admin)
    answer = await explain(api, token)
    assert failures(answer) == {"roles": "TOKEN_OUTDATED"}
    assert "seller" in next(check.explanation for check in answer.checks if check.name == "roles")


async def test_times_are_explained(make_settings: MakeSettings) -> None:
    clock = MovableClock()
    server = Server(make_settings(), clock)
    api = Api(server, await server.start())
    assert server.house is not None
    await prepare(server.house)
    tokens = await api.login("root", ADMIN_PASSWORD)
    explainer = server.house.explainer
    clock.time += 605
    assert [check.reason for check in (await explainer.explain(tokens.access_token)).checks if check.reason] == [
        "TOKEN_EXPIRED"
    ]
    clock.time -= 700
    assert [check.reason for check in (await explainer.explain(tokens.access_token)).checks if check.reason] == [
        "TOKEN_NOT_YET_VALID"
    ]
    clock.time += 20 * 86_400
    told = await explainer.explain(tokens.refresh_token)
    assert [(check.name, check.reason) for check in told.checks if check.reason] == [("grant", "SESSION_EXPIRED")]
    await api.channel.close()
    await server.stop()


async def test_a_spent_refresh_token_is_explained_and_its_session_goes_on(api: Api) -> None:
    await api.create_user("carol")
    texts = [(await api.login("carol")).refresh_token]
    for _ in range(2):
        answer = await api.tokens.Refresh(token_pb2.RefreshRequest(refresh_token=texts[-1]))
        texts.append(answer.tokens.refresh_token)
    assert failures(await explain(api, texts[0])) == {"use": "REFRESH_REUSED"}
    assert failures(await explain(api, texts[1])) == {}
    assert failures(await explain(api, texts[2])) == {}
    assert await api.tokens.Refresh(token_pb2.RefreshRequest(refresh_token=texts[2]))


@pytest.mark.parametrize("kind", list(opaque.Kind))
async def test_an_invented_text_fails_for_its_secret_and_a_mistyped_one_for_its_form(
    api: Api, kind: opaque.Kind
) -> None:
    if kind is opaque.Kind.REFRESH:
        invented, reason = opaque.encode_refresh("A" * 22, 0, bytes(32)), "REFRESH_INVALID"
    else:
        invented = opaque.encode_secret(kind, "A" * 22, bytes(32))
        reason = "BAD_CREDENTIALS" if kind is opaque.Kind.CLIENT_SECRET else "TOKEN_REVOKED"
    answer = await explain(api, invented)
    assert failures(answer) == {"secret": reason}
    assert not answer.account_id
    assert list(failures(await explain(api, invented[:-1] + "_"))) == ["form"]


async def test_another_accounts_grant_id_with_a_wrong_secret_tells_nothing(api: Api) -> None:
    service = await api.create_service("orders", "peer")
    wrong = opaque.encode_secret(opaque.Kind.CLIENT_SECRET, service.grant_id, bytes(32))
    answer = await explain(api, wrong)
    assert failures(answer) == {"secret": "BAD_CREDENTIALS"}
    assert not answer.account_id
    assert not answer.roles


async def test_an_explanation_notes_no_use(api: Api, tmp_path: Path) -> None:
    request = credential_pb2.CreateApiKeyRequest(
        username="root",
        use=credential_pb2.API_KEY_USE_BEARER,
        terms=credential_pb2.CredentialTerms(audiences=["identity"]),
    )
    key = await api.credentials.CreateApiKey(request, metadata=await api.admin())
    admin = await api.admin()
    with closing(sqlite3.connect(tmp_path / "identity.db")) as connection:
        before = list(connection.iterdump())
        told = revocation_pb2.ExplainTokenRequest(token=key.api_key)
        assert (await api.revocations.ExplainToken(told, metadata=admin)).good
        changed = set(connection.iterdump()) ^ set(before)
    assert all("audit_seals" in line or "sqlite_sequence" in line for line in changed), changed


@pytest.mark.parametrize("text", ["nonsense", "not.a-token", "....", "\u00fcber", "0" * 4_096])
async def test_what_is_no_token_at_all_is_said_to_be_none(api: Api, text: str) -> None:
    answer = await explain(api, text)
    assert answer.kind == revocation_pb2.EXPLAINED_KIND_UNSPECIFIED
    assert failures(answer) == {"form": "TOKEN_MALFORMED"}
