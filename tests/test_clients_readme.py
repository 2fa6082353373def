"""clients/README.md: every block of code is run, as files of one peer, and the tables hold every option."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass

import identity_client
from identity.server import CONTRACT
from identity_client import aio, status
from identity_client.redis import RedisRevocations
from identity_client.testing import Issuer
from tests.clients.fake_identity import CLIENT_ID, CLIENT_SECRET, FakeIdentity
from tests.clients.issuer import RunningClock, bearer

ROOT = Path(__file__).parents[1]
README = (ROOT / "clients" / "README.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", README, re.DOTALL))

CHECKS = """
import asyncio

import grpc
import grpc.aio
import pytest

import adoption, calling, guards, measuring
from identity_client import aio, status
from pets.v1 import pets_pb2 as pb
from pets.v1.pets_pb2_grpc import PetServiceStub, add_PetServiceServicer_to_server
from server import PetServicer


class Serving:
    def __init__(self, guard):
        self.server = grpc.aio.server(interceptors=[guard])
        add_PetServiceServicer_to_server(PetServicer(), self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    async def __aenter__(self):
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(self.address)
        return PetServiceStub(self.channel)

    async def __aexit__(self, *_):
        await self.channel.close()
        await self.server.stop(None)


async def reason_of(call):
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return status.from_rpc_error(error).reason
    return "admitted"


def test_calling(identity_aio, identity_issuer):
    async def run():
        serving = Serving(identity_aio.guard("pets", pb))
        async with serving:
            ours, theirs = calling.pets_for(identity_aio, serving.address)
            with identity_issuer.calling(identity_issuer.mint("alice", scopes=["pets.read"])):
                return [(await stub.GetPet(pb.GetPetRequest(name="Rex"))).greeting for stub in (ours, theirs)]

    names = [identity_issuer.account_id(name) for name in ("test", "alice")]
    assert asyncio.run(run()) == [f"Rex greets {name}" for name in names]


def test_guards(identity_aio, identity_issuer):
    async def run():
        async with Serving(guards.strict(identity_aio)) as stub:
            keeper = identity_issuer.mint("alice", roles=["keeper"], audience="zoo")
            elsewhere = identity_issuer.mint("alice", roles=["keeper"])
            assert await reason_of(stub.DeletePet(pb.DeletePetRequest(), metadata=keeper)) == "admitted"
            assert await reason_of(stub.DeletePet(pb.DeletePetRequest(), metadata=elsewhere)) == "WRONG_AUDIENCE"
            assert (await stub.GetOpeningHours(pb.GetOpeningHoursRequest())).hours == "9 to 5"
            watching = stub.WatchPets(pb.WatchPetsRequest(), metadata=keeper)
            await watching.read()
            identity_issuer.revoke(keeper)
            assert await watching.code() is grpc.StatusCode.UNAUTHENTICATED

    asyncio.run(run())


def test_adoption(identity_aio, identity_issuer):
    async def run(guard):
        async with Serving(guard) as stub:
            return [
                await reason_of(stub.GetPet(pb.GetPetRequest(name="Rex"), metadata=metadata))
                for metadata in ((), identity_issuer.mint("alice"), identity_issuer.mint("bob", scopes=["pets.read"]))
            ]

    first = adoption.first(identity_aio)
    # The handler asks who calls and is told that nobody does: it fails, but the guard let the call through.
    assert "CREDENTIALS_MISSING" not in asyncio.run(run(first))
    alice = identity_issuer.account_id("alice")
    assert adoption.who_would_fail(first) == sorted([
        "/pets.v1.PetService/GetPet CREDENTIALS_MISSING unauthenticated at 127.0.0.1: 1",
        f"/pets.v1.PetService/GetPet PERMISSION_MISSING {alice} at 127.0.0.1: 1",
    ])
    second = adoption.second(identity_aio)
    assert asyncio.run(run(second))[2] == "admitted"
    assert len(adoption.who_would_fail(second)) == 2


def test_measuring(identity_aio, identity_issuer):
    async def run(hooks, metadata):
        async with Serving(identity_aio.guard("pets", pb, hooks=hooks)) as stub:
            await reason_of(stub.GetPet(pb.GetPetRequest(), metadata=metadata))

    hooks, method = measuring.Judgements(), "/pets.v1.PetService/GetPet"
    asyncio.run(run(hooks, identity_issuer.mint()))
    assert dict(hooks.counts) == {("judged", method): 1, ("refused", method, "PERMISSION_MISSING"): 1}
    state = measuring.State()
    state.observed(1.5, 2, 0.25)
    assert (state.age, state.entries, state.skew) == (1.5, 2, 0.25)
"""


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's files in a folder, its proto compiled with the README's own command."""
    folder = tmp_path_factory.mktemp("pets")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    subprocess.run(["make", "--no-print-directory", ".generator/.ready"], cwd=ROOT, check=True, capture_output=True)
    (folder / ".generator").symlink_to(ROOT / ".generator")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-euc", commands("compile")], cwd=folder, env=environment, check=True, timeout=60)
    return folder


def commands(name: str) -> str:
    """The commands marked with *name*."""
    found = re.search(rf"<!-- run: {name} -->\n```bash\n(.*?)```", README, re.DOTALL)
    assert found
    return found[1]


def test_its_generator_is_the_one_that_the_stubs_of_the_package_were_made_with() -> None:
    [wanted] = re.findall(r"grpcio-tools==\S+", commands("generator"))
    assert wanted in (ROOT / "Makefile").read_text().split()


def test_every_block_of_code_is_run() -> None:
    blocks = re.findall(r"```(?:python|proto|bash)\n", README)
    assert len(blocks) == len(FILES) + len(("generator", "compile"))


def test_the_requests_of_its_table_are_ones() -> None:
    rows = re.findall(r"^\| [^|]+ \| `(\w+)/(\w+)` \| `(\{.*\})` \|$", README, re.MULTILINE)
    assert len(rows) == 3
    for service, method, body in rows:
        [found] = [module for module in CONTRACT if service in module.DESCRIPTOR.services_by_name]
        request = found.DESCRIPTOR.services_by_name[service].methods_by_name[method].input_type
        json_format.Parse(body, GetMessageClass(request)())


@pytest.mark.requirement("R70")
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("server.py")])
async def test_its_servers_start_and_greet_whom_the_proto_lets_in(peer: Path, name: str) -> None:
    fake = FakeIdentity(RunningClock())
    await fake.start()
    (peer / "secret").write_text(CLIENT_SECRET)
    environment = os.environ | {
        "IDENTITY_ADDRESS": fake.address,
        "IDENTITY_CLIENT_ID": CLIENT_ID,
        "IDENTITY_CLIENT_SECRET_FILE": str(peer / "secret"),
    }
    server = await asyncio.create_subprocess_exec(
        sys.executable, name, cwd=peer, env=environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        async with asyncio.timeout(60):
            address = (await server.stdout.readline()).decode().split()[-1]
            claims = fake.issuer.claims(scopes=("pets.read",))
            async with grpc.aio.insecure_channel(address) as channel:
                get_pet = cast(Any, channel).unary_unary("/pets.v1.PetService/GetPet")
                answer = await get_pet(b"\n\x03Rex", metadata=bearer(fake.issuer.sign(claims)))
                assert answer.endswith(f"Rex greets {claims.account_id}".encode())
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await get_pet(b"\n\x03Rex")
                assert status.from_rpc_error(caught.value).reason == "CREDENTIALS_MISSING"
    finally:
        server.kill()
        await server.communicate()
        await fake.stop()


@pytest.mark.requirement("R74")
def test_its_tests_pass_and_its_other_files_do_what_it_says(peer: Path) -> None:
    (peer / "test_the_rest.py").write_text(CHECKS)
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=peer, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout
    assert "8 passed" in done.stdout


TABLES: dict[str, Callable[..., object]] = {
    "Identity(connection, ...)": aio.Identity,
    "RedisRevocations(url, ...)": RedisRevocations,
    "Connection(...)": aio.Connection,
    "identity.guard(name, *modules, ...)": aio.Identity.guard,
    "identity.channel(target, ...)": aio.Identity.channel,
}


@pytest.mark.parametrize("heading", TABLES)
def test_the_tables_hold_every_option_and_its_default(heading: str) -> None:
    found = re.search(rf"Of `{re.escape(heading)}`.*?\n\n(.*?)\n\n", README, re.DOTALL)
    assert found
    rows = [[cell.strip(" `") for cell in re.split(r"(?<!\\)\|", line)[1:3]] for line in found[1].splitlines()[2:]]
    expected = [
        [name, "" if parameter.default is inspect.Parameter.empty else repr(parameter.default)]
        for name, parameter in inspect.signature(TABLES[heading]).parameters.items()
        if name != "self"
    ]
    assert rows == expected


def test_the_two_faces_have_the_same_options() -> None:
    for asynchronous in (aio.Identity, aio.Identity.guard, aio.Identity.channel, aio.Identity.from_env):
        name = asynchronous.__name__
        threaded = identity_client.Identity if name == "Identity" else getattr(identity_client.Identity, name)
        options = [inspect.signature(cast(Any, face)).parameters.values() for face in (asynchronous, threaded)]
        assert [(p.name, p.default) for p in options[0]] == [(p.name, p.default) for p in options[1]]


def test_the_table_of_the_issuer_names_what_it_can() -> None:
    table = README.partition("| `identity_issuer.` |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+)[`.(]", table))
    public = {name for name in vars(Issuer) if not name.startswith("_")}
    assert public - {"account_id", "exchange", "introspect", "confirm"} <= named
    assert named - {"clock", "metadata", "raw_token", "certificate"} <= public


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([A-Z]+_[A-Z_]+)`", README))))
def test_reasons_and_variables_that_it_names_exist(name: str) -> None:
    environment = (ROOT / "clients" / "identity_client" / "aio" / "environment.py").read_text()
    protos = "".join(path.read_text() for path in (ROOT / "protos" / "identity" / "v1").glob("*.proto"))
    known = {code.name for code in grpc.StatusCode} | set(re.findall(r"\w+", protos + environment))
    assert name in known or f"ERROR_REASON_{name}" in known
