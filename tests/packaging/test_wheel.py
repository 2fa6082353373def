"""A peer with nothing but the wheel: no extras, an empty environment, its own annotated proto, its own tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "clients" / "examples"
SERVER_ONLY = {"sqlalchemy", "alembic", "redis", "grpcio-health-checking", "grpcio-reflection"}
TEST_TOOLS = ("pytest", "types-grpcio", "types-protobuf")  # what a peer has besides, for its tests and its mypy

PEERS_TEST = """
import asyncio

import grpc
import pytest

from orders.server import OrderServicer
from orders.v1 import orders_pb2 as pb
from orders.v1.orders_pb2_grpc import OrderServiceStub, add_OrderServiceServicer_to_server


async def get_order(identity, metadata):
    server = grpc.aio.server(interceptors=[identity.guard("orders", pb)])
    billing = identity.channel("127.0.0.1:1", audience="billing")
    add_OrderServiceServicer_to_server(OrderServicer(billing), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            answer = await OrderServiceStub(channel).GetOrder(pb.GetOrderRequest(order_id="1"), metadata=metadata)
            return answer.order.item
    finally:
        await billing.close()
        await server.stop(None)


def test_a_clerk_gets_an_order(identity_aio, identity_issuer):
    assert asyncio.run(get_order(identity_aio, identity_issuer.mint("alice", roles=["clerk"]))) == "tea"


def test_others_do_not(identity_aio, identity_issuer):
    revoked = identity_issuer.mint("alice", roles=["clerk"])
    identity_issuer.revoke(revoked)
    for metadata, code in ((revoked, "UNAUTHENTICATED"), (identity_issuer.mint("bob"), "PERMISSION_DENIED")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            asyncio.run(get_order(identity_aio, metadata))
        assert caught.value.code().name == code
"""


class Peer:
    """A folder with a peer's code, and an environment in which the wheel is installed and nothing of this checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "venv" / "bin" / "python"

    def run(self, *arguments: str | Path) -> str:
        """The output of the environment's Python; its working folder is the peer's."""
        return run(self.python, "-W", "error", *arguments, cwd=self.folder)

    def install(self, *what: str | Path) -> None:
        constraints = ROOT / "constraints.txt"
        run(self.python, "-m", "pip", "install", "-q", "-c", constraints, *what, cwd=self.folder)


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Peer:
    folder = tmp_path_factory.mktemp("peer")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT, cwd=folder)
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    [wheel] = folder.glob("grpc_identity-*.whl")
    peer = Peer(folder)
    peer.install(wheel)
    return peer


@pytest.fixture(scope="module")
def orders(peer: Peer) -> Peer:
    """The same with the example's code, whose proto is compiled against the wheel's."""
    run("make", "--no-print-directory", ".generator/.ready", cwd=ROOT)
    for name in ("orders", "billing"):  # orders calls billing
        shutil.copytree(EXAMPLES / name, peer.folder / name, ignore=shutil.ignore_patterns("*_pb2*", "__pycache__"))
    contract = peer.run("-m", "identity_client.protos").strip()
    outputs = [f"--{kind}=." for kind in ("python_out", "grpc_python_out")]
    outputs += [f"--{kind}=quiet:." for kind in ("mypy_out", "mypy_grpc_out")]
    generator = ROOT / ".generator" / "bin"
    protoc = [str(generator / "python"), "-m", "grpc_tools.protoc", "-I", contract, *outputs]
    plugins = f"{generator}{os.pathsep}{os.environ['PATH']}"
    for name in ("orders", "billing"):
        run(*protoc, "-I", f"{name}/protos", f"{name}/v1/{name}.proto", cwd=peer.folder, PATH=plugins)
    return peer


def test_a_peer_gets_the_base_dependencies_and_nothing_of_the_server(peer: Peer) -> None:
    listing = "from importlib.metadata import distributions as d; print(*(x.metadata['Name'].lower() for x in d()))"
    installed = set(peer.run("-c", listing).split())
    assert installed >= {"grpc-identity", "grpcio", "protobuf", "pyjwt", "cryptography", "googleapis-common-protos"}
    assert not installed & SERVER_ONLY
    code = "import identity_client.aio, identity_client, sys; identity_client.Identity; print(*sys.modules)"
    assert not {"sqlalchemy", "redis", "identity.server", "identity.domain"} & set(peer.run("-c", code).split())


def test_the_contract_and_the_marks_of_types_are_in_the_wheel(peer: Peer) -> None:
    contract = Path(peer.run("-m", "identity_client.protos").strip())
    assert contract.is_relative_to(peer.folder / "venv")
    for folder in (contract / "identity" / "v1", contract / "identity_client"):
        assert (folder / "py.typed").is_file()
    released = {path.name: path.read_bytes() for path in (ROOT / "protos" / "identity" / "v1").glob("*.proto")}
    assert {path.name: path.read_bytes() for path in (contract / "identity" / "v1").glob("*.proto")} == released
    assert not (contract / "identity" / "__init__.py").exists()  # PyPI's package `identity` can be installed beside


def test_a_command_that_is_not_for_peers_says_what_it_lacks(peer: Peer) -> None:
    done = subprocess.run([peer.folder / "venv" / "bin" / "identity"], capture_output=True, text=True, check=False)
    assert (done.returncode, "grpc-identity[server]" in done.stderr) == (1, True)


@pytest.mark.requirement("R70")
@pytest.mark.requirement("R74")
def test_the_guard_and_a_proto_of_its_own_work_from_the_wheel_alone_and_its_tests_need_no_service(orders: Peer) -> None:
    orders.install(*TEST_TOOLS)
    (orders.folder / "test_orders.py").write_text(textwrap.dedent(PEERS_TEST))
    assert "2 passed" in orders.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_orders.py")


def test_the_public_types_hold_under_mypy_strict_where_the_package_is_installed(orders: Peer) -> None:
    orders.install(*TEST_TOOLS)
    shutil.copy(Path(__file__).with_name("typed_peer.py"), orders.folder)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=mypy_cache"]
    run(*mypy, "--python-executable", orders.python, "typed_peer.py", "orders/server.py", cwd=orders.folder)
