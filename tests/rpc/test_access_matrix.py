"""Every method with every kind of credential, against a table that was written by hand: access.csv.

A cell is the reason of the guard's refusal, or `runs`: then the handler is called, whatever it answers to an empty
request. The handlers are counted by an interceptor that stands between them and the guard.
"""

from __future__ import annotations

import csv
import inspect
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from identity.domain.grants import ApiKeyUse, CredentialTerms
from identity.domain.roles import KNOWN_OWN_SCOPES
from identity.domain.values import AccountRef
from identity.house import LOCAL_ACT
from identity.server import CONTRACT, Server
from identity.signing import open_key
from identity.storage.sealing import MasterKey
from identity.v1 import access_pb2, authentication_pb2, revocation_pb2
from identity_client import status
from identity_client.tokens.claims import Claims
from tests.rpc.api import USER_PASSWORD, Api, MakeSettings, prepare

TABLE = Path(__file__).with_name("access.csv")
METHODS: dict[str, MethodDescriptor] = {
    f"{service.name}/{method.name}": method
    for module in CONTRACT
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
ROWS = {row["method"]: row for row in csv.DictReader(TABLE.read_text().splitlines())}
KINDS = [name for name in next(iter(ROWS.values())) if name not in ("method", "scope")]


class Counting(grpc.aio.ServerInterceptor):
    """Stands next to the handlers, and counts how often each is called."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None
        if handler.response_streaming:

            async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
                self.calls[method] += 1
                responses = handler.unary_stream(request, context)
                if inspect.isawaitable(responses):
                    await responses  # it writes its responses itself
                    return
                async for response in responses:
                    yield response

            return grpc.unary_stream_rpc_method_handler(
                stream, handler.request_deserializer, handler.response_serializer
            )

        async def call(request: Any, context: Any) -> Any:
            self.calls[method] += 1
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)


@dataclass
class Place:
    """A server whose handlers are counted, and a user who may have every scope."""

    api: Api
    counting: Counting
    master_key_file: str


@pytest.fixture
async def place(make_settings: MakeSettings) -> AsyncIterator[Place]:
    counting, settings = Counting(), make_settings()
    server = Server(settings, interceptors=[counting])
    api = Api(server, await server.start())
    assert server.house is not None
    await prepare(server.house)
    await server.house.roles.create("everything", tuple(sorted(KNOWN_OWN_SCOPES)), "", LOCAL_ACT)
    await server.house.accounts.create_user("someone", USER_PASSWORD, ("everything",), LOCAL_ACT)
    await server.house.accounts.create_service("orders", (), LOCAL_ACT)
    yield Place(api, counting, settings.master_key_file)
    await api.channel.close()
    await server.stop()


async def credential(place: Place, kind: str, scope: str) -> str | None:
    """The text to present; None for none. *scope* is the one that opens the method."""
    api, scopes = place.api, (scope,) if scope else ()
    match kind:
        case "none":
            return None
        case "malformed":
            return (await log_in(api, scopes))[:-1] + "!"
        case "expired":
            now = int(time.time())
            return await forged_by_us(place, scopes, issue_time=now - 1_200, expire_time=now - 600)
        case "revoked":
            token = await log_in(api, scopes)
            request = revocation_pb2.RevokeTokenRequest(token=token)
            await api.revocations.RevokeToken(request, metadata=await api.admin())
            return token
        case "wrong_audience":
            return await forged_by_us(place, scopes, audience="orders")
        case "missing_scope":
            return await log_in(api, tuple(sorted(KNOWN_OWN_SCOPES - {scope})))
        case "right_scope":
            return await log_in(api, scopes)
        case "api_key":
            assert api.server.house is not None
            terms = CredentialTerms(audiences=("identity",), scopes=scopes)
            owner = AccountRef(username="someone")
            return (await api.server.house.credentials.create_api_key(owner, terms, ApiKeyUse.BEARER, LOCAL_ACT)).text
        case "session":
            return await open_session(api, scopes)
        case _:
            raise AssertionError(f"access.csv has an unknown column {kind}")


async def log_in(api: Api, scopes: tuple[str, ...]) -> str:
    return (await api.login("someone", audience="identity", scopes=scopes)).access_token


async def open_session(api: Api, scopes: tuple[str, ...]) -> str:
    request = authentication_pb2.AuthenticateRequest(
        password=authentication_pb2.PasswordCredential(username="someone", password=USER_PASSWORD),
        grant_type=authentication_pb2.GRANT_TYPE_SESSION,
        audience="identity",
        scopes=scopes,
    )
    return (await api.authentication.Authenticate(request)).session.session_token


async def forged_by_us(place: Place, scopes: tuple[str, ...], **changes: Any) -> str:
    """A token as the service would have signed it, of a live session, but for *changes*."""
    house = place.api.server.house
    assert house is not None
    claims: Claims = house.verifier.verify(await log_in(place.api, scopes))
    [record] = await house.stores.signing_keys.list_keys()
    signer = open_key(record, MasterKey.from_file(Path(place.master_key_file)))
    return signer.sign(claims._replace(**changes))


async def call(place: Place, name: str, text: str | None) -> grpc.aio.AioRpcError | None:
    """Send an empty request; -> the refusal, None for an OK."""
    method = METHODS[name]
    channel: Any = place.api.channel
    path = f"/{method.containing_service.full_name}/{method.name}"
    metadata = () if text is None else (("authorization", f"Bearer {text}"),)
    try:
        if method.server_streaming:
            stream = channel.unary_stream(path)(b"", metadata=metadata)
            await stream.read()
            stream.cancel()
        else:
            await channel.unary_unary(path)(b"", metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error
    return None


@pytest.mark.requirement("R60")
def test_every_method_has_a_row_and_every_row_a_method() -> None:
    assert set(ROWS) == set(METHODS)
    assert all(cell for row in ROWS.values() for column, cell in row.items() if column != "scope")


@pytest.mark.requirement("R60")
def test_the_option_of_each_method_says_what_the_table_says() -> None:
    for name, method in METHODS.items():
        rule = method.GetOptions().Extensions[access_pb2.access]
        assert list(rule.scopes) == ([ROWS[name]["scope"]] if ROWS[name]["scope"] else []), name
        assert rule.public == (ROWS[name]["none"] == "runs"), name


@pytest.mark.requirement("R23")
@pytest.mark.requirement("R60")
@pytest.mark.parametrize("name", METHODS)
async def test_a_method_runs_for_those_whom_the_table_admits_and_for_nobody_else(place: Place, name: str) -> None:
    method = METHODS[name]
    path = f"/{method.containing_service.full_name}/{method.name}"
    for kind in KINDS:
        text = await credential(place, kind, ROWS[name]["scope"])
        before, expected = place.counting.calls[path], ROWS[name][kind]
        error = await call(place, name, text)
        ran = place.counting.calls[path] - before
        refusal = None if error is None else status.from_rpc_error(error)
        if expected == "runs":
            assert ran == 1, (kind, refusal)
            assert refusal is None or refusal.refused_by != "guard", (kind, refusal)
        else:
            assert ran == 0, kind
            assert refusal is not None
            assert (refusal.reason, refusal.refused_by) == (expected, "guard"), kind
