"""Machines log in over the wire: client secrets, API keys, signed assertions. One answer outside, the cause inside."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from identity.config import Settings
from identity.server import Server
from identity.v1 import account_pb2, authentication_pb2, credential_pb2, session_pb2, token_pb2
from identity_client import status
from identity_client.errors import (
    AccountNotFound,
    BadCredentials,
    CredentialAlreadyExists,
    GrantNotFound,
    InvalidRequest,
    ScopeNotGranted,
    TokenOutdated,
    UnknownAudience,
)
from identity_client.tokens import opaque
from tests.assertions import AssertionKey, claims_of
from tests.clients.issuer import FixedClock
from tests.rpc.api import Api, MakeSettings, bearer
from tests.rpc.refusals import answer_of, audited, refusal, refused
from tests.rpc.test_revoke_and_introspect import payload_of

ISSUER = Settings().issuer
EXCHANGE = credential_pb2.API_KEY_USE_EXCHANGE


async def by_secret(api: Api, secret: str, client_id: str = "orders", **fields: Any) -> authentication_pb2.AccessGrant:
    credential = authentication_pb2.ClientSecretCredential(client_id=client_id, client_secret=secret)
    return (await api.authenticate(client_secret=credential, **fields)).access


async def by_key(api: Api, key: str, **fields: Any) -> authentication_pb2.AccessGrant:
    return (await api.authenticate(api_key=authentication_pb2.ApiKeyCredential(api_key=key), **fields)).access


async def by_assertion(api: Api, assertion: str, **fields: Any) -> authentication_pb2.AccessGrant:
    credential = authentication_pb2.ClientAssertionCredential(assertion=assertion)
    return (await api.authenticate(client_assertion=credential, **fields)).access


async def disable(api: Api, username: str) -> None:
    request = account_pb2.DisableAccountRequest(username=username)
    await api.accounts.DisableAccount(request, metadata=await api.admin())


# -- client secrets --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R31")
async def test_during_rotation_two_secrets_live_and_no_call_fails(api: Api) -> None:
    first = await api.create_service("orders", "peer")
    failures: list[BaseException] = []
    done = asyncio.Event()
    held = [first.client_secret]

    async def worker() -> None:
        while not done.is_set():
            try:
                grant = await by_secret(api, held[-1], audience="identity")
                await api.introspect(grant.access_token, bearer(grant.access_token))
            except Exception as error:
                failures.append(error)

    workers = [asyncio.create_task(worker()) for _ in range(4)]
    second = await api.create_client_secret("orders")
    for secret in (first.client_secret, second.client_secret):
        assert (await by_secret(api, secret)).access_token
    held.append(second.client_secret)
    await by_secret(api, second.client_secret)
    done.set()
    await asyncio.gather(*workers)  # whoever began with the first has ended
    assert await api.revoke_credential(first.grant_id) == 1
    assert not failures
    assert isinstance(await refusal(by_secret(api, first.client_secret)), BadCredentials)
    assert (await by_secret(api, second.client_secret)).access_token


@pytest.mark.requirement("R31")
async def test_revoking_one_secret_ends_its_tokens_and_no_others(api: Api) -> None:
    peer = await api.peer()
    first, second = await api.create_client_secret("orders"), await api.create_client_secret("orders")
    tokens = [(await by_secret(api, each.client_secret)).access_token for each in (first, second)]
    await api.revoke_credential(first.credential.credential_id)
    assert [(await api.introspect(token, peer)).active for token in tokens] == [False, True]


async def test_every_wrong_secret_is_answered_alike_and_its_cause_is_in_the_audit_log(api: Api, tmp_path: Path) -> None:
    orders = await api.create_service("orders")
    await api.create_service("billing")
    grant_id, secret = opaque.split_secret(orders.client_secret, opaque.Kind.CLIENT_SECRET)
    key = await api.create_api_key("orders", "orders")
    key_id, key_secret = opaque.split_secret(key.api_key, opaque.Kind.API_KEY)
    encode, kind = opaque.encode_secret, opaque.Kind.CLIENT_SECRET
    ended = await api.create_client_secret("orders")
    await api.revoke_credential(ended.credential.credential_id)
    tries = {
        "CREDENTIAL_UNKNOWN": ("orders", encode(kind, "A" * 22, secret)),
        "SECRET_WRONG": ("orders", encode(kind, grant_id, bytes(len(secret)))),
        "CLIENT_ID_WRONG": ("billing", orders.client_secret),
        "CREDENTIAL_ENDED": ("orders", ended.client_secret),
    }
    errors = [await refused(by_secret(api, text, name)) for name, text in tries.values()]
    assert audited(tmp_path, "client_secret.use") == list(tries)
    errors.append(await refused(by_secret(api, encode(kind, key_id, key_secret))))  # an API key's, in disguise
    errors.append(await refused(by_secret(api, tries["SECRET_WRONG"][1], audience="nowhere")))  # learns no names
    await disable(api, "orders")
    errors.append(await refused(by_secret(api, orders.client_secret)))
    assert len({answer_of(error) for error in errors}) == 1
    assert isinstance(status.from_rpc_error(errors[0]), BadCredentials)


async def test_a_wrong_wish_of_a_machine_is_named_and_leaves_a_trace(api: Api, tmp_path: Path) -> None:
    await api.create_service("orders", "peer")
    secret = (await api.create_client_secret("orders", audiences=["orders"], scopes=["identity.watch"])).client_secret
    await api.create_service("billing")
    for fields, error in (
        ({"audience": "nowhere"}, UnknownAudience),
        ({"audience": "billing"}, InvalidRequest),
        ({"audience": "identity"}, InvalidRequest),
        ({"scopes": ["identity.watch"]}, ScopeNotGranted),
        ({"scopes": ["orders.read"]}, ScopeNotGranted),
    ):
        assert type(await refusal(by_secret(api, secret, **fields))) is error
    assert audited(tmp_path, "client_secret.use") == ["UNKNOWN_AUDIENCE", "INVALID_FIELD", "SCOPE_NOT_GRANTED"]
    assert payload_of((await by_secret(api, secret)).access_token)["aud"] == "orders"


@pytest.mark.parametrize("grant_type", [authentication_pb2.GRANT_TYPE_TOKENS, authentication_pb2.GRANT_TYPE_SESSION])
async def test_machines_get_access_tokens_and_nothing_that_renews_itself(api: Api, grant_type: int) -> None:
    secret = (await api.create_service("orders")).client_secret
    error = await refusal(by_secret(api, secret, grant_type=grant_type))
    assert isinstance(error, InvalidRequest)
    assert error.field == "grant_type"


# -- API keys --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R30")
async def test_a_key_for_exchange_gives_tokens_and_is_none(api: Api) -> None:
    peer = await api.peer()
    await api.create_user("carol", "clerk")
    key = await api.create_api_key("carol", "orders", use=EXCHANGE)
    assert key.api_key.startswith("idk_")
    grant = await by_key(api, key.api_key)
    payload = payload_of(grant.access_token)
    assert (payload["aud"], payload["sid"], payload["roles"]) == ("orders", key.credential.credential_id, ["clerk"])
    assert "auth_time" not in payload
    assert "amr" not in payload
    assert not (await api.introspect(key.api_key, peer)).active
    assert (await api.introspect(grant.access_token, peer)).active


@pytest.mark.requirement("R30")
async def test_a_key_for_bearer_use_is_not_exchanged(api: Api) -> None:
    peer = await api.peer()
    await api.create_user("carol", "clerk")
    key = await api.create_api_key("carol", "orders")
    assert (await api.introspect(key.api_key, peer)).kind == token_pb2.TOKEN_KIND_API_KEY
    error = await refusal(by_key(api, key.api_key))
    assert isinstance(error, InvalidRequest)
    assert error.field == "api_key.api_key"


@pytest.mark.requirement("R30")
async def test_revoking_a_key_ends_it_with_every_token_minted_from_it(api: Api) -> None:
    peer = await api.peer()
    await api.create_user("carol")
    exchanged = await api.create_api_key("carol", "orders", use=EXCHANGE)
    other = await api.create_api_key("carol", "orders", use=EXCHANGE)
    carried = await api.create_api_key("carol", "orders")
    tokens = [(await by_key(api, exchanged.api_key)).access_token for _ in range(3)]
    others = (await by_key(api, other.api_key)).access_token
    for key in (exchanged, carried):
        assert await api.revoke_credential(key.credential.credential_id) == 1
        assert await api.revoke_credential(key.credential.credential_id) == 0
    assert [(await api.introspect(text, peer)).active for text in (*tokens, carried.api_key, others)] == [
        *(False,) * 4,
        True,
    ]
    assert isinstance(await refusal(by_key(api, exchanged.api_key)), BadCredentials)
    assert (await by_key(api, other.api_key)).access_token


@pytest.mark.requirement("R30")
async def test_whoever_finds_a_key_can_revoke_it_by_its_text(api: Api) -> None:
    peer = await api.peer()
    await api.create_user("carol")
    key = await api.create_api_key("carol", "orders")
    await api.tokens.Revoke(token_pb2.RevokeRequest(token=key.api_key))
    assert not (await api.introspect(key.api_key, peer)).active


@pytest.mark.requirement("R30")
async def test_a_key_is_shown_once_and_kept_as_a_hash(api: Api, tmp_path: Path) -> None:
    await api.create_user("carol")
    key = await api.create_api_key("carol", "internal", display_name="night job")
    request = credential_pb2.ListCredentialsRequest(username="carol")
    listed = await api.credentials.ListCredentials(request, metadata=await api.admin())
    assert [each.terms.display_name for each in listed.credentials] == ["night job"]
    _, secret = opaque.split_secret(key.api_key, opaque.Kind.API_KEY)
    files = b"".join(path.read_bytes() for path in tmp_path.glob("identity.db*"))
    assert key.credential.credential_id.encode() in files
    assert secret not in files
    assert key.api_key.encode() not in files
    assert key.api_key not in str(listed)


@pytest.mark.requirement("R30")
async def test_a_key_expires_to_the_second_and_is_not_listed_then(timed_api: Api, server_clock: FixedClock) -> None:
    peer = await timed_api.peer()
    await timed_api.create_user("carol")
    end = Timestamp(seconds=int(server_clock.wall) + 100)
    carried = await timed_api.create_api_key("carol", "orders", expire_time=end)
    exchanged = await timed_api.create_api_key("carol", "orders", use=EXCHANGE, expire_time=end)
    server_clock.wall += 99.9
    assert (await timed_api.introspect(carried.api_key, peer)).expire_time == end
    assert (await by_key(timed_api, exchanged.api_key)).access_token
    server_clock.wall += 0.1
    assert not (await timed_api.introspect(carried.api_key, peer)).active
    assert isinstance(await refusal(by_key(timed_api, exchanged.api_key)), BadCredentials)
    request = credential_pb2.ListCredentialsRequest(username="carol")
    assert not (await timed_api.credentials.ListCredentials(request, metadata=await timed_api.admin())).credentials


@pytest.mark.requirement("R42")
async def test_a_key_without_an_end_says_so(api: Api) -> None:
    peer = await api.peer()
    await api.create_user("carol")
    answer = await api.introspect((await api.create_api_key("carol", "orders")).api_key, peer)
    assert answer.active
    assert not answer.HasField("expire_time")


async def test_what_a_credential_cannot_be_is_named(api: Api) -> None:
    admin = await api.admin()
    await api.create_user("carol")
    await api.create_service("orders", "peer")
    terms = credential_pb2.CredentialTerms
    key, public = AssertionKey(), credential_pb2.CreatePublicKeyRequest
    create_key, create_secret = credential_pb2.CreateApiKeyRequest, credential_pb2.CreateClientSecretRequest
    name = credential_pb2.CreateCertificateIdentityRequest
    private = "-----BEGIN PRIVATE KEY-----\nMIG=\n-----END PRIVATE KEY-----"
    bearer_use = credential_pb2.API_KEY_USE_BEARER
    cases: list[tuple[Any, Any, str]] = [
        (api.credentials.CreateApiKey, create_key(username="carol"), "use"),
        (api.credentials.CreateApiKey, create_key(username="carol", use=bearer_use), "terms.audiences"),
        (api.credentials.CreateApiKey, create_key(use=EXCHANGE), "account"),
        (
            api.credentials.CreateApiKey,
            create_key(username="carol", use=EXCHANGE, terms=terms(audiences=["nowhere"])),
            "terms.audiences",
        ),
        (
            api.credentials.CreateApiKey,
            create_key(username="carol", use=EXCHANGE, terms=terms(expire_time=Timestamp(seconds=1))),
            "terms.expire_time",
        ),
        (
            api.credentials.CreateApiKey,
            create_key(username="carol", use=EXCHANGE, terms=terms(expire_time=Timestamp(seconds=2**33))),
            "terms.expire_time",
        ),
        (
            api.credentials.CreateApiKey,
            create_key(username="carol", use=EXCHANGE, terms=terms(display_name="x" * 129)),
            "terms.display_name",
        ),
        (
            api.credentials.CreateApiKey,
            create_key(username="carol", use=EXCHANGE, terms=terms(scopes=["a b"])),
            "terms.scopes",
        ),
        (api.credentials.CreateClientSecret, create_secret(username="carol"), "account"),
        (api.credentials.CreatePublicKey, public(username="carol", public_key_pem=key.pem), "account"),
        (api.credentials.CreatePublicKey, public(username="orders", public_key_pem=private), "public_key_pem"),
        (api.credentials.CreatePublicKey, public(username="orders", public_key_pem="nonsense"), "public_key_pem"),
        (api.credentials.CreatePublicKey, public(username="orders", public_key_pem="\u00e9"), "public_key_pem"),
        (api.credentials.CreateCertificateIdentity, name(username="orders"), "name"),
        (api.credentials.CreateCertificateIdentity, name(username="orders", spiffe_id="x"), "spiffe_id"),
        (api.credentials.CreateCertificateIdentity, name(username="orders", dns_name="*.x"), "dns_name"),
        (
            api.credentials.RevokeCredential,
            credential_pb2.RevokeCredentialRequest(credential_id="short"),
            "credential_id",
        ),
        (
            api.credentials.ListCredentials,
            credential_pb2.ListCredentialsRequest(username="carol", page_token="x"),
            "page_token",
        ),
        (
            api.credentials.ListCredentials,
            credential_pb2.ListCredentialsRequest(username="carol", page_size=-1),
            "page_size",
        ),
    ]
    for method, request, field in cases:
        error = await refusal(method(request, metadata=admin))
        assert isinstance(error, InvalidRequest), (request, error)
        assert error.field == field, request
    missing = create_key(username="nobody", use=EXCHANGE)
    assert isinstance(await refusal(api.credentials.CreateApiKey(missing, metadata=admin)), AccountNotFound)
    gone = credential_pb2.RevokeCredentialRequest(credential_id="A" * 22)
    assert isinstance(await refusal(api.credentials.RevokeCredential(gone, metadata=admin)), GrantNotFound)


async def test_credentials_are_listed_page_by_page_while_others_come_and_go(api: Api) -> None:
    await api.create_user("carol")
    admin, seen, page_token = await api.admin(), [], ""
    made = [(await api.create_api_key("carol", "internal")).credential.credential_id for _ in range(7)]
    while True:
        request = credential_pb2.ListCredentialsRequest(username="carol", page_size=3, page_token=page_token)
        page = await api.credentials.ListCredentials(request, metadata=admin)
        seen += [each.credential_id for each in page.credentials]
        page_token = page.next_page_token
        if not page_token:
            break
        await api.revoke_credential(seen[-1])
    assert sorted(seen) == sorted(made)


# -- assertions ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def key(timed_api: Api) -> AssertionKey:
    """The registered key of the service `orders`."""
    await timed_api.create_service("orders", "peer")
    key = AssertionKey()
    await timed_api.create_public_key("orders", key.pem)
    return key


@pytest.mark.requirement("R31")
async def test_an_assertion_gives_an_access_token(timed_api: Api, server_clock: FixedClock, key: AssertionKey) -> None:
    text = key.sign(claims_of("orders", ISSUER, server_clock.wall))
    grant = await by_assertion(timed_api, text, audience="identity")
    payload = payload_of(grant.access_token)
    assert (payload["client_id"], payload["aud"]) == ("orders", "identity")
    assert list(grant.scopes) == ["identity.introspect", "identity.watch"]
    request = credential_pb2.ListCredentialsRequest(username="orders")
    listed = await timed_api.credentials.ListCredentials(request, metadata=await timed_api.admin())
    [named] = [each for each in listed.credentials if each.kind == credential_pb2.CREDENTIAL_KIND_PUBLIC_KEY]
    assert (named.key_id, named.credential_id) == (key.public_key.key_id, payload["sid"])


@pytest.mark.requirement("R31")
async def test_every_bad_assertion_is_answered_alike_and_its_cause_is_in_the_audit_log(
    timed_api: Api, server_clock: FixedClock, key: AssertionKey, tmp_path: Path
) -> None:
    now = server_clock.wall
    stranger, billings, ended = AssertionKey(), AssertionKey(), AssertionKey()
    await timed_api.create_service("billing")
    await timed_api.create_public_key("billing", billings.pem)
    ended_id = (await timed_api.create_public_key("orders", ended.pem)).credential_id
    soon = Timestamp(seconds=int(now) + 1)
    expiring = AssertionKey()
    await timed_api.create_public_key("orders", expiring.pem, expire_time=soon)

    def claims(**changes: Any) -> dict[str, object]:
        return claims_of("orders", ISSUER, server_clock.wall, **changes)

    spent = claims(jti="spent")
    assert await by_assertion(timed_api, key.sign(spent))
    await timed_api.revoke_credential(ended_id)
    server_clock.wall += 1
    tries = {
        "ASSERTION_MALFORMED": key.sign(claims(), alg="none"),
        "ASSERTION_KEY_UNKNOWN": stranger.sign(claims()),
        "ASSERTION_SIGNATURE_WRONG": key.sign(claims(), kid=billings.public_key.key_id),
        "ASSERTION_ISSUER_WRONG": billings.sign(claims()),
        "ASSERTION_AUDIENCE_WRONG": key.sign(claims(aud="identity")),
        "ASSERTION_EXPIRED": key.sign(claims(iat=int(now) - 200, exp=int(now) - 10)),
        "ASSERTION_NOT_YET_VALID": key.sign(claims(nbf=int(now) + 60)),
        "ASSERTION_LIVES_TOO_LONG": key.sign(claims(exp=int(now) + 400)),
        "ASSERTION_REPLAYED": key.sign(spent),
        "CREDENTIAL_ENDED": expiring.sign(claims()),
    }
    errors = [await refused(by_assertion(timed_api, text)) for text in tries.values()]
    assert audited(tmp_path, "assertion.use") == ["ok", *tries]
    more = [
        "not.a.jwt",
        key.sign(claims(), jwk={"kty": "EC"}),
        ended.sign(claims()),
        stranger.sign(claims(), kid=key.public_key.key_id),
        key.sign(claims(sub="billing")),
        key.sign(claims(aud="https://elsewhere.test")),
    ]
    errors += [await refused(by_assertion(timed_api, text)) for text in more]
    assert len({answer_of(error) for error in errors}) == 1
    assert isinstance(status.from_rpc_error(errors[0]), BadCredentials)


@pytest.mark.requirement("R31")
async def test_a_used_assertion_is_refused_also_by_a_server_that_was_started_anew(
    make_settings: MakeSettings, server_clock: FixedClock, timed_api: Api, key: AssertionKey
) -> None:
    text = key.sign(claims_of("orders", ISSUER, server_clock.wall))
    results = await asyncio.gather(*(by_assertion(timed_api, text) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(result, authentication_pb2.AccessGrant) for result in results) == 1
    await timed_api.server.stop()
    again = Server(make_settings(), server_clock)
    api = Api(again, await again.start())
    assert isinstance(await refusal(by_assertion(api, text)), BadCredentials)
    assert await by_assertion(api, key.sign(claims_of("orders", ISSUER, server_clock.wall)))
    await api.channel.close()
    await again.stop()


@pytest.mark.requirement("R31")
async def test_revoking_a_key_ends_its_tokens(timed_api: Api, server_clock: FixedClock, key: AssertionKey) -> None:
    peer = await timed_api.peer("billing")
    grant = await by_assertion(timed_api, key.sign(claims_of("orders", ISSUER, server_clock.wall)))
    assert (await timed_api.introspect(grant.access_token, peer)).active
    await timed_api.revoke_credential(grant.grant_id)
    assert not (await timed_api.introspect(grant.access_token, peer)).active


async def test_a_key_stands_for_one_account(timed_api: Api, key: AssertionKey) -> None:
    await timed_api.create_service("billing")
    assert isinstance(await refusal(timed_api.create_public_key("billing", key.pem)), CredentialAlreadyExists)


@pytest.mark.parametrize("kind", ["access token", "refresh token", "session token", "client secret"])
@pytest.mark.requirement("R24")
async def test_what_is_no_assertion_is_refused_like_a_bad_one(api: Api, kind: str) -> None:
    await api.create_user("carol")
    tokens = await api.login("carol")
    text = {
        "access token": tokens.access_token,
        "refresh token": tokens.refresh_token,
        "session token": (await api.open_session("carol")).session_token,
        "client secret": (await api.create_service("orders")).client_secret,
    }[kind]
    assert isinstance(await refusal(by_assertion(api, text)), BadCredentials)


@pytest.mark.requirement("R24")
async def test_a_key_or_secret_in_the_others_field_is_named_as_such(api: Api) -> None:
    await api.create_user("carol")
    secret = (await api.create_service("orders")).client_secret
    key = (await api.create_api_key("carol", "internal", use=EXCHANGE)).api_key
    for call, field in ((by_key(api, secret), "api_key.api_key"), (by_secret(api, key), "client_secret.client_secret")):
        error = await refusal(call)
        assert isinstance(error, InvalidRequest)
        assert error.field == field


async def test_a_credential_that_is_no_session_cannot_log_out(api: Api) -> None:
    await api.create_service("orders")
    secret = (await api.create_client_secret("orders")).client_secret
    token = (await by_secret(api, secret, audience="identity")).access_token
    error = await refusal(api.sessions.Logout(session_pb2.LogoutRequest(), metadata=bearer(token)))
    assert isinstance(error, InvalidRequest)
    await api.sessions.LogoutEverywhere(session_pb2.LogoutEverywhereRequest(), metadata=bearer(token))
    call = api.sessions.ListSessions(session_pb2.ListSessionsRequest(), metadata=bearer(token))
    assert isinstance(await refusal(call), TokenOutdated)
    assert (await by_secret(api, secret)).access_token  # the credential stays
