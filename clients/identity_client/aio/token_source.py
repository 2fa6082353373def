"""The peer's own access token, obtained by client secret and renewed ahead of its expiry."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass, field, replace

import grpc
import grpc.aio

from identity.v1 import authentication_pb2 as pb
from identity_client import status
from identity_client.aio.endpoints import Endpoints
from identity_client.clock import Clock
from identity_client.errors import IdentityError

IDENTITY_AUDIENCE = "identity"
_RENEW_AFTER_SHARES = (0.7, 0.8)  # of the lifetime, at random: a fleet that started together does not renew together
_RETRY_SECONDS = 5.0
_CALL_SECONDS = 5.0

_log = logging.getLogger(__name__)
_random = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A token and when to renew it. Times are Unix seconds."""

    raw_token: str = field(repr=False)
    expire_time: float
    renew_time: float

    @property
    def metadata(self) -> tuple[tuple[str, str]]:
        """The entry that authenticates a call (RFC 6750 section 2.1)."""
        return (("authorization", f"Bearer {self.raw_token}"),)


class TokenSource:
    """Hands out an access token for the identity service itself; concurrent callers share one Authenticate."""

    def __init__(self, endpoints: Endpoints, *, client_id: str, client_secret: str, clock: Clock) -> None:
        self._endpoints = endpoints
        self._client_id = client_id
        self._client_secret = client_secret
        self._clock = clock
        self._held: AccessToken | None = None
        self._lock = asyncio.Lock()

    async def get(self) -> AccessToken:
        """The held token, renewed if that is due. Raises: IdentityError, unless the held one is still alive."""
        async with self._lock:
            now = self._clock.now()
            if self._held is None or now >= self._held.renew_time:
                self._held = await self._renewed(self._held, now)
            return self._held

    def discard(self, token: AccessToken) -> None:
        """Forgets a token that the identity service has refused."""
        if self._held is token:
            self._held = None

    def is_due(self, token: AccessToken) -> bool:
        """Whether the token is to be renewed."""
        return self._clock.now() >= token.renew_time

    async def _renewed(self, held: AccessToken | None, now: float) -> AccessToken:
        try:
            return await self._authenticate(now)
        except IdentityError as error:
            if held is None or now >= held.expire_time:
                raise
            _log.warning("the access token of %s could not be renewed: %s", self._client_id, error.reason)
            return replace(held, renew_time=now + _RETRY_SECONDS)

    async def _authenticate(self, now: float) -> AccessToken:
        request = pb.AuthenticateRequest(
            client_secret=pb.ClientSecretCredential(client_id=self._client_id, client_secret=self._client_secret),
            grant_type=pb.GRANT_TYPE_ACCESS_TOKEN,
            audience=IDENTITY_AUDIENCE,
        )
        try:
            response = await self._endpoints.call(
                lambda endpoint: endpoint.authentication.Authenticate(request, timeout=_CALL_SECONDS)
            )
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from error
        expire_time = response.access.access_token_expire_time.seconds
        renew_time = now + _random.uniform(*_RENEW_AFTER_SHARES) * (expire_time - now)
        return AccessToken(response.access.access_token, expire_time, renew_time)
