"""`identity dev`: a whole service in one folder, for one machine, with an admin, a user and a service to play with."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from identity_client.errors import AccountAlreadyExists, RoleAlreadyExists

from .config import ConfigurationError, Settings, is_loopback
from .domain.grants import ApiKeyUse, CredentialTerms
from .domain.values import AccountRef
from .house import LOCAL_ACT, House
from .storage.sealing import MasterKey

DEFAULT_DIRECTORY = Path(".identity")
DEFAULT_LISTEN = "127.0.0.1:50551"

_SERVICE = "orders"
_ROLES = (
    ("clerk", ("orders.read",), "Sees orders."),
    ("manager", ("orders.cancel", "orders.read"), "Sees and cancels orders."),
)
_KEY_TERMS = CredentialTerms(display_name="development", audiences=("internal",))


@dataclass(frozen=True, slots=True)
class DevFiles:
    """What lies in the folder."""

    directory: Path

    @property
    def master_key(self) -> Path:
        return self.directory / "master.key"

    @property
    def database(self) -> Path:
        return self.directory / "identity.db"

    @property
    def secrets(self) -> Path:
        """Address, names and passwords, for its owner alone."""
        return self.directory / "dev.json"

    @property
    def client_secret(self) -> Path:
        """The demo service's client secret alone, as a peer reads it."""
        return self.directory / f"{_SERVICE}.secret"

    def read_secrets(self) -> dict[str, Any]:
        """Raises ConfigurationError: `identity dev` has not run here."""
        try:
            loaded: dict[str, Any] = json.loads(self.secrets.read_text())
            if loaded.keys() >= {"admin", "user", "service"}:
                return loaded
        except (OSError, ValueError, AttributeError):
            pass
        raise ConfigurationError([f"{self.secrets} cannot be read: start `identity dev` first, or remove the folder"])


def prepare(files: DevFiles, listen: str) -> Settings:
    """Make folder and master key on the first run; -> settings. Raises ConfigurationError."""
    if not is_loopback(listen.rpartition(":")[0]):
        raise ConfigurationError([f"--listen: `identity dev` listens on loopback only, not on {listen}"])
    try:
        files.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _lock(files.directory)
        if not files.master_key.exists():
            MasterKey.generate(files.master_key)
    except BlockingIOError:
        raise ConfigurationError([f"another `identity dev` is running in {files.directory}"]) from None
    except OSError as error:
        raise ConfigurationError([f"--directory: {files.directory} cannot be used: {error.strerror}"]) from None
    settings = Settings(
        listen=listen,
        database=f"sqlite:///{files.database}",
        master_key_file=str(files.master_key),
        reflection="open",
    )
    if problems := settings.problems():
        raise ConfigurationError(problems)
    return settings


async def seed(files: DevFiles, house: House, address: str) -> None:
    """Make the accounts on the first run, and note the address on every run. Raises ConfigurationError."""
    is_new = not await house.accounts.list_page("", 1)
    known = await _create_accounts(house) if is_new or not files.secrets.exists() else files.read_secrets()
    _write_private(files.client_secret, known["service"]["client_secret"] + "\n")
    _write_private(files.secrets, json.dumps(known | {"address": address}, indent=2) + "\n")


async def _create_accounts(house: House) -> dict[str, Any]:
    accounts = house.accounts
    admin = {"username": "admin", "password": secrets.token_urlsafe(18)}
    user = {"username": "alice", "password": secrets.token_urlsafe(18)}
    try:
        for role, scopes, description in _ROLES:
            await house.roles.create(role, scopes, description, LOCAL_ACT)
        await accounts.create_user(admin["username"], admin["password"], ("admin",), LOCAL_ACT)
        await accounts.create_user(user["username"], user["password"], ("clerk",), LOCAL_ACT)
        _, _, client_secret = await accounts.create_service(_SERVICE, ("peer",), LOCAL_ACT)
        owner = AccountRef(username=user["username"])
        key = await house.credentials.create_api_key(owner, _KEY_TERMS, ApiKeyUse.BEARER, LOCAL_ACT)
    except (AccountAlreadyExists, RoleAlreadyExists):
        raise ConfigurationError(
            ["the accounts exist but dev.json, with their passwords, is lost: remove the whole folder to begin anew"]
        ) from None
    service = {"client_id": _SERVICE, "client_secret": client_secret}
    return {"admin": admin, "user": user, "service": service, "api_key": key.text}


def welcome(files: DevFiles, address: str) -> str:
    """What to paste next."""
    directory = shlex.quote(str(files.directory))
    return f"""identity is ready on {address}

Accounts and passwords are in {files.secrets}. For a peer:

  export IDENTITY_ADDRESS={address}
  export IDENTITY_CLIENT_ID={_SERVICE}
  export IDENTITY_CLIENT_SECRET_FILE={shlex.quote(str(files.client_secret.resolve()))}

As the admin, with grpcurl or with buf:

  export TOKEN=$(identity token --dev {directory})
  grpcurl -plaintext -expand-headers -H 'authorization: Bearer ${{TOKEN}}' \\
    {address} identity.v1.AccountService/ListAccounts

  identity token --dev {directory} --header > {directory}/admin.header
  buf curl --protocol grpc --http2-prior-knowledge -H @{directory}/admin.header \\
    http://{address}/identity.v1.AccountService/ListAccounts
"""


def _lock(directory: Path) -> None:
    """Keep *directory* to this process until it ends. Raises BlockingIOError: another one has it."""
    fcntl.flock(os.open(directory, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)


def _write_private(path: Path, text: str) -> None:
    """Replace the file at once, for its owner alone."""
    new = path.with_suffix(".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    new.replace(path)
