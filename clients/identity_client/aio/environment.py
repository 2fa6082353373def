"""Where the identity service is and who we are to it, read from the environment."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from identity_client.redis.schema import DEFAULT_PREFIX
from identity_client.tls_files import TlsFiles
from identity_client.trust.source import RevocationSource

_REQUIRED = ("IDENTITY_ADDRESS", "IDENTITY_CLIENT_ID", "IDENTITY_CLIENT_SECRET_FILE")

_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/@\[\]]+):[0-9]{1,5}")


class ConfigurationError(ValueError):
    """The settings do not do; *problems* has a sentence for each reason, and never a secret."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach the identity service.

    *address* is host:port (or unix:path), or several of them, separated by commas, of one service: the next is tried
    when one fails. With *tls* the connection is TLS; without, plain text, which is admitted to a loopback address only,
    unless *is_insecure_allowed*. A service logs in by *client_id* and *client_secret*, or by the client certificate of
    *tls*; where people log in, neither is needed. Raises: ConfigurationError.
    """

    address: str
    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    tls: TlsFiles | None = None
    is_insecure_allowed: bool = False

    def __post_init__(self) -> None:
        if not all(self.addresses):
            raise ConfigurationError([f"IDENTITY_ADDRESS: {self.address!r} names an empty address: remove a comma"])
        if problems := [f"IDENTITY_ADDRESS: {problem}" for problem in map(address_problem, self.addresses) if problem]:
            raise ConfigurationError(problems)
        self.check_plain_text(*self.addresses)

    def check_service(self) -> None:
        """Raises ConfigurationError: a service could not log in with this."""
        if not self.client_secret and not (self.tls and self.tls.certificate_file):
            raise ConfigurationError(["a client secret is needed, or a client certificate"])

    @property
    def addresses(self) -> tuple[str, ...]:
        """Each address by itself."""
        return tuple(address.strip() for address in self.address.split(","))

    def check_plain_text(self, *addresses: str) -> None:
        """Raises ConfigurationError: without TLS, tokens would be sent in plain text to another machine."""
        if self.tls is None and not self.is_insecure_allowed:
            problems = [
                f"{address} is no loopback address: name the CA's certificate in IDENTITY_CA_FILE, "
                "or set IDENTITY_INSECURE=1 to send tokens in plain text"
                for address in addresses
                if not is_loopback(address)
            ]
            if problems:
                raise ConfigurationError(problems)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Connection:
        """Reads IDENTITY_ADDRESS, IDENTITY_CLIENT_ID, IDENTITY_CLIENT_SECRET_FILE, and, if set, IDENTITY_CA_FILE,
        IDENTITY_CERTIFICATE_FILE with IDENTITY_KEY_FILE (a client certificate: the secret is not needed then), and
        IDENTITY_INSECURE. Raises: ConfigurationError, with every problem at once."""
        required = _REQUIRED[:-1] if environ.get("IDENTITY_CERTIFICATE_FILE") else _REQUIRED
        problems = [f"{name} is not set" for name in required if not environ.get(name)]
        secret = _read(environ, "IDENTITY_CLIENT_SECRET_FILE", problems)
        tls = _tls_files(environ, problems)
        if problems:
            raise ConfigurationError(problems)
        return cls(
            address=environ["IDENTITY_ADDRESS"],
            client_id=environ["IDENTITY_CLIENT_ID"],
            client_secret=(secret or b"").decode("ascii", "replace").strip(),
            tls=tls,
            is_insecure_allowed=environ.get("IDENTITY_INSECURE") == "1",
        )


def read_environment(environ: Mapping[str, str]) -> tuple[Connection, RevocationSource | None]:
    """-> the connection, and where to ask about each call: the Redis of IDENTITY_REDIS_URL, if set; its keys begin with
    IDENTITY_REDIS_PREFIX. Raises: ConfigurationError, with every problem at once."""
    problems: list[str] = []
    try:
        connection = Connection.from_env(environ)
    except ConfigurationError as error:
        problems += error.problems
    try:
        source = _revocations(environ)
    except ValueError as error:
        problems.append(f"IDENTITY_REDIS_URL, IDENTITY_REDIS_PREFIX: {error}")
    if problems:
        raise ConfigurationError(problems)
    return connection, source


def _revocations(environ: Mapping[str, str]) -> RevocationSource | None:
    url = environ.get("IDENTITY_REDIS_URL")
    if not url:
        return None
    from identity_client.redis import RedisRevocations  # loaded only where it is asked for

    return RedisRevocations(url, prefix=environ.get("IDENTITY_REDIS_PREFIX") or DEFAULT_PREFIX)


def _tls_files(environ: Mapping[str, str], problems: list[str]) -> TlsFiles | None:
    names = ("IDENTITY_CA_FILE", "IDENTITY_CERTIFICATE_FILE", "IDENTITY_KEY_FILE")
    for name in names:
        _read(environ, name, problems)
    ca, certificate, key = (environ.get(name, "") for name in names)
    if bool(certificate) != bool(key):
        problems.append("IDENTITY_CERTIFICATE_FILE and IDENTITY_KEY_FILE belong together")
    return TlsFiles(ca, certificate, key) if ca or certificate else None


def _read(environ: Mapping[str, str], name: str, problems: list[str]) -> bytes | None:
    path = environ.get(name)
    if not path:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        problems.append(f"{name}: {path} cannot be read: {error.strerror}")
        return None
    if not content.strip():
        problems.append(f"{name}: {path} is empty")
    return content


def address_problem(address: str) -> str:
    """What is wrong with the form of *address*; empty where it is HOST:PORT or unix:PATH."""
    if address.startswith("unix:") or _HOST_PORT.fullmatch(address):
        return ""
    return f"{address!r} is not of the form HOST:PORT (or unix:PATH): no scheme before it, and the port after it"


def is_loopback(address: str) -> bool:
    """Whether what is sent to *address* stays on this machine."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
