"""Settings: every problem at once, nothing secret in them, plain text on loopback only."""

from __future__ import annotations

from pathlib import Path

import pytest

from identity.config import ConfigurationError, Settings, load
from identity.storage.sealing import MasterKey


@pytest.fixture
def master_key(tmp_path: Path) -> Path:
    path = tmp_path / "master.key"
    MasterKey.generate(path)
    return path


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "identity.toml"
    path.write_text(text)
    return path


def minimal(master_key: Path) -> dict[str, str]:
    return {
        "IDENTITY_ISSUER": "https://id.example",
        "IDENTITY_DATABASE": "sqlite:////var/lib/identity.db",
        "IDENTITY_MASTER_KEY_FILE": str(master_key),
    }


def problems(path: Path | None, environ: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigurationError) as refused:
        load(path, environ)
    return refused.value.problems


@pytest.mark.requirement("R8")
def test_three_settings_are_enough(master_key: Path) -> None:
    settings = load(None, minimal(master_key))
    assert settings.listen == "127.0.0.1:50551"
    assert settings.database.startswith("sqlite:///")
    assert settings.warnings() == []


def test_variables_win_over_the_file(tmp_path: Path, master_key: Path) -> None:
    path = write(tmp_path, 'issuer = "https://from.file"\ngroups = ["internal", "batch"]\nhash_queue = 5\n')
    settings = load(path, minimal(master_key) | {"IDENTITY_HASH_QUEUE": "7"})
    assert (settings.issuer, settings.groups, settings.hash_queue) == ("https://id.example", ("internal", "batch"), 7)


def test_variables_of_others_are_let_be(master_key: Path) -> None:
    assert load(None, minimal(master_key) | {"IDENTITY_SERVICE_HOST": "10.0.0.7", "IDENTITY_PORT": "tcp://10.0.0.7:1"})


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, 'colour = "blue"\nhash_queue = "many"\nleeway_seconds = 31\nallow_plaintext = 1\n')
    found = "\n".join(problems(path, {"IDENTITY_LISTEN": "0.0.0.0:50551", "IDENTITY_DRAIN_SECONDS": "soon"}))
    for part in (
        "unknown setting 'colour'",
        "hash_queue must be int",
        "allow_plaintext must be bool",
        "leeway_seconds is 31; it must be 0 to 30",
        "IDENTITY_DRAIN_SECONDS must be a whole number",
        "issuer must be set",
        "database must be set",
        "master_key_file must be set",
        "0.0.0.0 is no loopback address",
    ):
        assert part in found


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("LISTEN", "50551", "HOST:PORT"),
        ("LISTEN", "127.0.0.1:70000", "HOST:PORT"),
        ("GROUPS", "Internal", "no service or group name"),
        ("GROUPS", "identity", "must differ"),
        ("DEFAULT_AUDIENCE", "elsewhere", "default_audience"),
        ("REFLECTION", "maybe", "reflection"),
        ("LOG_LEVEL", "loud", "log_level"),
        ("DATABASE", "mysql://x", "sqlite"),
        ("DATABASE", "sqlite:///:memory:", "a file"),
        ("ISSUER", "two words", "issuer"),
        ("HTTP_LISTEN", "50550", "http_listen"),
        ("WORKERS", "2", "more than one needs a postgresql:// database"),
        ("ALLOW_PLAINTEXT", "perhaps", "must be 1 or 0"),
        ("TLS_CERTIFICATE_FILE", "/nowhere", "cannot be read"),
        ("TLS_KEY_FILE", "/nowhere", "belong together"),
        ("TLS_CLIENT_CA_FILE", "/nowhere", "needs tls_certificate_file"),
        ("MASTER_KEY_FILE", "/nowhere", "master_key_file: /nowhere cannot be read"),
        ("HASH_MEMORY_KIB", "64", "hash_memory_kib is 64"),
        ("THROTTLE_NAME_FAILURES", "51", "it must be 3 to 50"),
        ("SHARED_ORIGINS", "10.0.0.0/8, 10.1.2.3/8", "shared_origins: 10.1.2.3/8 has host bits set"),
        ("SHARED_ORIGINS", "front-end", "shared_origins: 'front-end' does not appear to be"),
    ],
)
def test_a_bad_value_is_named(master_key: Path, name: str, value: str, part: str) -> None:
    assert part in "\n".join(problems(None, minimal(master_key) | {f"IDENTITY_{name}": value}))


def test_a_file_that_is_no_toml_or_not_there_is_named(tmp_path: Path, master_key: Path) -> None:
    assert "is no TOML file" in problems(write(tmp_path, "issuer = "), minimal(master_key))[0]
    assert "cannot be read" in problems(tmp_path / "nothing.toml", minimal(master_key))[0]


@pytest.mark.requirement("R46")
@pytest.mark.requirement("R20")
def test_a_token_lives_ten_minutes_and_never_more_than_an_hour(master_key: Path) -> None:
    assert load(None, minimal(master_key)).access_token_lifetime_seconds == 600
    too_long = minimal(master_key) | {"IDENTITY_ACCESS_TOKEN_LIFETIME_SECONDS": "3601"}
    assert "it must be 5 to 3,600" in problems(None, too_long)[0]


@pytest.mark.requirement("R20")
@pytest.mark.parametrize(("lifetime", "is_unusual"), [(59, True), (60, False), (900, False), (901, True)])
def test_an_unusual_lifetime_is_worth_a_warning(lifetime: int, is_unusual: bool) -> None:
    assert bool(Settings(access_token_lifetime_seconds=lifetime).warnings()) == is_unusual


@pytest.mark.requirement("R48")
@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.1.2.3", "identity.internal", "localhost.example"])
def test_plain_text_beyond_loopback_must_be_asked_for(master_key: Path, host: str) -> None:
    environ = minimal(master_key) | {"IDENTITY_LISTEN": f"{host}:50551"}
    assert "is no loopback address" in problems(None, environ)[0]
    assert load(None, environ | {"IDENTITY_ALLOW_PLAINTEXT": "1"})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "[::1]", "localhost"])
def test_loopback_needs_no_tls(master_key: Path, host: str) -> None:
    assert load(None, minimal(master_key) | {"IDENTITY_LISTEN": f"{host}:50551"})
