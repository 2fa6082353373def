"""Ways to obtain an access token, one for each kind of credential: what a TokenSource calls when it needs another."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from identity.v1 import authentication_pb2 as pb
from identity.v1 import token_pb2
from identity_client import status
from identity_client.aio.endpoints import Endpoints
from identity_client.aio.token_source import AccessToken, Obtain, TokenSource
from identity_client.clock import Clock
from identity_client.errors import BadCredentials, TokenError, Unauthenticated
from identity_client.tokens.keys import PublicKey, base64url

_ASSERTION_SECONDS = 60

_Response = TypeVar("_Response")


class PasswordChangeRequired(BadCredentials):
    """The password is right, and must be changed before anything is issued."""

    sentence = "The password must be changed first: call AuthenticationService.ChangePassword."


@dataclass(frozen=True, slots=True)
class Wish:
    """What a token is to be for. No scopes mean all."""

    audience: str
    scopes: tuple[str, ...] = ()

    def request(self, **credential: Any) -> pb.AuthenticateRequest:
        """A log-in for it."""
        return pb.AuthenticateRequest(audience=self.audience, scopes=self.scopes, **credential)


def by_client_secret(service: Endpoints, client_id: str, client_secret: str, wish: Wish) -> Obtain:
    """A service's client secret."""
    credential = pb.ClientSecretCredential(client_id=client_id, client_secret=client_secret)
    return _machine(service, lambda: wish.request(client_secret=credential))


def by_api_key(service: Endpoints, api_key: str, wish: Wish) -> Obtain:
    """An API key for exchange."""
    return _machine(service, lambda: wish.request(api_key=pb.ApiKeyCredential(api_key=api_key)))


def by_certificate(service: Endpoints, wish: Wish) -> Obtain:
    """The client certificate that the connection shows; the token is bound to it."""
    return _machine(service, lambda: wish.request(certificate=pb.CertificateCredential()))


def by_assertion(
    service: Endpoints,
    client_id: str,
    private_key: ec.EllipticCurvePrivateKey,
    issuer: str,
    wish: Wish,
    clock: Clock,
) -> Obtain:
    """A registered key (on P-256) that signs a new assertion for each log-in (RFC 7523). *issuer*: the service's."""

    def request() -> pb.AuthenticateRequest:
        assertion = sign_assertion(client_id, private_key, issuer, clock.now())
        return wish.request(client_assertion=pb.ClientAssertionCredential(assertion=assertion))

    return _machine(service, request)


def sign_assertion(client_id: str, private_key: ec.EllipticCurvePrivateKey, issuer: str, now: float) -> str:
    """An assertion that is good for a minute and for one log-in."""
    key_id = PublicKey.from_key(private_key.public_key()).key_id
    header = {"alg": "ES256", "kid": key_id, "typ": "JWT"}
    claims = {
        "iss": client_id,
        "sub": client_id,
        "aud": issuer,
        "iat": int(now),
        "exp": int(now) + _ASSERTION_SECONDS,
        "jti": secrets.token_urlsafe(16),
    }
    signing_input = ".".join(base64url(json.dumps(part).encode("ascii")) for part in (header, claims))
    r, s = decode_dss_signature(private_key.sign(signing_input.encode("ascii"), ec.ECDSA(hashes.SHA256())))
    return f"{signing_input}.{base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def by_exchange(service: Endpoints, subject_token: str, own: TokenSource, wish: Wish) -> Obtain:
    """A token received from a caller, exchanged for one for the next service; *own* says who acts (RFC 8693)."""
    request = token_pb2.ExchangeRequest(subject_token=subject_token, audience=wish.audience, scopes=wish.scopes)

    async def obtain() -> AccessToken:
        acting = await own.get()
        try:
            answer = await attempt(service.exchange(request, acting.metadata))
        except TokenError as error:
            if error.refused_by == "guard":  # it is our own token that was refused
                own.discard(acting)
            raise
        return granted(answer.access)

    return obtain


class Session:
    """A user's session: by password the first time, by its refresh token from then on; by password again once that is
    over. Without a password the refresh token that is given is all there is.

    *on_rotate* is told of each new refresh token, for programs that keep it over a restart: the old one is spent.
    """

    def __init__(
        self,
        service: Endpoints,
        wish: Wish,
        *,
        username: str = "",
        password: str = "",
        refresh_token: str = "",
        on_rotate: Callable[[str], None] | None = None,
    ) -> None:
        self._service = service
        self._wish = wish
        self._password = pb.PasswordCredential(username=username, password=password) if password else None
        self._refresh_token = refresh_token
        self._on_rotate = on_rotate

    async def obtain(self) -> AccessToken:
        """See Obtain. Raises PasswordChangeRequired besides."""
        if self._refresh_token:
            try:
                request = token_pb2.RefreshRequest(refresh_token=self._refresh_token)
                return self._kept((await attempt(self._service.refresh(request))).tokens)
            except Unauthenticated:
                if self._password is None:
                    raise
        return await self._log_in()

    async def _log_in(self) -> AccessToken:
        request = self._wish.request(password=self._password, grant_type=pb.GRANT_TYPE_TOKENS)
        response = await attempt(self._service.authenticate(request))
        if response.WhichOneof("result") != "tokens":
            raise PasswordChangeRequired()
        return self._kept(response.tokens)

    def _kept(self, tokens: pb.TokenSet) -> AccessToken:
        self._refresh_token = tokens.refresh_token
        if self._on_rotate is not None:
            self._on_rotate(tokens.refresh_token)
        return AccessToken(tokens.access_token, tokens.access_token_expire_time.seconds)


async def attempt(call: Awaitable[_Response]) -> _Response:
    """The answer; a refusal as the class that the service raised."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise status.from_rpc_error(error) from error


def granted(access: pb.AccessGrant) -> AccessToken:
    """The token of an AccessGrant."""
    return AccessToken(access.access_token, access.access_token_expire_time.seconds)


def _machine(service: Endpoints, request: Callable[[], pb.AuthenticateRequest]) -> Obtain:
    async def obtain() -> AccessToken:
        return granted((await attempt(service.authenticate(request()))).access)

    return obtain
