"""Settings: from a TOML file and IDENTITY_* variables, checked as a whole, every problem reported at once."""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from identity_client.redis import schema

from .domain.origins import parse_networks

PREFIX = "IDENTITY_"

_NAME = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_ISSUER = re.compile(r"[!-~]{1,512}")
_LOG_LEVELS = ("debug", "info", "warning", "error")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class ConfigurationError(Exception):
    """The service cannot run as configured; *problems* has a sentence for each reason, and never a secret."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be configured. Lifetimes are seconds.

    After throttle_name_failures wrong passwords for a name, each doubles the delay before the next log-in, up to
    throttle_delay_seconds, in which one failure is forgotten. Even at the widest settings these are fewer than 100
    guesses an hour (NIST SP 800-63B section 3.2.2). An address has throttle_origin_failures an hour; one in
    shared_origins, networks of front ends, sidecars and offices, has throttle_shared_origin_failures.
    trust_streams of WatchTrust are served at once, to the holders of one credential trust_streams_per_grant.
    database_connections: the most that a process opens to a PostgreSQL. audit_retention_days: 0 keeps the log for ever.
    signing_key_lifetime_days: 0 leaves rotation to administrators. database and redis_url may hold a password, and are
    shown nowhere.
    """

    listen: str = "127.0.0.1:50551"
    http_listen: str = "127.0.0.1:50550"
    issuer: str = "https://identity.localhost"
    database: str = field(default="sqlite:///identity.db", repr=False)
    database_connections: int = 12
    master_key_file: str = ""
    service_name: str = "identity"
    groups: tuple[str, ...] = ("internal",)
    default_audience: str = "internal"
    access_token_lifetime_seconds: int = 600
    refresh_idle_lifetime_seconds: int = 14 * 86_400
    session_idle_lifetime_seconds: int = 12 * 3_600
    session_absolute_lifetime_seconds: int = 90 * 86_400
    refresh_grace_seconds: int = 60
    leeway_seconds: int = 5
    tls_certificate_file: str = ""
    tls_key_file: str = ""
    tls_client_ca_file: str = ""
    allow_plaintext: bool = False
    reflection: str = "admin"
    hash_memory_kib: int = 19_456
    hash_iterations: int = 2
    hash_lanes: int = 1
    hash_workers: int = max(1, (os.cpu_count() or 2) // 2)
    hash_queue: int = 64
    throttle_name_failures: int = 10
    throttle_delay_seconds: int = 900
    throttle_origin_failures: int = 100
    throttle_shared_origin_failures: int = 10_000
    shared_origins: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    trust_streams: int = 4_096
    trust_streams_per_grant: int = 1_024
    workers: int = 1
    connection_age_seconds: int = 300
    drain_seconds: int = 10
    audit_retention_days: int = 400
    signing_key_lifetime_days: int = 30
    log_level: str = "info"
    redis_url: str = field(default="", repr=False)
    redis_prefix: str = schema.DEFAULT_PREFIX

    def problems(self) -> list[str]:
        """What is wrong with these values."""
        return [problem for check in _CHECKS for problem in check(self)]

    def warnings(self) -> list[str]:
        """What is allowed and yet worth a line in the log."""
        lifetime, found = self.access_token_lifetime_seconds, []
        if not 60 <= lifetime <= 900:
            found.append(f"access_token_lifetime_seconds is {lifetime}: 60 to 900 is usual")
        if self.redis_url and not _is_wire_safe(self.redis_url):
            found.append(
                "redis_url: revocations go to another machine in plain text, where they can be held up: use rediss://"
            )
        return found


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Settings for production: variables win over the file. Raises ConfigurationError with every problem."""
    settings, problems = read(path, environ)
    if problems:
        raise ConfigurationError(problems)
    return settings


def read(path: Path | None, environ: Mapping[str, str]) -> tuple[Settings, list[str]]:
    """The same, with every problem beside it; what cannot be read has its default."""
    problems: list[str] = []
    values = _from_file(path, problems) | _from_environment(environ, problems)
    problems += [f"{name} must be set" for name in ("issuer", "database", "master_key_file") if name not in values]
    settings = Settings(**values)
    return settings, problems + settings.problems()


# -- reading -------------------------------------------------------------------------------------------------------


def _from_file(path: Path | None, problems: list[str]) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        problems.append(f"{path} cannot be read: {error.strerror}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{path} is no TOML file: {error}")
        return {}
    known = _defaults()
    problems += [f"{path}: unknown setting {name!r}" for name in table if name not in known]
    return {
        name: value for name in known if name in table and (value := _typed(name, table[name], problems)) is not None
    }


def _typed(name: str, value: object, problems: list[str]) -> object:
    default = _defaults()[name]
    if isinstance(default, tuple) and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if type(value) is type(default):
        return value
    kind = "a list of texts" if isinstance(default, tuple) else type(default).__name__
    problems.append(f"{name} must be {kind}")
    return None


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    # Variables that we do not know are let be: a cluster adds its own for a service that is named identity.
    values = {}
    for name, default in _defaults().items():
        text = environ.get(PREFIX + name.upper())
        if text is not None and (value := _parse(name, text, default, problems)) is not None:
            values[name] = value
    return values


def _parse(name: str, text: str, default: object, problems: list[str]) -> object:
    if isinstance(default, bool):
        if text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        problems.append(f"{PREFIX}{name.upper()} must be 1 or 0")
        return None
    if isinstance(default, int):
        if text.isascii() and text.isdigit():
            return int(text)
        problems.append(f"{PREFIX}{name.upper()} must be a whole number")
        return None
    if isinstance(default, tuple):
        return tuple(filter(None, (item.strip() for item in text.split(","))))
    return text


def _defaults() -> dict[str, Any]:
    return {setting.name: setting.default for setting in fields(Settings)}


# -- checking ------------------------------------------------------------------------------------------------------

RANGES = {
    "access_token_lifetime_seconds": (5, 3_600),
    "refresh_idle_lifetime_seconds": (60, 366 * 86_400),
    "session_idle_lifetime_seconds": (60, 366 * 86_400),
    "session_absolute_lifetime_seconds": (60, 3 * 366 * 86_400),
    "refresh_grace_seconds": (0, 300),
    "leeway_seconds": (0, 30),
    "database_connections": (2, 1_000),
    "hash_memory_kib": (19_456, 4 * 1024 * 1024),
    "hash_iterations": (2, 64),
    "hash_lanes": (1, 64),
    "hash_workers": (1, 256),
    "hash_queue": (0, 10_000),
    "throttle_name_failures": (3, 50),
    "throttle_delay_seconds": (120, 3_600),
    "throttle_origin_failures": (10, 100_000),
    "throttle_shared_origin_failures": (10, 1_000_000),
    "trust_streams": (16, 100_000),
    "trust_streams_per_grant": (4, 100_000),
    "workers": (1, 64),
    "connection_age_seconds": (10, 86_400),
    "drain_seconds": (0, 600),
    "audit_retention_days": (0, 36_500),
    "signing_key_lifetime_days": (0, 3_650),
}


def _check_ranges(settings: Settings) -> list[str]:
    return [
        f"{name} is {getattr(settings, name):,}; it must be {low:,} to {high:,}"
        for name, (low, high) in RANGES.items()
        if not low <= getattr(settings, name) <= high
    ]


def _check_names(settings: Settings) -> list[str]:
    problems = []
    for name in (settings.service_name, *settings.groups):
        if not _NAME.fullmatch(name):
            problems.append(f"{name!r} is no service or group name: 1-64 of a-z, 0-9, '.', '_' and '-'")
    if settings.service_name in settings.groups:
        problems.append("service_name and groups must differ")
    if settings.default_audience not in (settings.service_name, *settings.groups):
        problems.append("default_audience must be service_name or one of groups")
    if not _ISSUER.fullmatch(settings.issuer):
        problems.append("issuer must be 1-512 printable ASCII characters without spaces")
    return problems


def _check_choices(settings: Settings) -> list[str]:
    problems = []
    if settings.reflection not in ("open", "admin", "off"):
        problems.append("reflection must be open, admin or off")
    if settings.log_level not in _LOG_LEVELS:
        problems.append(f"log_level must be one of {', '.join(_LOG_LEVELS)}")
    if not re.fullmatch(r"sqlite:///(?!:).+|postgresql(\+asyncpg)?://[^/]*/[^/]+", settings.database):
        problems.append("database must be sqlite:///PATH, a file, or postgresql://USER@HOST:PORT/NAME")
    return problems


def _check_networks(settings: Settings) -> list[str]:
    problems = []
    for text in settings.shared_origins:
        try:
            parse_networks((text,))
        except ValueError as error:
            problems.append(f"shared_origins: {error}: give networks such as 10.1.0.0/16 or 2001:db8::/48")
    return problems


def _check_files(settings: Settings) -> list[str]:
    paths = [("master_key_file", settings.master_key_file)]
    paths += [
        (name, getattr(settings, name)) for name in ("tls_certificate_file", "tls_key_file", "tls_client_ca_file")
    ]
    return [f"{name}: {path} cannot be read" for name, path in paths if path and not os.access(path, os.R_OK)]


def _check_wire(settings: Settings) -> list[str]:
    problems = []
    host = settings.listen.rpartition(":")[0]
    if not _is_address(settings.listen):
        problems.append("listen must be HOST:PORT")
    if settings.http_listen and not _is_address(settings.http_listen):
        problems.append("http_listen must be HOST:PORT, or empty for none")
    if bool(settings.tls_certificate_file) != bool(settings.tls_key_file):
        problems.append("tls_certificate_file and tls_key_file belong together")
    if settings.tls_client_ca_file and not settings.tls_certificate_file:
        problems.append("tls_client_ca_file needs tls_certificate_file")
    if not settings.tls_certificate_file and not settings.allow_plaintext and not is_loopback(host):
        problems.append(
            f"listen: {host} is no loopback address: set tls_certificate_file and tls_key_file, "
            "or allow_plaintext = true where something else encrypts the wire"
        )
    return problems


def _check_workers(settings: Settings) -> list[str]:
    if settings.workers > 1 and settings.database.startswith("sqlite"):
        return ["workers: more than one needs a postgresql:// database"]
    return []


def _check_redis(settings: Settings) -> list[str]:
    problems = []
    if settings.redis_url and not re.match(r"(redis|rediss)://[^/]|unix:///?[^/]", settings.redis_url):
        problems.append("redis_url must be redis://HOST:PORT/NUMBER, rediss://... or unix://PATH")
    if not schema.is_prefix(settings.redis_prefix):
        problems.append("redis_prefix must be 1-64 of A-Z, a-z, 0-9, ':', '.', '_', '-', '{' and '}'")
    return problems


_CHECKS: tuple[Callable[[Settings], list[str]], ...] = (
    _check_ranges,
    _check_names,
    _check_choices,
    _check_networks,
    _check_files,
    _check_wire,
    _check_workers,
    _check_redis,
)


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdigit() and int(port) < 65_536


def _is_wire_safe(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return not url.startswith("redis://") or is_loopback(host)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to *host*."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
