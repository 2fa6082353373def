"""The command line: what it starts, what it refuses, and that no secret ever passes through its arguments."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from identity.cli import main
from identity.password_command import ask_passwords
from identity.storage.sealing import MasterKey
from identity.v1 import (
    account_pb2,
    account_pb2_grpc,
    authentication_pb2,
    authentication_pb2_grpc,
    trust_pb2,
    trust_pb2_grpc,
)
from identity_client.tokens import compact
from tests.faults.dev_server import DevServer

PASSWORD = "correct horse battery"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings for a server of its own on any free port."""
    MasterKey.generate(tmp_path / "master.key")
    path = tmp_path / "identity.toml"
    path.write_text(
        f'''listen = "127.0.0.1:0"
http_listen = "127.0.0.1:0"
issuer = "https://id.example"
database = "sqlite:///{tmp_path}/identity.db"
master_key_file = "{tmp_path}/master.key"
access_token_lifetime_seconds = 1200
'''
    )
    return path


def identity(*arguments: object, text: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("IDENTITY_")}
    return subprocess.run(
        [sys.executable, "-m", "identity.cli", *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        env=clean | environment,
        timeout=60,
        check=False,
    )


class Serving:
    """`identity serve` as a process."""

    def __init__(self, config: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "identity.cli", "serve", "--config", str(config)], stderr=subprocess.PIPE, text=True
        )
        self.lines: list[dict[str, str]] = []

    def address(self) -> str:
        """Wait until it is ready."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(json.loads(line))
            if ready := re.fullmatch(r"identity is ready on (.+)", self.lines[-1]["message"]):
                return ready[1]
        raise AssertionError(f"it never got ready: {self.lines}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; -> its exit status."""
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=30)
        self.lines += [json.loads(line) for line in rest.splitlines()]
        return self.process.returncode


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[DevServer]:
    directory = tmp_path / "dev"
    directory.mkdir()
    server = DevServer(directory)
    server.start()
    yield server
    server.stop()


@pytest.mark.requirement("R8")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_starts_from_a_file_warns_and_drains(config: Path, number: signal.Signals) -> None:
    serving = Serving(config)
    assert serving.address().startswith("127.0.0.1:")
    assert serving.stop(number) == 0
    messages = [line["message"] for line in serving.lines]
    assert any("access_token_lifetime_seconds is 1200" in message for message in messages)
    assert any(message.startswith("draining") for message in messages)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in serving.lines)


@pytest.mark.requirement("R25")
def test_serve_refuses_to_start_with_failpoints_set(config: Path) -> None:
    done = identity("serve", "--config", config, IDENTITY_FAILPOINTS="rotate.before_commit=kill@100")
    assert done.returncode == 1
    assert "failpoints are for tests" in done.stderr


@pytest.mark.requirement("R48")
def test_serve_lists_every_problem_and_shows_no_traceback() -> None:
    done = identity("serve", IDENTITY_LISTEN="0.0.0.0:1", IDENTITY_LEEWAY_SECONDS="99", IDENTITY_LOG_LEVEL="loud")
    assert done.returncode == 1
    assert len(re.findall(r"^  - ", done.stderr, re.MULTILINE)) == 6
    assert "Traceback" not in done.stderr


def test_serve_says_when_its_port_is_taken(config: Path) -> None:
    first = Serving(config)
    address = first.address()
    done = identity("serve", "--config", config, IDENTITY_LISTEN=address)
    assert first.stop() == 0
    assert done.returncode == 1
    assert "listen:" in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_with_another_master_key_says_so(config: Path, tmp_path: Path) -> None:
    assert identity("admin", "create", "root", "--config", config, text=PASSWORD + "\n").returncode == 0
    MasterKey.generate(tmp_path / "other.key")
    done = identity("serve", "--config", config, IDENTITY_MASTER_KEY_FILE=str(tmp_path / "other.key"))
    assert done.returncode == 1
    assert "master_key_file" in done.stderr


def replace_password(address: str, old: str, new: str) -> str:
    """As the first admin does; -> an access token for the service itself."""
    with grpc.insecure_channel(address) as channel:
        request = authentication_pb2.ChangePasswordRequest(
            username="root", current_password=old, new_password=new, audience="identity"
        )
        answer = authentication_pb2_grpc.AuthenticationServiceStub(channel).ChangePassword(request)
        return str(answer.tokens.access_token)


@pytest.mark.requirement("R61")
@pytest.mark.parametrize("given", [PASSWORD, ""], ids=["given", "made and printed"])
def test_the_first_admins_password_is_good_for_replacing_it_once_and_for_nothing_else(config: Path, given: str) -> None:
    created = identity("admin", "create", "root", "--config", config, text=given)
    assert created.returncode == 0
    first, second, *rest = created.stdout.splitlines()
    assert first == "created root, who has the role admin"
    assert second.endswith("identity password --username root")
    printed = re.fullmatch(r"one-time password: (\S{20,})", "".join(rest))
    assert bool(printed) == (not given)
    password = printed[1] if printed else given
    again = identity("admin", "create", "ROOT", "--config", config, text=PASSWORD + "\n")
    assert (again.returncode, again.stderr) == (1, "ACCOUNT_ALREADY_EXISTS: The username is taken.\n")
    serving = Serving(config)
    address = serving.address()
    arguments = ("token", "--address", address, "--username", "root")
    refused = identity(*arguments, text=password + "\n")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "identity password --username root (or AuthenticationService/ChangePassword)" in refused.stderr
    assert replace_password(address, password, "a password of my own")
    with pytest.raises(grpc.RpcError, match="BAD_CREDENTIALS"):
        replace_password(address, password, "a password of a thief")
    token = identity(*arguments, text="a password of my own\n")
    spent = identity(*arguments, text=password + "\n")
    assert serving.stop() == 0
    assert compact.split(token.stdout.strip())
    assert (spent.returncode, spent.stderr) == (1, "BAD_CREDENTIALS: The credentials are not valid.\n")


def test_a_password_is_never_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ("admin", "create", "--help"),
        ("password", "--help"),
        ("token", "--help"),
        ("dev", "--help"),
        ("serve", "--help"),
    ):
        with pytest.raises(SystemExit):
            main(command)
    assert "--password " not in capsys.readouterr().out


@pytest.mark.requirement("R61")
def test_the_first_admin_replaces_the_password_and_logs_in_without_another_tool(config: Path, tmp_path: Path) -> None:
    first = identity("admin", "create", "root", "--config", config).stdout.split()[-1]
    serving = Serving(config)
    environment = {"IDENTITY_ADDRESS": serving.address()}
    command = ("password", "--username", "root")
    replaced = identity(*command, text=f"{first}\r\na password of my own\r\n", **environment)
    again = identity(*command, text=f"{first}\na password of a thief\n", **environment)
    weak = identity(*command, text="a password of my own\nshort\n", **environment)
    (tmp_path / "passwords").write_text("a password of my own\nanother of my own\n")
    from_file = identity(*command, "--password-file", tmp_path / "passwords", **environment)
    token = identity("token", "--username", "root", text="another of my own\n", **environment)
    assert serving.stop() == 0
    done = "the password of root is replaced; sessions that were open have ended\n"
    assert (replaced.stdout, from_file.stdout) == (done, done), replaced.stderr + from_file.stderr
    assert (again.returncode, again.stderr) == (1, "BAD_CREDENTIALS: The credentials are not valid.\n")
    assert (weak.returncode, weak.stderr) == (1, "INVALID_FIELD: new_password: at least 12 characters\n")
    assert compact.split(token.stdout.strip())


def type_unseen(monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    typed = iter(answers)
    monkeypatch.setattr("getpass.getpass", lambda _: next(typed))


def test_passwords_are_typed_unseen_and_the_new_one_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    type_unseen(monkeypatch, PASSWORD, "a password of my own", "a password of my own")
    assert ask_passwords("root") == (PASSWORD, "a password of my own")


def test_a_new_password_that_is_typed_in_two_ways_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_unseen(monkeypatch, PASSWORD, "a password of my own", "a password of my won")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert main(("password", "--username", "root", "--address", "127.0.0.1:1")) == 1
    assert "typed in two ways" in capsys.readouterr().err


def test_a_password_that_is_too_short_creates_nothing(config: Path) -> None:
    done = identity("admin", "create", "root", "--config", config, text="short\n")
    assert (done.returncode, done.stderr) == (1, "INVALID_FIELD: password: at least 12 characters\n")


def test_dev_keeps_its_secrets_to_its_owner_and_its_accounts_over_restarts(dev: DevServer) -> None:
    before = dev.secrets
    for name in ("dev.json", "orders.secret", "master.key", "identity.db"):
        assert stat.S_IMODE((dev.directory / name).stat().st_mode) == 0o600
    dev.start()
    assert dev.secrets == before
    token = identity("token", "--dev", dev.directory, "--header")
    assert token.stdout.startswith("authorization: Bearer eyJ")


def test_dev_without_its_secrets_says_what_to_do(dev: DevServer) -> None:
    (dev.directory / "dev.json").unlink()
    done = identity("dev", "--directory", dev.directory, "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert "another `identity dev` is running" in done.stderr
    dev.stop()
    done = identity("dev", "--directory", dev.directory, "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert "remove the whole folder" in done.stderr


def test_dev_that_lost_its_database_makes_its_accounts_anew(dev: DevServer) -> None:
    before = dev.secrets
    dev.stop()
    for path in dev.directory.glob("identity.db*"):
        path.unlink()
    (dev.directory / "orders.secret").unlink()
    dev.start()
    assert dev.secrets["admin"] != before["admin"]
    assert (dev.directory / "orders.secret").read_text().strip() == dev.secrets["service"]["client_secret"]
    assert identity("token", "--dev", dev.directory).returncode == 0


def test_a_drain_does_not_wait_for_the_streams_of_peers(config: Path) -> None:
    """A stream never ends by itself: the drain must end it, or it would last as long as it may (here a minute)."""
    config.write_text(config.read_text() + "drain_seconds = 60\n")
    assert identity("admin", "create", "root", "--config", config, text=PASSWORD + "\n").returncode == 0
    serving = Serving(config)
    address = serving.address()
    token = replace_password(address, PASSWORD, "a password of my own")
    with grpc.insecure_channel(address) as channel:
        admin = (("authorization", f"Bearer {token}"),)
        secret = account_pb2_grpc.AccountServiceStub(channel).CreateServiceAccount(
            account_pb2.CreateServiceAccountRequest(username="billing", roles=["peer"]), metadata=admin
        )
        credential = authentication_pb2.ClientSecretCredential(client_id="billing", client_secret=secret.client_secret)
        request = authentication_pb2.AuthenticateRequest(client_secret=credential, audience="identity")
        token = authentication_pb2_grpc.AuthenticationServiceStub(channel).Authenticate(request).access.access_token
        peer = (("authorization", f"Bearer {token}"),)
        stream = trust_pb2_grpc.TrustServiceStub(channel).WatchTrust(trust_pb2.WatchTrustRequest(), metadata=peer)
        assert next(iter(stream)).HasField("keys")
        assert serving.stop() == 0  # within the 30 seconds that stop() waits


@pytest.mark.requirement("R48")
@pytest.mark.parametrize("listen", ["0.0.0.0:50551", "192.0.2.1:50551"])
def test_dev_listens_on_loopback_only(tmp_path: Path, listen: str) -> None:
    done = identity("dev", "--directory", tmp_path / "dev", "--listen", listen)
    assert done.returncode == 1
    assert "loopback" in done.stderr
    assert not (tmp_path / "dev").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("token",), "--address"),
        (("password", "--username", "a"), "two lines"),
        (("password", "--username", "a", "--password-file", "/nowhere"), "cannot be read"),
        (("token", "--dev", "/nowhere"), "identity dev"),
        (("token", "--address", "http://127.0.0.1:1", "--username", "a"), "HOST:PORT"),
        (("token", "--address", "192.0.2.1:1", "--username", "a"), "loopback"),
        (("token", "--address", "127.0.0.1:1", "--username", "a"), "DEPENDENCY_DOWN"),
        (("admin", "create", "root", "--config", "/nowhere.toml"), "cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(arguments: tuple[str, ...], part: str) -> None:
    done = identity(*arguments, text="x\n")
    assert done.returncode == 1
    assert part in done.stderr
    assert "Traceback" not in done.stderr
