"""An operator's day at a production server, with a general gRPC tool and nothing else: grpcurl, or buf where it is not.

Requests go in by standard input, tokens by a header file or the environment: no secret is ever an argument.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from sqlalchemy import create_engine, insert

from identity.storage.sealing import MasterKey
from identity.storage.tables import accounts, grants
from tests.clients.issuer import new_id

SESSIONS = int(os.environ.get("IDENTITY_TEST_SESSIONS", "2000"))
"""Sessions that the breach ends in one call; 100,000 are tried with IDENTITY_TEST_SESSIONS=100000."""

TOOLS = Path(sys.executable).parent


class Refused(Exception):
    """The service refused; the message is what the tool showed."""


class Tool(Protocol):
    """A gRPC tool: runs one call with a request from standard input; -> exit status, output, errors."""

    def run(self, address: str, method: str, request: str, token: str) -> subprocess.CompletedProcess[str]: ...


@dataclass
class Buf:
    """`buf curl`: the token comes from a file that its owner alone reads."""

    directory: Path

    def run(self, address: str, method: str, request: str, token: str) -> subprocess.CompletedProcess[str]:
        arguments = [str(TOOLS / "buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", "@-"]
        if token:
            header = self.directory / "admin.header"
            with os.fdopen(os.open(header, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(f"authorization: Bearer {token}\n")
            arguments += ["-H", f"@{header}"]
        return _run([*arguments, f"http://{address}/identity.v1.{method}"], request, {})


@dataclass
class Grpcurl:
    """`grpcurl`: the token comes from the environment; a field mask is a message here, not a text."""

    directory: Path

    def run(self, address: str, method: str, request: str, token: str) -> subprocess.CompletedProcess[str]:
        arguments = ["grpcurl", "-plaintext", "-d", "@"]
        if token:
            arguments += ["-expand-headers", "-H", "authorization: Bearer ${TOKEN}"]
        body = json.loads(request)
        if "update_mask" in body:
            body["update_mask"] = {"paths": body["update_mask"].split(",")}
        return _run([*arguments, address, f"identity.v1.{method}"], json.dumps(body), {"TOKEN": token})


def _run(arguments: list[str], text: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, input=text, capture_output=True, text=True, env=os.environ | environment, timeout=120, check=False
    )


@dataclass
class Operator:
    """Sits at a terminal with one tool, and remembers every secret seen, to prove that none became an argument."""

    tool: Tool
    address: str
    token: str = field(default="", repr=False)

    def does(self, method: str, **request: Any) -> dict[str, Any]:
        """One call; -> its answer, with the field names of the protos. Raises Refused."""
        done = self.tool.run(self.address, method, json.dumps(request), self.token)
        for secret in filter(None, (self.token, *_secrets_in(request))):
            assert not any(secret in argument for argument in done.args), "a secret became an argument"
        if done.returncode:
            raise Refused(done.stderr)
        return _snake(json.loads(done.stdout))  # type: ignore[no-any-return]

    def is_refused(self, reason: str, method: str, **request: Any) -> None:
        """One call that must be refused for *reason*, in words that a person reads."""
        with pytest.raises(Refused, match=reason):
            self.does(method, **request)


def _secrets_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, str) and ("password" in name or name in ("token", "api_key", "refresh_token")):
                yield inner
            yield from _secrets_in(inner)


def _snake(value: Any) -> Any:
    """JSON with the names of the protos, whichever form the tool prints."""
    if isinstance(value, dict):
        return {re.sub(r"[A-Z]", lambda m: f"_{m[0].lower()}", name): _snake(inner) for name, inner in value.items()}
    return [_snake(inner) for inner in value] if isinstance(value, list) else value


@dataclass
class Production:
    """`identity serve` over files of its own."""

    directory: Path
    address: str = ""
    first_password: str = field(default="", repr=False)

    @property
    def config(self) -> Path:
        return self.directory / "identity.toml"

    @property
    def database(self) -> Path:
        return self.directory / "identity.db"

    def prepare(self) -> None:
        """Settings, a master key, and the first admin with a password that is printed once."""
        MasterKey.generate(self.directory / "master.key")
        self.config.write_text(
            f'listen = "127.0.0.1:0"\nhttp_listen = ""\nissuer = "https://id.example"\nreflection = "open"\n'
            f'database = "sqlite:///{self.database}"\nmaster_key_file = "{self.directory}/master.key"\n'
        )
        command = [sys.executable, "-m", "identity.cli", "admin", "create", "root", "--config", str(self.config)]
        created = _run(command, "", {})
        assert created.returncode == 0, created.stderr
        self.first_password = created.stdout.split()[-1]

    def start(self) -> subprocess.Popen[str]:
        """Serve; return once it is ready."""
        command = [sys.executable, "-m", "identity.cli", "serve", "--config", str(self.config)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if ready := re.fullmatch(r"identity is ready on (.+)", json.loads(line)["message"]):
                self.address = ready[1]
                return process
        raise AssertionError("the server never got ready")

    def fill(self, count: int) -> None:
        """Sessions of *count* users, as if they had logged in today."""
        now = int(time.time())
        people = [new_id() for _ in range(count)]
        engine = create_engine(f"sqlite:///{self.database}")
        with closing(engine.raw_connection()), engine.begin() as connection:
            for at in range(0, count, 5_000):
                part = people[at : at + 5_000]
                connection.execute(insert(accounts), [_account(person, now) for person in part])
                connection.execute(insert(grants), [_session(person, now) for person in part])
        engine.dispose()


def _account(person: str, now: int) -> dict[str, Any]:
    return {
        "account_id": person,
        "kind": "user",
        "username": person,
        "normalised_username": person.casefold() + person,
        "roles": "",
        "generation": 1,
        "credential_version": 1,
        "password_hash": "$argon2id$none",
        "create_time": now,
        "update_time": now,
    }


def _session(person: str, now: int) -> dict[str, Any]:
    return {
        "grant_id": new_id(),
        "account_id": person,
        "kind": "session",
        "create_time": now,
        "latest_expire_time": now + 600,
        "expire_time": now + 86_400,
        "absolute_expire_time": now + 86_400,
        "idle_lifetime": 86_400,
        "audiences": "internal",
        "requested_scopes": "",
        "last_used_time": now,
        "count": 0,
        "salt": secrets.token_bytes(16),
        "grace_until": 0,
        "ip_address": "198.51.100.7",
        "user_agent": "phone",
    }


@pytest.fixture
def production(tmp_path: Path) -> Iterator[Production]:
    production = Production(tmp_path)
    production.prepare()
    production.fill(SESSIONS)
    process = production.start()
    yield production
    process.terminate()
    process.communicate(timeout=60)


def a_day(operator: Operator, first_password: str) -> None:
    """First admin, users, roles, keys, a reset, a suspension, a departure, a breach; and who did what."""
    log_in = {"password": {"username": "root", "password": first_password}, "audience": "identity"}
    challenged = operator.does("AuthenticationService/Authenticate", **log_in)
    assert challenged == {"challenge": {"kind": "CHALLENGE_KIND_PASSWORD_CHANGE"}}
    own = secrets.token_urlsafe(18)
    change = {"username": "root", "current_password": first_password, "new_password": own, "audience": "identity"}
    operator.token = operator.does("AuthenticationService/ChangePassword", **change)["tokens"]["access_token"]

    operator.does("RoleService/CreateRole", name="clerk", scopes=["orders.read"], description="Sees orders.")
    password = secrets.token_urlsafe(18)
    bob = {"username": "bob", "password": password, "roles": ["clerk"], "request_id": "onboarding-bob"}
    created = operator.does("AccountService/CreateUser", **bob)["account"]
    assert operator.does("AccountService/CreateUser", **bob)["account"] == created  # the answer got lost: once more
    operator.is_refused("ACCOUNT_ALREADY_EXISTS", "AccountService/CreateUser", **(bob | {"request_id": "another-one"}))
    service = operator.does("AccountService/CreateServiceAccount", username="orders", roles=["peer"])
    listed = operator.does("AccountService/ListAccounts", role="clerk")
    assert [each["username"] for each in listed["accounts"]] == ["bob"]

    terms = {"display_name": "nightly report", "audiences": ["orders"], "scopes": ["orders.read"]}
    key_request = {"username": "bob", "terms": terms, "use": "API_KEY_USE_BEARER", "request_id": "nightly-key"}
    key = operator.does("CredentialService/CreateApiKey", **key_request)
    operator.is_refused("SECRET_ALREADY_SHOWN", "CredentialService/CreateApiKey", **key_request)
    explained = operator.does("RevocationService/ExplainToken", token=key["api_key"])
    assert (explained["kind"], explained["good"]) == ("EXPLAINED_KIND_API_KEY", True)
    revoke = {"credential_id": key["credential"]["credential_id"], "reason": "found in a chat"}
    assert operator.does("CredentialService/RevokeCredential", **revoke) == {"ended_grant_count": "1"}
    explained = operator.does("RevocationService/ExplainToken", token=key["api_key"])
    assert "good" not in explained
    assert [each["name"] for each in explained["checks"] if each["outcome"] == "CHECK_OUTCOME_FAILED"] == ["grant"]

    bobs = {"password": {"username": "bob", "password": password}}
    tokens = operator.does("AuthenticationService/Authenticate", **bobs)["tokens"]
    sessions = operator.does("AccountService/ListAccountSessions", username="bob")["sessions"]
    assert [each["session_id"] for each in sessions] == [tokens["session_id"]]
    operator.does("AccountService/SetRoles", username="bob", roles=[])
    assert operator.does("AccountService/DisableAccount", username="bob")["account"]["disable_time"]
    operator.is_refused("SESSION_ENDED", "TokenService/Refresh", refresh_token=tokens["refresh_token"])
    operator.is_refused("BAD_CREDENTIALS", "AuthenticationService/Authenticate", **bobs)
    operator.does("AccountService/EnableAccount", username="bob")
    operator.does("AccountService/SetPassword", username="bob", password=secrets.token_urlsafe(18))
    change_name = {"username": "robert"}
    operator.does("AccountService/UpdateAccount", username="bob", change=change_name, update_mask="username")
    operator.does("AccountService/DeleteAccount", username="robert", reason="left")
    operator.is_refused("ACCOUNT_NOT_FOUND", "AccountService/GetAccount", account_id=created["account_id"])
    operator.does("RevocationService/RevokeGrant", grant_id=service["grant_id"], reason="rotated")
    operator.is_refused("LAST_ADMIN", "AccountService/DisableAccount", username="root")

    phones = {"origin": "198.51.100.0/24"}
    assert operator.does("RevocationService/RevokeSessions", filter=phones, dry_run=True) == {
        "ended_grant_count": str(SESSIONS)
    }
    breach = {"filter": {"all": True}, "reason": "breach"}
    ended = operator.does("RevocationService/RevokeSessions", **breach)
    assert ended == {"ended_grant_count": str(SESSIONS + 1)}  # the operator's own, too
    operator.is_refused("TOKEN_OUTDATED|TOKEN_REVOKED", "AccountService/ListAccounts")

    operator.token = ""
    log_in = {"password": {"username": "root", "password": own}, "audience": "identity"}
    operator.token = operator.does("AuthenticationService/Authenticate", **log_in)["tokens"]["access_token"]
    assert operator.does("RevocationService/RevokeSessions", **breach, dry_run=True) == {"ended_grant_count": "1"}
    listed = operator.does("RevocationService/ListRevocations", kind="REVOCATION_KIND_GRANT", page_size=1000)
    assert len(listed["revocations"]) >= min(1000, SESSIONS)

    events = all_events(operator)
    done = {each["action"] for each in events if each["outcome"] == "ok"}
    assert done >= {
        *("account.create", "role.create", "api_key.create", "account.set_roles", "account.disable", "account.enable"),
        *("password.set", "account.update", "account.delete", "grant.end.revoked", "sessions.revoke"),
    }
    [deleted] = [each for each in events if each["action"] == "account.delete"]
    assert deleted["account_id"] == created["account_id"]
    assert "robert" not in json.dumps(events)


def all_events(operator: Operator) -> list[dict[str, Any]]:
    """The audit log, page by page."""
    events: list[dict[str, Any]] = []
    page: dict[str, Any] = {"next_page_token": ""}
    while "next_page_token" in page:
        page = operator.does("AuditService/ListAuditEvents", page_size=200, page_token=page["next_page_token"])
        events += page.get("events", [])
    return events


@pytest.mark.requirement("R6")
@pytest.mark.requirement("R60")
@pytest.mark.requirement("R61")
@pytest.mark.timeout(300)
def test_an_operators_day_with_buf(production: Production, tmp_path: Path) -> None:
    a_day(Operator(Buf(tmp_path), production.address), production.first_password)


if shutil.which("grpcurl"):

    @pytest.mark.requirement("R60")
    @pytest.mark.timeout(300)
    def test_an_operators_day_with_grpcurl(production: Production, tmp_path: Path) -> None:
        a_day(Operator(Grpcurl(tmp_path), production.address), production.first_password)
