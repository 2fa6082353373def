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
from .domain.accounts import AccountAdmin
from .domain.grants import ApiKeyUse, CredentialTerms
from .domain.values import AccountRef
from .house import LOCAL_ACT, House
from .storage.sealing import MasterKey

DEFAULT_DIRECTORY = Path(".identity")
DEFAULT_LISTEN = "127.0.0.1:50551"

_SERVICE = "orders"
_SERVICES = {
    _SERVICE: ("delegate", "peer"),
    "billing": ("delegate", "peer"),
    "stock": ("delegate", "peer"),
    "storefront": ("front-end", "peer"),
}
_ROLES = (
    ("clerk", ("billing.charge", "orders.read", "stock.reserve"), "Sees and bills orders."),
    ("manager", ("orders.cancel", "orders.read"), "Sees and cancels orders."),
    ("delegate", ("identity.exchange",), "Calls other services on behalf of its own callers."),
    ("front-end", ("identity.forward",), "Logs people in and says where they are."),
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

    def client_secret(self, service: str = _SERVICE) -> Path:
        """A demo service's client secret alone, as a peer reads it."""
        return self.directory / f"{service}.secret"

    def read_secrets(self) -> dict[str, Any]:
        """Raises ConfigurationError: `identity dev` has not run here."""
        try:
            loaded: dict[str, Any] = json.loads(self.secrets.read_text())
            if loaded.keys() >= {"admin", "user", "service", "client_secrets"}:
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
    settings = settings_of(files, listen)
    if problems := settings.problems():
        raise ConfigurationError(problems)
    return settings


def settings_of(files: DevFiles, listen: str = DEFAULT_LISTEN) -> Settings:
    """How a service in this folder is configured."""
    return Settings(
        listen=listen,
        http_listen="",
        database=f"sqlite:///{files.database}",
        master_key_file=str(files.master_key),
        reflection="open",
    )


async def seed(files: DevFiles, house: House, address: str) -> None:
    """Make the accounts on the first run, and note the address on every run. Raises ConfigurationError."""
    is_new = not await house.accounts.list_page("", 1)
    known = await _create_accounts(house) if is_new or not files.secrets.exists() else files.read_secrets()
    for name, client_secret in known["client_secrets"].items():
        _write_private(files.client_secret(name), client_secret + "\n")
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
        client_secrets = {name: await _create_service(accounts, name, roles) for name, roles in _SERVICES.items()}
        owner = AccountRef(username=user["username"])
        key = await house.credentials.create_api_key(owner, _KEY_TERMS, ApiKeyUse.BEARER, LOCAL_ACT)
    except (AccountAlreadyExists, RoleAlreadyExists):
        raise ConfigurationError(
            ["the accounts exist but dev.json, with their passwords, is lost: remove the whole folder to begin anew"]
        ) from None
    service = {"client_id": _SERVICE, "client_secret": client_secrets[_SERVICE]}
    return {"admin": admin, "user": user, "service": service, "client_secrets": client_secrets, "api_key": key.text}


async def _create_service(accounts: AccountAdmin, name: str, roles: tuple[str, ...]) -> str:
    _, _, client_secret = await accounts.create_service(name, roles, LOCAL_ACT)
    return client_secret


def welcome(files: DevFiles, address: str) -> str:
    """What to paste next."""
    directory = shlex.quote(str(files.directory))
    return f"""identity is ready on {address}

Accounts and passwords are in {files.secrets}. For a peer:

  export IDENTITY_ADDRESS={address}
  export IDENTITY_CLIENT_ID={_SERVICE}
  export IDENTITY_CLIENT_SECRET_FILE={shlex.quote(str(files.client_secret().resolve()))}

The example services, from a checkout, each with its own name and secret:

  export PYTHONPATH=clients/examples
  for name in stock billing orders; do
    IDENTITY_CLIENT_ID=$name IDENTITY_CLIENT_SECRET_FILE={directory}/$name.secret python -m $name.server &
  done

The example front end, to log in to as alice on http://localhost:8000:

  IDENTITY_CLIENT_ID=storefront IDENTITY_CLIENT_SECRET_FILE={directory}/storefront.secret python -m storefront.server &

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
