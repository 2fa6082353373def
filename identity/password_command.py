"""`identity password`: replace a user's own password over the wire, as any client would."""

from __future__ import annotations

import getpass
from pathlib import Path

import grpc

from identity_client import status

from .config import ConfigurationError
from .token_command import open_channel
from .v1 import authentication_pb2, authentication_pb2_grpc


async def change_password(address: str, ca_file: Path | None, username: str, current: str, new: str) -> None:
    """Replace *current* by *new*. Raises ConfigurationError, IdentityError."""
    async with open_channel(address, ca_file) as channel:
        stub = authentication_pb2_grpc.AuthenticationServiceStub(channel)
        request = authentication_pb2.ChangePasswordRequest(
            username=username,
            current_password=current,
            new_password=new,
            grant_type=authentication_pb2.GRANT_TYPE_ACCESS_TOKEN,  # thrown away, and dead in minutes: no session stays
        )
        try:
            await stub.ChangePassword(request, timeout=10)
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from None


def ask_passwords(username: str) -> tuple[str, str]:
    """The current password and the new one, typed unseen, the new one twice. Raises ConfigurationError."""
    current = getpass.getpass(f"Current password of {username}: ")
    new = getpass.getpass("New password: ")
    if getpass.getpass("New password, again: ") != new:
        raise ConfigurationError(["the new password was typed in two ways: nothing was changed"])
    return current, new


def split_passwords(text: str) -> tuple[str, str]:
    """The current password and the new one, from a line each. Raises ConfigurationError."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if len(lines) != 2 or not all(lines):
        raise ConfigurationError(["two lines are needed: the current password, and the new one"])
    return lines[0], lines[1]
