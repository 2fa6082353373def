"""Guards in the servers that people run: worker processes of gunicorn and uvicorn, each with a guard of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from identity_client import status
from identity_client.trust.entries import Entry, EntryKind
from tests.clients.fake_identity import CLIENT_ID, CLIENT_SECRET, FakeIdentity
from tests.clients.issuer import RunningClock, bearer
from tests.clients.shapes import path

ROOT = Path(__file__).parents[2]
WORKERS = 2
COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "gunicorn": lambda socket: [
        *("gunicorn", "-c", "python:tests.servers.gunicorn_peer", "-b", f"unix:{socket}"),
        *("--no-control-socket", "tests.servers.gunicorn_peer:app"),
    ],
    "uvicorn": lambda socket: [
        *("uvicorn", "--workers", str(WORKERS), "--uds", str(socket), "--log-level", "warning"),
        "tests.servers.uvicorn_peer:app",
    ],
}


@pytest.fixture
async def fake() -> AsyncIterator[FakeIdentity]:
    service = FakeIdentity(RunningClock())
    await service.start()
    yield service
    await service.stop()


class Fleet:
    """A running server and its workers."""

    def __init__(self, process: asyncio.subprocess.Process, socket: Path) -> None:
        self.process = process
        self.socket = socket

    async def ports(self, without: int = 0) -> dict[int, int]:
        """Every worker's process id and port, once all run and *without* is not among them."""
        ports: dict[int, int] = {}
        async with asyncio.timeout(30):
            while len(ports) < WORKERS:
                assert self.process.returncode is None, "the server ended"
                worker = await self._ask()
                if worker.get("process_id", without) == without:
                    await asyncio.sleep(0.05)
                else:
                    ports[worker["process_id"]] = worker["port"]
        return ports

    async def _ask(self) -> dict[str, int]:
        """One worker, whichever the kernel chooses; nothing while none answers."""
        try:
            reader, writer = await asyncio.open_unix_connection(self.socket)
        except OSError:
            return {}
        try:
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            answer = await reader.read()
        except OSError:  # its worker was killed
            return {}
        finally:
            writer.close()
        body = answer.partition(b"\r\n\r\n")[2]
        worker: dict[str, int] = json.loads(body) if body.startswith(b"{") else {}
        return worker


@asynccontextmanager
async def fleet(name: str, fake: FakeIdentity, folder: Path, **variables: str) -> AsyncIterator[Fleet]:
    secret = folder / "secret"
    secret.write_text(CLIENT_SECRET)
    environment = (
        os.environ
        | variables
        | {
            "IDENTITY_ADDRESS": fake.address,
            "IDENTITY_CLIENT_ID": CLIENT_ID,
            "IDENTITY_CLIENT_SECRET_FILE": str(secret),
        }
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *COMMANDS[name](folder / "socket"),
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield Fleet(process, folder / "socket")
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def answer(port: int, metadata: Any = ()) -> str:
    """The reason of a refusal, or the handler's answer."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            call = cast(Any, channel).unary_unary(path("UnaryUnary"))(b"", metadata=metadata, timeout=10)
            return bytes(await call).decode()
        except grpc.aio.AioRpcError as error:
            return status.from_rpc_error(error).reason


@pytest.mark.requirement("R70")
@pytest.mark.parametrize("name", COMMANDS)
async def test_each_worker_guards_its_calls_hears_of_revocations_and_is_replaced_by_one_that_does(
    fake: FakeIdentity, tmp_path: Path, name: str
) -> None:
    claims = fake.issuer.claims(scopes=("read",))
    held = bearer(fake.issuer.sign(claims))
    async with fleet(name, fake, tmp_path) as running:
        ports = await running.ports()
        for port in ports.values():
            assert [await answer(port, held), await answer(port)] == [claims.account_id, "CREDENTIALS_MISSING"]

        fake.revoke(Entry(EntryKind.GRANT, claims.grant_id, int(time.time()) + 1_200))
        async with asyncio.timeout(10):
            for port in ports.values():
                while await answer(port, held) != "TOKEN_REVOKED":
                    await asyncio.sleep(0.01)

        killed = next(iter(ports))
        os.kill(killed, signal.SIGKILL)
        for port in (await running.ports(without=killed)).values():
            other = fake.issuer.claims(scopes=("read",))
            assert await answer(port, bearer(fake.issuer.sign(other))) == other.account_id
            assert await answer(port, held) == "TOKEN_REVOKED"

        running.process.terminate()
        async with asyncio.timeout(20):
            output, _ = await running.process.communicate()
        assert (running.process.returncode in (0, -signal.SIGTERM), output.count(b"left cleanly")) == (True, WORKERS)


async def test_an_identity_made_before_gunicorn_forks_tells_where_to_make_it(
    fake: FakeIdentity, tmp_path: Path
) -> None:
    async with fleet("gunicorn", fake, tmp_path, MADE_BEFORE_FORK="1") as running:
        async with asyncio.timeout(30):
            output, _ = await running.process.communicate()
    assert running.process.returncode != 0
    assert b"ForkedError: this Identity was made before the process forked" in output
    assert b"gunicorn's post_fork hook" in output
