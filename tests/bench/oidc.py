"""node's oidc-provider beside the service: another project's measure of the same work, in memory, over HTTP/1.1.

The package and its version are fixed here, and npm puts it under build/. Where node, npm or h2load is missing there is
no such row, and the bench says why.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from tests.bench.h2load import Post
from tests.bench.load import stay_on

PACKAGE = "oidc-provider@9.13.3"
_SCRIPT = Path(__file__).with_name("oidc_provider.mjs")
_FOLDER = Path("build/oidc-provider")


@dataclass(frozen=True)
class OidcProvider:
    """One that runs."""

    address: str
    process_id: int
    node: str
    secret: str = field(repr=False)

    @property
    def settings(self) -> str:
        return f"{PACKAGE} on node {self.node}, in memory"

    def client_credentials(self) -> Post:
        """An access token by client secret: a JWT signed by ES256."""
        return self._post("/token", _wanted(resource="urn:orders"))

    def introspection(self) -> Post:
        """What an opaque access token is worth; it keeps no JWT that it could introspect."""
        token = json.loads(self._answer("/token", _wanted()))["access_token"]
        return self._post("/token/introspection", {"token": token})

    def _post(self, path: str, form: dict[str, str]) -> Post:
        answer = self._answer(path, form)
        if not (b'"active":true' in answer or b'"access_token"' in answer):
            raise RuntimeError(f"oidc-provider does not do what is to be measured: {path}")
        headers = tuple(self._headers().items())
        return Post(f"http://{self.address}{path}", self.process_id, _body(form), headers, len(answer), is_http1=True)

    def _answer(self, path: str, form: dict[str, str]) -> bytes:
        request = Request(f"http://{self.address}{path}", _body(form), self._headers())
        try:
            with urlopen(request, timeout=10) as answer:
                content: bytes = answer.read()
        except URLError as error:
            raise RuntimeError(f"oidc-provider refuses {path}") from error
        return content

    def _headers(self) -> dict[str, str]:
        basic = base64.b64encode(f"bench:{self.secret}".encode()).decode()
        return {"authorization": f"Basic {basic}", "content-type": "application/x-www-form-urlencoded"}


def missing() -> str:
    """Why it cannot be measured here; empty if it can."""
    absent = [name for name in ("node", "npm", "h2load") if shutil.which(name) is None]
    return f"not measured: {' and '.join(absent)} not installed" if absent else ""


@contextmanager
def running() -> Iterator[OidcProvider | None]:
    """One that runs, on the core of the servers; None where `missing` says why."""
    if missing():
        yield None
        return
    folder, secret = _install(), secrets.token_urlsafe(32)
    with subprocess.Popen(
        ["node", _SCRIPT.name],
        cwd=folder,
        env=os.environ | {"BENCH_CLIENT_SECRET": secret, "NODE_ENV": "production"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: stay_on(min),
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        said = json.loads(process.stdout.readline())
        yield OidcProvider(f"127.0.0.1:{said['port']}", process.pid, said["node"], secret)
        process.stdin.close()


def _install() -> Path:
    """The folder with the package and our script. Raises CalledProcessError: npm cannot get it."""
    name, _, version = PACKAGE.partition("@")
    held = _FOLDER / "node_modules" / name / "package.json"
    if not held.exists() or json.loads(held.read_text())["version"] != version:
        _FOLDER.mkdir(parents=True, exist_ok=True)
        (_FOLDER / "package.json").write_text('{"private": true}\n')
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--save-exact", PACKAGE]
        subprocess.run(command, cwd=_FOLDER, check=True, capture_output=True)
    shutil.copy(_SCRIPT, _FOLDER)
    return _FOLDER


def _wanted(**more: str) -> dict[str, str]:
    return {"grant_type": "client_credentials", "scope": "orders.read", **more}


def _body(form: dict[str, str]) -> bytes:
    return urlencode(form).encode()
