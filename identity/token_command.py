"""`identity token`: log in over the wire, as any client would."""

from __future__ import annotations

from pathlib import Path

import grpc

from identity_client import status
from identity_client.aio.environment import address_problem, is_loopback

from .config import ConfigurationError
from .v1 import authentication_pb2, authentication_pb2_grpc


async def fetch_token(address: str, ca_file: Path | None, username: str, password: str, audience: str) -> str:
    """An access token for *username*. Raises ConfigurationError, IdentityError."""
    async with open_channel(address, ca_file) as channel:
        stub = authentication_pb2_grpc.AuthenticationServiceStub(channel)
        request = authentication_pb2.AuthenticateRequest(
            password=authentication_pb2.PasswordCredential(username=username, password=password),
            grant_type=authentication_pb2.GRANT_TYPE_ACCESS_TOKEN,
            audience=audience,
        )
        try:
            response = await stub.Authenticate(request, timeout=10)
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from None
        if response.HasField("challenge"):
            advice = f"identity password --username {username} (or AuthenticationService/ChangePassword)"
            raise ConfigurationError([f"{username} must replace the password first: {advice}"])
        token: str = response.access.access_token
        return token


def open_channel(address: str, ca_file: Path | None) -> grpc.aio.Channel:
    """TLS under the authority of *ca_file*; without one, plain text on loopback. Raises ConfigurationError."""
    if problem := address_problem(address):
        raise ConfigurationError([problem])
    if ca_file is not None:
        try:
            return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca_file.read_bytes()))
        except OSError as error:
            raise ConfigurationError([f"IDENTITY_CA_FILE: {ca_file} cannot be read: {error.strerror}"]) from None
    if not is_loopback(address):
        raise ConfigurationError([f"{address} is no loopback address: name the CA's certificate in IDENTITY_CA_FILE"])
    return grpc.aio.insecure_channel(address)
