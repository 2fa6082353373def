"""Canary secrets through every RPC, at debug level: nothing of them in logs, errors, trailers or the database file."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from identity import signing
from identity.v1 import account_pb2, audit_pb2, authentication_pb2, revocation_pb2, token_pb2, trust_pb2
from identity_client.tokens import opaque
from tests.rpc.api import ADMIN_PASSWORD, USER_PASSWORD, Api, Metadata, bearer

CANARY_PASSWORD = "Canary-0f9d2c41-password"
CANARY_WRONG_PASSWORD = "Canary-77b1e0aa-wrong"


class Everything(logging.Handler):
    """Keeps each record as every formatter could show it: text, arguments, traceback and extras."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.text.append(logging.Formatter().format(record) + repr(record.__dict__))


@pytest.fixture
def logs() -> Iterator[Everything]:
    everything = Everything()
    root = logging.getLogger()
    level = root.level
    root.addHandler(everything)
    root.setLevel(logging.DEBUG)
    yield everything
    root.removeHandler(everything)
    root.setLevel(level)


@pytest.mark.requirement("R48")
async def test_no_secret_leaves_through_logs_errors_trailers_or_the_database(
    api: Api, tmp_path: Path, logs: Everything
) -> None:
    secrets, answers = await tell_every_rpc(api)
    assert len(secrets) > 8
    database = b"".join(path.read_bytes() for path in tmp_path.glob("identity.db*"))
    log_text = "\n".join(logs.text)
    assert logs.text, "nothing was logged at debug level: the test sees nothing"
    for name, secret in secrets.items():
        for form in forms(secret):
            assert form not in database, f"{name} stands in the database"
            assert form.decode("latin-1") not in log_text, f"{name} stands in a log line"
            assert not any(form in answer for answer in answers), f"{name} stands in an error or a trailer"


@pytest.mark.requirement("R62")
async def test_no_secret_stands_in_the_audit_log(api: Api) -> None:
    secrets, _ = await tell_every_rpc(api)
    request = audit_pb2.ListAuditEventsRequest(page_size=200)
    log = b""
    while True:
        page = await api.audit.ListAuditEvents(request, metadata=await api.admin())
        log += page.SerializeToString()
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert log.count(b"session.open") > 8
    for name, secret in secrets.items():
        for form in forms(secret):
            assert form not in log, f"{name} stands in the audit log"


def forms(secret: str | bytes) -> set[bytes]:
    """The secret as it is and as encoders would write it."""
    raw = secret.encode() if isinstance(secret, str) else secret
    return {raw, raw.hex().encode(), base64.b64encode(raw).rstrip(b"="), base64.urlsafe_b64encode(raw).rstrip(b"=")}


async def tell_every_rpc(api: Api) -> tuple[dict[str, str | bytes], list[bytes]]:
    """Send the canaries through each RPC, rightly and wrongly; -> the secrets, and all errors and trailers."""
    admin = await api.admin()
    await api.accounts.CreateUser(
        account_pb2.CreateUserRequest(username="canary", password=CANARY_PASSWORD, roles=["admin"]), metadata=admin
    )
    service = await api.create_service("orders", "peer")
    tokens = await api.login("canary", CANARY_PASSWORD)
    grant = await api.login_service("orders", service.client_secret)
    renewed = (await api.tokens.Refresh(token_pb2.RefreshRequest(refresh_token=tokens.refresh_token))).tokens
    secrets: dict[str, str | bytes] = {
        "the password": CANARY_PASSWORD,
        "the wrong password": CANARY_WRONG_PASSWORD,
        "the admin's password": ADMIN_PASSWORD,
        "the client secret": service.client_secret,
        "the client secret's bytes": opaque.split_secret(service.client_secret, opaque.Kind.CLIENT_SECRET)[1],
        "an access token": tokens.access_token,
        "a service's access token": grant.access_token,
        "a refresh token": tokens.refresh_token,
        "its successor": renewed.refresh_token,
        "the private key": private_key(api),
    }
    texts = [secret for secret in secrets.values() if isinstance(secret, str)]
    callers = [admin, bearer(grant.access_token), (), *(bearer(text) for text in texts)]
    answers = [await answer for text in texts for answer in everywhere(api, text, callers)]
    for text in texts:  # last, because some of it takes the callers' own tokens away
        answers += [await answer_of(call) for call in takers(api, text, admin)]
    return secrets, answers


def private_key(api: Api) -> bytes:
    """The raw scalar of the key that signs."""
    assert api.server.house is not None
    active = api.server.house.authenticator._minter._signer
    assert isinstance(active, signing.ActiveSigner)
    signer = active._signer
    der = signer._private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    number = signer._private_key.private_numbers().private_value.to_bytes(32, "big")
    assert number in der
    return number


def everywhere(api: Api, text: str, callers: list[Metadata]) -> list[asyncio.Task[bytes]]:
    """The text in each field of each RPC that could take it, by every caller."""
    password = authentication_pb2.PasswordCredential
    secret = authentication_pb2.ClientSecretCredential
    calls: list[tuple[Any, Any]] = [
        (api.authentication.Authenticate, authentication_pb2.AuthenticateRequest(password=password(username=text))),
        (
            api.authentication.Authenticate,
            authentication_pb2.AuthenticateRequest(password=password(username=text[:100], password=USER_PASSWORD)),
        ),
        (
            api.authentication.Authenticate,
            authentication_pb2.AuthenticateRequest(password=password(username="canary", password=text[:1000])),
        ),
        (
            api.authentication.Authenticate,
            authentication_pb2.AuthenticateRequest(client_secret=secret(client_id=text[:100], client_secret=text)),
        ),
        (
            api.authentication.Authenticate,
            authentication_pb2.AuthenticateRequest(client_secret=secret(client_id="nobody", client_secret=text)),
        ),
        (api.tokens.Introspect, token_pb2.IntrospectRequest(token=text)),
        (api.trust.CheckRevocation, trust_pb2.CheckRevocationRequest(tokens=[trust_pb2.TokenIdentity(token_id=text)])),
        (api.accounts.CreateUser, account_pb2.CreateUserRequest(username=text, password=text)),
        (api.accounts.CreateServiceAccount, account_pb2.CreateServiceAccountRequest(username=text)),
        (api.accounts.GetAccount, account_pb2.GetAccountRequest(username=text[:100])),
        (api.accounts.SetRoles, account_pb2.SetRolesRequest(username="canary", roles=[text])),
        (api.accounts.ListAccounts, account_pb2.ListAccountsRequest(page_token=text)),
        *(
            (api.audit.ListAuditEvents, audit_pb2.ListAuditEventsRequest(filter=wanted))
            for wanted in filters(text[:100])
        ),
        (api.audit.ListAuditEvents, audit_pb2.ListAuditEventsRequest(page_token=text)),
        (api.revocations.RevokeGrant, revocation_pb2.RevokeGrantRequest(grant_id=text)),
        (api.revocations.RevokeAccount, revocation_pb2.RevokeAccountRequest(username=text[:100])),
    ]
    return [
        asyncio.ensure_future(answer_of(method(request, metadata=metadata)))
        for method, request in calls
        for metadata in callers[:3]
    ] + [asyncio.ensure_future(answer_of(api.trust.GetKeys(trust_pb2.GetKeysRequest(), metadata=m))) for m in callers]


def filters(text: str) -> Iterator[audit_pb2.AuditFilter]:
    """The text in each field of a filter."""
    for field in ("account_id", "username", "action_prefix", "outcome", "grant_id", "origin", "request_id"):
        wanted = audit_pb2.AuditFilter()
        setattr(wanted, field, text)
        yield wanted


def takers(api: Api, text: str, admin: Metadata) -> Iterator[Any]:
    """The text in the RPCs that renew, revoke, disable and watch."""
    yield api.tokens.Refresh(token_pb2.RefreshRequest(refresh_token=text))
    yield api.tokens.Revoke(token_pb2.RevokeRequest(token=text))
    yield api.revocations.RevokeToken(
        revocation_pb2.RevokeTokenRequest(token=text, reason=f"found {text}"[:256]), metadata=admin
    )
    yield api.accounts.EnableAccount(account_pb2.EnableAccountRequest(username=text[:100]), metadata=admin)
    yield api.accounts.DisableAccount(account_pb2.DisableAccountRequest(username=text[:100]), metadata=admin)
    watch: Any = api.trust.WatchTrust(trust_pb2.WatchTrustRequest(epoch=text, version=-1), metadata=admin)
    yield watch.read()


async def answer_of(call: grpc.aio.UnaryUnaryCall[Any, Any]) -> bytes:
    """Everything that came back besides a message."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        parts = [error.details() or "", *(f"{key}{value!r}" for key, value in error.trailing_metadata() or ())]
        return "\n".join(parts).encode("utf-8", "surrogateescape") + b"".join(
            value if isinstance(value, bytes) else value.encode() for _, value in error.trailing_metadata() or ()
        )
    trailers = await call.trailing_metadata()
    return b"".join(value if isinstance(value, bytes) else str(value).encode() for _, value in trailers)
