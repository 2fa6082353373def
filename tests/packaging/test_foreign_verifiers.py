"""Verifiers of other makes take the service's tokens by its JWK Set, and refuse what it did not sign.

npm's jose and Go's golang-jwt are got by their own clients. Where node is absent, or its registry does not answer, its
tests are skipped, which fails in CI; where Go or its module proxy is, they are skipped there too.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import random
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from identity.v1 import signing_key_pb2 as pb
from identity_client.tokens import compact
from identity_client.tokens.keys import base64url
from tests.attacks.forger import Forger, as_bytes
from tests.clients.issuer import FixedClock, Issuer
from tests.rpc.api import Api

pytestmark = [pytest.mark.requirement("R26"), pytest.mark.timeout(400)]

HERE = Path(__file__).with_name("verifiers")
JOSE, GOLANG_JWT = "jose@6.2.18", "github.com/golang-jwt/jwt/v5@v5.3.1"
ANSWER_SECONDS = 20
FETCH_SECONDS, BUILD_SECONDS = 60, 240


def absent(what: str, *, fails_in_ci: bool) -> None:
    """Skip, so that everybody sees it."""
    if fails_in_ci and os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what.upper())


def run(command: Sequence[str], folder: Path, seconds: float, **variables: str) -> bool:
    """Whether *command* ended well within its time."""
    try:
        done = subprocess.run(command, cwd=folder, env=os.environ | variables, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def build_jose(folder: Path) -> list[str]:
    if not (shutil.which("node") and shutil.which("npm")):
        absent("no node and npm: jose is not tried", fails_in_ci=True)
    shutil.copy(HERE / "verify.mjs", folder)
    command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", JOSE]
    if not run(command, folder, FETCH_SECONDS):
        absent(f"npm cannot get {JOSE}", fails_in_ci=True)
    return ["node", str(folder / "verify.mjs")]


def build_golang_jwt(folder: Path) -> list[str]:
    if not shutil.which("go"):
        absent("no go: golang-jwt is not tried", fails_in_ci=False)
    shutil.copy(HERE / "verify.go", folder)
    assert run(["go", "mod", "init", "verify"], folder, ANSWER_SECONDS)
    if not run(["go", "get", GOLANG_JWT], folder, FETCH_SECONDS, GOFLAGS="-mod=mod"):
        absent(f"go cannot get {GOLANG_JWT}", fails_in_ci=False)
    assert run(["go", "build", "-o", "verify", "verify.go"], folder, BUILD_SECONDS, CGO_ENABLED="0")
    return [str(folder / "verify")]


@pytest.fixture(scope="module", params=[build_jose, build_golang_jwt], ids=["jose", "golang-jwt"])
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The verifier's command line, but for its arguments."""
    build: Callable[[Path], list[str]] = request.param
    return build(tmp_path_factory.mktemp("verifier"))


@dataclass
class Verifier:
    """A running one. It has read the keys once, and keeps them."""

    process: asyncio.subprocess.Process
    key_ids: list[str] = field(default_factory=list)

    async def judge(self, token: str) -> str:
        """-> "accepted SUBJECT" or "refused WHY"."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{token}\n".encode())
        return await self.line()

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(ANSWER_SECONDS):
            return (await self.process.stdout.readline()).decode().strip()


@asynccontextmanager
async def started(command: list[str], api: Api, audience: str = "internal") -> AsyncIterator[Verifier]:
    assert api.server.house is not None
    issuer = api.server.house.settings.issuer
    arguments = (f"http://{api.server.http_address}/.well-known/jwks.json", issuer, audience)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, *arguments, stdin=pipe, stdout=pipe)
    try:
        verifier = Verifier(process)
        verifier.key_ids = (await verifier.line()).split()
        yield verifier
    finally:
        process.kill()
        await process.wait()


async def log_in(api: Api) -> str:
    return (await api.login("carol")).access_token


async def rotate(api: Api) -> str:
    """Sign with another key; -> its id."""
    key_id = await prepare(api)
    await activate(api, key_id)
    return key_id


async def prepare(api: Api) -> str:
    response = await api.signing_keys.PrepareSigningKey(pb.PrepareSigningKeyRequest(), metadata=await api.admin())
    return response.signing_key.key_id


async def activate(api: Api, key_id: str) -> None:
    request = pb.ActivateSigningKeyRequest(key_id=key_id, force=True)
    await api.signing_keys.ActivateSigningKey(request, metadata=await api.admin())


async def test_tokens_of_active_retired_and_prepared_keys_are_accepted_and_those_of_a_revoked_one_refused(
    api: Api, command: list[str]
) -> None:
    subject = (await api.create_user("carol")).account_id
    of_revoked = await log_in(api)
    retired_id = await rotate(api)
    of_retired = await log_in(api)
    request = pb.RevokeSigningKeyRequest(key_id=compact.split(of_revoked).key_id, reason="leaked")
    await api.signing_keys.RevokeSigningKey(request, metadata=await api.admin())
    active_id = await rotate(api)
    of_active = await log_in(api)
    prepared_id = await prepare(api)
    async with started(command, api) as verifier:
        assert verifier.key_ids == sorted([retired_id, active_id, prepared_id])
        await activate(api, prepared_id)  # by the keys that were read before it signs
        for token in (of_retired, of_active, await log_in(api)):
            assert await verifier.judge(token) == f"accepted {subject}"
        assert (await verifier.judge(of_revoked)).startswith("refused")


async def test_what_the_service_did_not_sign_is_refused(api: Api, command: list[str]) -> None:
    await api.create_user("carol")
    good = await log_in(api)
    async with started(command, api) as verifier:
        for name, forged in forgeries(api, good).items():
            assert (await verifier.judge(forged)).startswith("refused"), name
        assert (await verifier.judge(good)).startswith("accepted")


async def test_a_token_for_another_audience_is_refused(api: Api, command: list[str]) -> None:
    await api.create_user("carol")
    async with started(command, api, audience="orders") as verifier:
        assert (await verifier.judge(await log_in(api))).startswith("refused")


def forgeries(api: Api, good: str) -> dict[str, str]:
    """Tokens by what was done to them; the payload is the good one's but for the last."""
    assert api.server.house is not None
    [key] = api.server.house.public_keys
    header, payload = (Forger.members(part) for part in good.split(".")[:2])
    forger = Forger(Issuer(FixedClock()), random.Random(1))
    x, y = (int.from_bytes(part) for part in (key.x, key.y))
    numbers = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1())
    pem = numbers.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    stranger = forger.stranger.public_key().public_numbers()
    jwk = jwk_of(stranger.x.to_bytes(32), stranger.y.to_bytes(32))
    body, _, signature = good.rpartition(".")
    return {
        "alg none": unsigned(header | {"alg": "none"}, payload) + ".",
        "alg none, with the signature": f"{unsigned(header | {'alg': 'none'}, payload)}.{signature}",
        "HS256 by the PEM": keyed(pem, header | {"alg": "HS256"}, payload),
        "HS256 by the JWK": keyed(as_bytes(jwk_of(key.x, key.y)), header | {"alg": "HS256"}, payload),
        "another key": forger.sign_with(forger.stranger, header, payload),
        "another key, in the header": forger.sign_with(forger.stranger, header | {"jwk": jwk}, payload),
        "a key that nobody published": forger.sign_with(forger.stranger, header | {"kid": "unknown"}, payload),
        "no signature": f"{body}.",
        "zeros for a signature": f"{body}.{base64url(bytes(64))}",
        "another subject": f"{unsigned(header, payload | {'sub': 'root'})}.{signature}",
    }


def jwk_of(x: bytes, y: bytes) -> dict[str, str]:
    return {"kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y)}


def unsigned(header: Any, payload: Any) -> str:
    return f"{base64url(as_bytes(header))}.{base64url(as_bytes(payload))}"


def keyed(secret: bytes, header: Any, payload: Any) -> str:
    text = unsigned(header, payload)
    return f"{text}.{base64url(hmac.digest(secret, text.encode(), hashlib.sha256))}"
