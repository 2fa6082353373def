"""`identity doctor`: every ailment is found and says what to do, the healthy are left alone, and nothing is changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from identity import master_key_command
from identity.cli import main
from identity.config import Settings
from identity.doctor import Finding, Patient, Severity, examine, machine
from identity.house import LOCAL_ACT
from identity.server import Server
from identity.storage.sealing import MasterKey
from tests.clients.issuer import FixedClock
from tests.faults.dev_server import DevServer
from tests.postgres_server import in_own_loop
from tests.rpc.api import MakeSettings, prepare
from tests.rpc.certificates import Authority, write_pair

DAY = 86_400
Ailments = list[tuple[str, str, str]]


@pytest.fixture
async def settings(make_settings: MakeSettings) -> Settings:
    """Of a service that ran, and was stopped."""
    settings = make_settings(hash_memory_kib=19_456, hash_iterations=2)
    server = Server(settings)
    await server.start()
    assert server.house is not None
    await prepare(server.house)
    await server.stop()
    return settings


def examined(settings: Settings, later_seconds: float = 0) -> list[Finding]:
    patient = Patient(settings, settings.problems(), FixedClock(time.time() + later_seconds))
    findings = in_own_loop(lambda: examine(patient))
    assert all(finding.advice for finding in findings if finding.severity is not Severity.OK)
    return findings


def ailments(settings: Settings, later_seconds: float = 0) -> Ailments:
    """What is not as it should be: severity, check, finding."""
    return [
        (finding.severity.name, finding.check, finding.found)
        for finding in examined(settings, later_seconds)
        if finding.severity is not Severity.OK
    ]


def sql(settings: Settings, statement: str) -> None:
    with closing(sqlite3.connect(database_of(settings))) as connection, connection:
        assert connection.execute(statement).rowcount != 0


def database_of(settings: Settings) -> Path:
    return Path(settings.database.removeprefix("sqlite:///"))


def fingerprint(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


async def test_the_healthy_are_left_alone(settings: Settings, tmp_path: Path) -> None:
    before = fingerprint(tmp_path)
    assert ailments(settings) == []
    assert [finding.check for finding in examined(settings)] == [
        "configuration",
        "secret files",
        "tls",
        "disk",
        "migrations",
        "integrity",
        "clock",
        "master key",
        "signing keys",
        "audit log",
    ]
    assert fingerprint(tmp_path) == before


async def test_every_problem_of_the_settings_is_told(settings: Settings) -> None:
    spoilt = replace(settings, leeway_seconds=31, service_name="No", access_token_lifetime_seconds=20)
    assert [severity for severity, check, _ in ailments(spoilt)] == ["ERROR", "ERROR", "WARNING"]


async def test_secret_files_that_are_open_to_others_are_named(settings: Settings) -> None:
    Path(settings.master_key_file).chmod(0o644)
    database_of(settings).chmod(0o604)
    found = [(severity, check) for severity, check, _ in ailments(settings)]
    assert found == [("ERROR", "secret files"), ("ERROR", "secret files"), ("ERROR", "audit log")]


async def test_a_lost_master_key_is_told_and_the_rest_is_looked_at(settings: Settings) -> None:
    Path(settings.master_key_file).unlink()
    checks = [check for _, check, _ in ailments(settings)]
    assert checks == ["configuration", "secret files", "audit log"]
    assert "integrity" in [finding.check for finding in examined(settings)]


async def test_under_another_master_key_no_seal_is_called_forged(settings: Settings) -> None:
    Path(settings.master_key_file).unlink()
    MasterKey.generate(Path(settings.master_key_file))
    [(_, master, secrets), (_, keys, does_not_open), (severity, log, not_checked)] = ailments(settings)
    assert (master, keys, severity, log) == ("master key", "signing keys", "ERROR", "audit log")
    assert secrets == (
        "secrets do not open with the master key: audit-names, audit-seal, refresh, request-ids, throttle"
    )
    assert "does not open with the master key" in does_not_open
    assert not_checked.startswith("the seals were not checked")


@pytest.mark.parametrize(
    ("later_days", "severity", "said"),
    [(0, "WARNING", "expires in 0 days"), (2, "ERROR", "expired on"), (-2, "ERROR", "is not valid before")],
)
async def test_a_certificate_is_told_before_and_after_its_end(
    settings: Settings, tmp_path: Path, later_days: int, severity: str, said: str
) -> None:
    authority = Authority("test ca")
    certificate, key = write_pair(tmp_path, authority.issue("identity"))
    client_ca = tmp_path / "clients.pem"
    client_ca.write_bytes(authority.certificate)
    with_tls = replace(settings, tls_certificate_file=certificate, tls_key_file=key, tls_client_ca_file=str(client_ca))
    found = [each for each in ailments(with_tls, later_days * DAY) if each[1] == "tls"]
    assert [each[0] for each in found] == [severity, severity]
    assert "tls_certificate_file" in found[0][2]
    assert "tls_client_ca_file" in found[1][2]
    assert all(said in each[2] for each in found)


async def test_a_certificate_with_time_left_is_well(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_CERTIFICATE_DAYS", 0)
    certificate, key = write_pair(tmp_path, Authority("test ca").issue("identity"))
    assert ailments(replace(settings, tls_certificate_file=certificate, tls_key_file=key)) == []


async def test_the_key_of_another_certificate_is_told(settings: Settings, tmp_path: Path) -> None:
    authority = Authority("test ca")
    certificate, key = write_pair(tmp_path, authority.issue("identity"))
    Path(key).write_bytes(authority.issue("other")[1])
    [(severity, check, _)] = ailments(replace(settings, tls_certificate_file=certificate, tls_key_file=key))
    assert (severity, check) == ("ERROR", "tls")


@pytest.mark.parametrize(("free_mib", "severity"), [(900, "WARNING"), (10, "ERROR")])
async def test_a_full_disk_is_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, free_mib: int, severity: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free_mib * 2**20))
    assert ailments(settings) == [(severity, "disk", f"{free_mib} MiB are free where the database lies")]


async def test_a_missing_database_is_told(settings: Settings) -> None:
    database_of(settings).unlink()
    [(severity, check, found)] = ailments(settings)
    assert (severity, check) == ("ERROR", "database")
    assert "is no file" in found
    assert not database_of(settings).exists()


@pytest.mark.parametrize("content", [b"", b"no database, but a text that is long enough to be looked at" * 100])
async def test_a_file_that_is_no_database_of_ours_is_told(settings: Settings, content: bytes) -> None:
    database_of(settings).write_bytes(content)
    [(severity, check, _)] = ailments(settings)
    assert (severity, check) == (("ERROR", "database") if content else ("WARNING", "migrations"))


@pytest.mark.parametrize(("revision", "severity"), [("0001", "WARNING"), ("9999", "ERROR")])
async def test_another_schema_is_told_and_not_looked_into(settings: Settings, revision: str, severity: str) -> None:
    sql(settings, f"UPDATE alembic_version SET version_num = '{revision}'")
    assert [each[:2] for each in ailments(settings)] == [(severity, "migrations")]


async def test_a_damaged_file_is_told(settings: Settings) -> None:
    database = database_of(settings)
    with closing(sqlite3.connect(database)) as connection:
        [page] = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_roles_1'"
        ).fetchone()
        [size] = connection.execute("PRAGMA page_size").fetchone()
    with database.open("r+b") as file:
        file.seek(page * size - 4)  # in the name of the first role
        file.write(b"\0\0")
    assert {(severity, check) for severity, check, _ in ailments(settings)} == {("ERROR", "integrity")}


async def test_rows_that_refer_to_nothing_are_told(settings: Settings) -> None:
    sql(
        settings,
        "INSERT INTO grants (grant_id, account_id, kind, create_time, latest_expire_time, audiences, "
        "requested_scopes) VALUES ('x', 'nobody', 'session', 1, 1, '', '')",
    )
    assert ailments(settings) == [("ERROR", "integrity", "a row of grants refers to nothing")]


async def test_a_clock_behind_the_database_is_told(settings: Settings) -> None:
    [(severity, check, found)] = ailments(settings, later_seconds=-1_000)
    assert (severity, check) == ("ERROR", "clock")
    assert "seconds behind" in found


async def test_the_age_of_a_key_is_said_and_nothing_is_asked_for_that_no_command_does(settings: Settings) -> None:
    assert ailments(settings, later_seconds=500 * DAY) == []
    assert any(each.found.endswith("active, and 500 days old") for each in examined(settings, 500 * DAY))


@pytest.mark.requirement("R26")
async def test_the_numbers_of_the_keys_are_said_and_each_step_of_a_rotation_that_is_due(settings: Settings) -> None:
    path = Path(settings.master_key_file)
    old = path.read_bytes()
    assert any(each.found == "6 values are sealed under key 1" for each in examined(settings))
    in_own_loop(lambda: master_key_command.add(settings, LOCAL_ACT))
    assert ailments(settings) == [
        ("WARNING", "master key", "6 values are sealed under key 1, and 2 is the newest"),
    ]
    in_own_loop(lambda: master_key_command.reseal(settings, LOCAL_ACT))
    assert ailments(settings)[0] == ("WARNING", "master key", "the file holds key 1, and nothing is sealed under it")
    both = path.read_bytes()
    path.write_bytes(old)  # as on a replica to which the file was not brought
    assert ailments(settings)[0] == (
        "ERROR",
        "master key",
        "6 values are sealed under key 2, which the file does not hold",
    )
    path.write_bytes(both)
    in_own_loop(lambda: master_key_command.forget(settings, LOCAL_ACT))
    assert [each for each in ailments(settings) if each[1] == "master key"] == []


async def test_a_value_that_is_not_sealed_is_told(settings: Settings) -> None:
    sql(settings, "UPDATE sealed_secrets SET sealed_secret = x'00' WHERE label = 'refresh'")
    assert ("ERROR", "master key") in {each[:2] for each in ailments(settings)}


async def test_no_active_key_is_told(settings: Settings) -> None:
    sql(settings, "UPDATE signing_keys SET state = 'retired'")
    assert ailments(settings) == [("ERROR", "signing keys", "no signing key is active")]


@pytest.mark.requirement("R62")
async def test_a_tampered_log_is_told_with_its_range(settings: Settings) -> None:
    sql(settings, "UPDATE audit_events SET caller_account_id = 'AAAAAAAAAAAAAAAAAAAAAA' WHERE event_id = 2")
    [(severity, check, found)] = ailments(settings)
    assert (severity, check) == ("ERROR", "audit log")
    assert found.endswith("(events 1-5): an event was changed, or events were exchanged")


async def test_a_thousand_broken_events_are_told_in_few_lines(settings: Settings) -> None:
    sql(
        settings,
        "WITH RECURSIVE n(i) AS (SELECT 6 UNION ALL SELECT i + 1 FROM n WHERE i < 1005) "
        "INSERT INTO audit_events SELECT i, 1, 'x', 'ok', NULL, NULL, NULL, NULL, '', '', x'00' FROM n",
    )
    sql(
        settings,
        "INSERT INTO audit_personal SELECT event_id, x'00', '', '', '', '', NULL, 1 FROM audit_events "
        "WHERE event_id > 5",
    )
    found = ailments(settings)
    assert len(found) == 21
    assert found[-1][2] == "980 more problems of this kind"


async def test_a_log_that_was_begun_anew_is_told(settings: Settings) -> None:
    sql(settings, f"UPDATE accounts SET create_time = create_time - {3 * DAY}")
    [(severity, check, found)] = ailments(settings)
    assert (severity, check) == ("WARNING", "audit log")
    assert found == "the first seal is 3 days younger than the oldest account"


async def test_a_sealer_that_stands_still_is_told(settings: Settings) -> None:
    for minutes in (0, 2):
        time_ms = int(time.time() - 600 + 60 * minutes) * 1_000
        sql(
            settings,
            "INSERT INTO audit_events (time_ms, action, outcome, subject, request_id, personal_hash) "
            f"VALUES ({time_ms}, 'x', 'ok', '', '', x'00')",
        )
    [(severity, check, found)] = ailments(settings)
    assert (severity, check) == ("WARNING", "audit log")
    assert found == "2 events are not sealed, the oldest for 120 seconds"


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[DevServer]:
    server = DevServer(tmp_path)
    server.start()
    yield server
    server.stop()


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    status = main(["doctor", *map(str, arguments)])
    return status, capsys.readouterr().out


@pytest.mark.requirement("R62")
def test_the_command_works_while_the_service_runs_when_it_is_killed_and_when_it_is_stopped(
    dev: DevServer, capsys: pytest.CaptureFixture[str]
) -> None:
    for end in (None, dev.kill, dev.stop):
        if end is not None:
            end()
        status, text = run(capsys, "--dev", dev.directory)
        assert status == 0, text
        assert text.endswith("0 errors, 0 warnings\n")


def test_the_exit_status_is_the_worst_finding_and_json_says_the_same(
    dev: DevServer, capsys: pytest.CaptureFixture[str]
) -> None:
    dev.stop()
    status, text = run(capsys, "--dev", dev.directory, "--json")
    assert (status, json.loads(text)["severity"]) == (0, "ok")

    with closing(sqlite3.connect(dev.directory / "identity.db")) as connection, connection:
        connection.execute("UPDATE accounts SET create_time = create_time - 3 * 86400")
    status, text = run(capsys, "--dev", dev.directory, "--json")
    report = json.loads(text)
    assert (status, report["severity"]) == (1, "warning")
    [told] = [finding for finding in report["findings"] if finding["severity"] == "warning"]
    assert told["check"] == "audit log"
    assert told["advice"].endswith("treat it as a breach.")

    (dev.directory / "master.key").chmod(0o666)
    status, text = run(capsys, "--dev", dev.directory)
    assert status == 2
    assert "error    secret files" in text
    assert "-> " in text


def test_a_configuration_that_cannot_be_used_is_examined_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "identity.toml"
    config.write_text('listen = "0.0.0.0:1"\nleeway_seconds = "many"\nunknown = 1\ndatabase = "sqlite:///"\n')
    status, text = run(capsys, "--config", config)
    assert status == 2
    for problem in (
        "unknown setting 'unknown'",
        "leeway_seconds must be",
        "is no loopback address",
        "issuer must be set",
    ):
        assert problem in text
