"""SIGKILL under load: no act is without its row in the audit log, no row without its act, and the seals hold."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from identity.dev import DevFiles
from identity.domain.audit_seals import SealKey
from identity.lasting import Label
from identity.storage import inspection
from identity.storage.sealing import MasterKey
from identity.storage.sql.audit_check import AuditReport, check_audit
from tests.faults.dev_server import DevServer
from tests.faults.test_durability import WORKERS, Acknowledged, Client, work_until_killed
from tests.faults.test_refresh_crash import open_channel

KILLS = 2 * int(os.environ.get("IDENTITY_TEST_ROUNDS", "1"))

ACTS_AND_ROWS = {
    "sessions": (
        "SELECT grant_id FROM grants WHERE kind = 'session'",
        "SELECT grant_id FROM audit_events WHERE action = 'session.open' AND outcome = 'ok'",
    ),
    "rotations": (
        "SELECT grant_id, count FROM grants WHERE kind = 'session' AND count > 0",
        "SELECT grant_id, count(*) FROM audit_events WHERE action = 'session.refresh' AND outcome = 'ok' GROUP BY 1",
    ),
    "ended grants": (
        "SELECT grant_id FROM grants WHERE end_time IS NOT NULL",
        "SELECT grant_id FROM audit_events WHERE action LIKE 'grant.end.%'",
    ),
    "accounts": (
        "SELECT account_id FROM accounts",
        "SELECT account_id FROM audit_events WHERE action = 'account.create'",
    ),
    "first secrets": (
        "SELECT grant_id FROM grants WHERE kind = 'client_secret'",
        "SELECT grant_id FROM audit_events WHERE action = 'account.create' AND grant_id IS NOT NULL",
    ),
    "API keys": (
        "SELECT grant_id FROM grants WHERE kind = 'api_key'",
        "SELECT grant_id FROM audit_events WHERE action = 'api_key.create'",
    ),
    "roles": (
        "SELECT trim(name || ' ' || scopes) FROM roles WHERE NOT is_built_in",
        "SELECT subject FROM audit_events WHERE action = 'role.create'",
    ),
    "signing keys": (
        "SELECT key_id FROM signing_keys",
        "SELECT subject FROM audit_events WHERE action = 'signing_key.create'",
    ),
    "places and programs": (
        "SELECT event_id FROM audit_personal",
        "SELECT event_id FROM audit_events",
    ),
}


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    server = DevServer(tmp_path_factory.mktemp("audit"))
    yield server
    server.stop()


@pytest.mark.requirement("R62")
@pytest.mark.timeout(300)
def test_after_a_kill_every_act_has_its_row_and_every_row_its_act(server: DevServer) -> None:
    server.start()
    server.stop()  # the accounts are there from now on
    files = DevFiles(server.directory)
    for number in range(KILLS):
        work_and_kill(server, number)
        assert_sound(check(files))  # by the doctor's eyes, before anybody has tidied up
        assert_acts_and_rows_agree(files.database)
    assert_all_kinds_happened(files.database)
    server.start()
    server.stop()
    report = check(files)
    assert_sound(report)
    assert report.unsealed_count == 0
    assert report.newest is not None
    assert report.newest.seal_number > KILLS


def work_and_kill(server: DevServer, number: int) -> None:
    """Kill at a random time, or while the second, third or fourth seal is being written."""
    in_seal = number % 2 == 1
    server.start(IDENTITY_FAILPOINTS=f"seal.before_commit=kill@{random.randint(2, 4)}" if in_seal else "")
    with open_channel(server.address) as channel:
        killer = threading.Timer(random.uniform(0.5, 2.0), server.kill)
        if not in_seal:
            killer.start()
        names = [f"service-{number}-{at}" for at in range(WORKERS)]
        workers = [threading.Thread(target=work, args=(server, channel, name)) for name in names]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        killer.cancel()
    server.wait_killed()


def work(server: DevServer, channel: grpc.Channel, name: str) -> None:
    try:
        client = Client(server, channel)
    except grpc.RpcError:
        return  # killed while it logged in
    work_until_killed(client, Acknowledged(), name)


def check(files: DevFiles) -> AuditReport:
    key = SealKey(MasterKey.from_file(files.master_key).derive(Label.AUDIT_SEAL))
    with inspection.open_read_only(files.database) as connection:
        return check_audit(connection, key)


def assert_sound(report: AuditReport) -> None:
    assert report.problems == []
    assert report.newest is not None


def assert_acts_and_rows_agree(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        for name, (acts, rows) in ACTS_AND_ROWS.items():
            done, told = Counter(connection.execute(acts)), Counter(connection.execute(rows))
            assert not done - told, f"{name} without a row"
            assert not told - done, f"rows of {name} without their act"


def assert_all_kinds_happened(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        for name, (acts, _) in ACTS_AND_ROWS.items():
            assert connection.execute(acts).fetchone(), f"there are no {name}: the test sees nothing"
