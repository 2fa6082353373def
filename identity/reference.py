"""The reference of settings and metrics in identity/README.md, made from the code: `python -m identity.reference`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from .config import RANGES, Settings
from .metrics import Metrics

README = Path(__file__).with_name("README.md")

MEANINGS = {
    "listen": "where gRPC is served; beyond loopback it needs TLS, or `allow_plaintext`",
    "http_listen": "where metrics, probes and public keys are served, in plain text; empty for nowhere",
    "issuer": "who signs the tokens, their `iss`; must be set",
    "database": "`sqlite:///PATH` or `postgresql://USER@HOST:PORT/NAME`; must be set",
    "database_connections": "the most connections that a process opens to PostgreSQL, beside one that listens",
    "master_key_file": "the key that seals the signing keys; must be set",
    "service_name": "this service's own audience",
    "groups": "audiences that mean several services",
    "default_audience": "the audience of a log-in that names none",
    "access_token_lifetime_seconds": "how long an access token lives",
    "refresh_idle_lifetime_seconds": "how long a session with a refresh token lives without use",
    "session_idle_lifetime_seconds": "how long a session with a session token lives without use",
    "session_absolute_lifetime_seconds": "how long any session lives",
    "refresh_grace_seconds": "for so long the last refresh token is answered once more",
    "leeway_seconds": "by how much clocks may differ",
    "tls_certificate_file": "PEM, with its chain; read again when it changes",
    "tls_key_file": "PEM, unencrypted",
    "tls_client_ca_file": "with it every client must show a certificate of these authorities",
    "allow_plaintext": "serve without TLS beyond loopback, where something else encrypts the wire",
    "reflection": "`open`, `admin` or `off`",
    "hash_memory_kib": "Argon2id: memory",
    "hash_iterations": "Argon2id: passes",
    "hash_lanes": "Argon2id: lanes",
    "hash_workers": "threads that hash passwords, at the lowest priority",
    "hash_queue": "passwords that may wait for one",
    "throttle_name_failures": "wrong passwords for a name before it has to wait",
    "throttle_delay_seconds": "the longest wait, in which one failure is forgotten",
    "throttle_origin_failures": "failures of an address in an hour",
    "throttle_shared_origin_failures": "the same for a network of `shared_origins`",
    "shared_origins": "networks of your own front ends, sidecars and offices",
    "trust_streams": "streams of `WatchTrust` that are served at once",
    "trust_streams_per_grant": "of these, to the holders of one credential",
    "workers": "processes that share the port; more than one needs PostgreSQL",
    "connection_age_seconds": "after so long, more or less a tenth, a client is asked to connect anew",
    "drain_seconds": "how long running calls may take to end when the service stops",
    "audit_retention_days": "how long audit events are kept; 0 for ever",
    "signing_key_lifetime_days": "how long a signing key signs before the next one does; 0 leaves it to administrators",
    "log_level": "`debug`, `info`, `warning` or `error`",
    "redis_url": "`redis://`, `rediss://` or `unix://`; empty for no mirror",
    "redis_prefix": "how its keys begin",
}

_OF_THE_MACHINE = {"hash_workers": "half the processors"}


def settings_table() -> str:
    """Every setting: name, default, range, meaning."""
    rows = ["| setting | default | range | meaning |", "|---|---|---|---|"]
    for setting in dataclasses.fields(Settings):
        low_high = RANGES.get(setting.name)
        allowed = f"{low_high[0]:,} - {low_high[1]:,}" if low_high else ""
        default = _OF_THE_MACHINE.get(setting.name) or _shown(setting.default)
        rows.append(f"| `{setting.name}` | {default} | {allowed} | {MEANINGS[setting.name]} |")
    return "\n".join(rows)


def metrics_table() -> str:
    """Every metric, as Prometheus names its family."""
    rows = ["| metric | meaning |", "|---|---|"]
    return "\n".join([*rows, *(f"| `{name}` | {text} |" for name, text in Metrics().described().items())])


def updated(text: str) -> str:
    """*text* with both tables as they are now."""
    for name, table in (("settings", settings_table()), ("metrics", metrics_table())):
        begin, end = f"<!-- {name}, made by `make reference` -->\n", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not (found and found_end):
            raise ValueError(f"the README has no place for {name}")
        text = f"{before}{begin}{table}\n{end}{after}"
    return text


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int):
        return f"{default:,}"
    if isinstance(default, tuple):
        return ", ".join(f"`{item}`" for item in default)
    return f"`{default}`" if default else ""


if __name__ == "__main__":
    README.write_text(updated(README.read_text("utf-8")), "utf-8")
