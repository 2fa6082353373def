"""What a front end asks of the identity service for its users: to log them in, to renew, to end."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import grpc.aio

from identity.v1 import authentication_pb2 as pb
from identity.v1 import session_pb2, token_pb2
from identity.v1.session_pb2_grpc import SessionServiceStub
from identity_client import status
from identity_client.aio.endpoints import Endpoint
from identity_client.aio.identity import Identity
from identity_client.errors import (
    IdentityError,
    Internal,
    InvalidRequest,
    PermissionMissing,
    TokenError,
    Unauthenticated,
)
from identity_client.web.place import Place
from identity_client.web.refusals import PasswordChangeRequired

_CALL_SECONDS = 10.0  # a log-in may wait for its hash
_FIELDS_OF_USERS = ("password", "new_password", "current_password", "username", "client_info")

_Result = TypeVar("_Result")
_OwnCall: TypeAlias = Callable[[Endpoint, tuple[tuple[str, str], ...]], Awaitable[_Result]]
"""A call to one endpoint with the metadata of our own token."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Granted:
    """What a log-in gave. *bearer* is a session token or an access token; *expire_time* is its own, in Unix seconds."""

    bearer: str = field(repr=False)
    expire_time: int
    refresh: str = field(default="", repr=False)


class Service:
    """The identity service, asked with our own token where it matters who forwards a call.

    *grant_type* GRANT_TYPE_SESSION or GRANT_TYPE_TOKENS is what log-ins give, for *audience* (empty: the service's
    default group). Every method raises IdentityError as the service refused.
    """

    def __init__(self, identity: Identity, grant_type: pb.GrantType.ValueType, audience: str) -> None:
        self._identity = identity
        self._wanted = {"grant_type": grant_type, "audience": audience}
        self._renewals: dict[bytes, asyncio.Task[Granted]] = {}

    async def log_in(self, username: str, password: str, place: Place) -> Granted:
        """A new session. Raises PasswordChangeRequired."""
        request = pb.AuthenticateRequest(
            password=pb.PasswordCredential(username=username, password=password),
            client_info=pb.ClientInfo(**place._asdict()),
            **self._wanted,  # type: ignore[arg-type]
        )
        response = await self._forwarded(
            lambda at, own: at.authentication.Authenticate(request, metadata=own, timeout=_CALL_SECONDS)
        )
        if response.HasField("challenge"):
            raise PasswordChangeRequired()
        return _granted(response)

    async def change_password(self, username: str, current: str, new: str, place: Place) -> Granted:
        """A new session under the new password; every other session of the account has ended."""
        request = pb.ChangePasswordRequest(
            username=username,
            current_password=current,
            new_password=new,
            client_info=pb.ClientInfo(**place._asdict()),
            **self._wanted,  # type: ignore[arg-type]
        )
        response = await self._forwarded(
            lambda at, own: at.authentication.ChangePassword(request, metadata=own, timeout=_CALL_SECONDS)
        )
        return _granted(response)

    async def renew(self, refresh: str) -> Granted:
        """The successors of a refresh token and its access token. Who asks for the same at once shares one answer, and
        who leaves does not end it for the others."""
        name = hashlib.sha256(refresh.encode()).digest()
        renewal = self._renewals.get(name)
        if renewal is None:
            # In an empty context: the task must not keep the principal of the request that began it.
            create = asyncio.get_running_loop().create_task
            renewal = self._renewals[name] = create(self._renewed(refresh), context=contextvars.Context())
            renewal.add_done_callback(lambda done: self._landed(name, done))
        return await asyncio.shield(renewal)

    async def end(self, bearers: Sequence[str]) -> None:
        """Ends the session behind *bearers* (session, access, refresh token), however much of them is still good.

        Logout where one can make the call. Revoke where not, because it is expired, refreshes only, or is not meant for
        the identity service: it takes every text, and answers the same for one that is dead.
        """
        request, metadata = session_pb2.LogoutRequest(), _bearer(bearers[0])
        try:
            await self._call(
                lambda at: SessionServiceStub(at.channel).Logout(request, metadata=metadata, timeout=_CALL_SECONDS)
            )
        except (Unauthenticated, PermissionMissing):
            for bearer in bearers:
                await self._revoke(token_pb2.RevokeRequest(token=bearer))

    async def end_all(self, bearer: str) -> None:
        """Ends every session of the account whose *bearer* this is."""
        request, metadata = session_pb2.LogoutEverywhereRequest(), _bearer(bearer)
        await self._call(
            lambda at: SessionServiceStub(at.channel).LogoutEverywhere(
                request, metadata=metadata, timeout=_CALL_SECONDS
            )
        )

    async def _revoke(self, request: token_pb2.RevokeRequest) -> None:
        await self._call(lambda at: at.tokens.Revoke(request, timeout=_CALL_SECONDS))

    async def _renewed(self, refresh: str) -> Granted:
        request = token_pb2.RefreshRequest(refresh_token=refresh)
        response = await self._call(lambda at: at.tokens.Refresh(request, timeout=_CALL_SECONDS))
        return _granted_tokens(response.tokens)

    def _landed(self, name: bytes, renewal: asyncio.Task[Granted]) -> None:
        del self._renewals[name]
        if not renewal.cancelled():
            renewal.exception()  # seen, even if every caller has left

    async def _forwarded(self, rpc: _OwnCall[_Result]) -> _Result:
        """Calls with our own token, once more if that has died. A refusal for which not the user but we are to blame
        is told in the log, and to the user as a defect."""
        try:
            try:
                return await self._with_own_token(rpc)
            except TokenError:
                return await self._with_own_token(rpc)
        except PermissionMissing as error:
            _log.error("log-ins fail: give the account of this front end a role with the scope identity.forward")
            raise Internal() from error
        except InvalidRequest as error:
            if error.field.partition(".")[0] in _FIELDS_OF_USERS:
                raise
            _log.error("log-ins fail: %s", error)
            raise Internal() from error

    async def _with_own_token(self, rpc: _OwnCall[_Result]) -> _Result:
        token = await self._identity.tokens.get()
        try:
            return await self._call(lambda at: rpc(at, token.metadata))
        except TokenError:
            self._identity.tokens.discard(token)
            raise

    async def _call(self, rpc: Callable[[Endpoint], Awaitable[_Result]]) -> _Result:
        try:
            return await self._identity.endpoints.call(rpc)
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from None


def _bearer(raw_token: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {raw_token}"),)


def _granted(response: pb.AuthenticateResponse | pb.ChangePasswordResponse) -> Granted:
    if response.HasField("session"):
        return Granted(response.session.session_token, response.session.idle_expire_time.seconds)
    if response.HasField("tokens"):
        return _granted_tokens(response.tokens)
    raise IdentityError("The identity service answered with something that was not asked for.")


def _granted_tokens(tokens: pb.TokenSet) -> Granted:
    return Granted(tokens.access_token, tokens.access_token_expire_time.seconds, tokens.refresh_token)
