"""The whole story in one run: a fresh service, three peers, a user, an admin, and how fast a revocation bites.

`python clients/examples/demo.py` starts all services as processes of their own, on loopback, and leaves nothing.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from orders.client import OrdersClient, attempt
from orders.v1 import orders_pb2
from orders.v1.orders_pb2_grpc import OrderServiceStub

from identity.v1 import account_pb2, authentication_pb2, revocation_pb2, session_pb2, token_pb2
from identity.v1.account_pb2_grpc import AccountServiceStub
from identity.v1.authentication_pb2_grpc import AuthenticationServiceStub
from identity.v1.revocation_pb2_grpc import RevocationServiceStub
from identity.v1.session_pb2_grpc import SessionServiceStub
from identity.v1.token_pb2_grpc import TokenServiceStub
from identity_client.errors import IdentityError

RUNS = int(os.environ.get("DEMO_RUNS", "20"))

PEERS = ("stock", "billing", "orders")
"""Each calls the one before."""

SOON_SECONDS = 5.0
"""Peers follow milliseconds after an act was acknowledged, unless the machine is busy with something else."""


@dataclass
class Stage:
    """Everything on stage: two channels, a user's client, an admin's stubs."""

    identity: grpc.aio.Channel
    orders: grpc.aio.Channel
    known: dict[str, Any]

    def client(self, who: str) -> OrdersClient:
        """A client that logs in as the user or the admin of dev.json."""
        account = self.known[who]
        return OrdersClient(self.identity, self.orders, account["username"], account["password"])

    async def set_roles(self, *roles: str) -> None:
        """As the admin: replace the user's roles."""
        request = account_pb2.SetRolesRequest(username=self.known["user"]["username"], roles=roles)
        await attempt(AccountServiceStub(self.identity).SetRoles(request, metadata=self.admin))

    async def revoke(self, raw_token: str) -> None:
        """As the admin: revoke one access token."""
        request = revocation_pb2.RevokeTokenRequest(token=raw_token, reason="demo")
        await attempt(RevocationServiceStub(self.identity).RevokeToken(request, metadata=self.admin))

    async def open_session(self) -> authentication_pb2.SessionGrant:
        """Log the user in for a session token."""
        user = self.known["user"]
        request = authentication_pb2.AuthenticateRequest(
            password=authentication_pb2.PasswordCredential(username=user["username"], password=user["password"]),
            grant_type=authentication_pb2.GRANT_TYPE_SESSION,
        )
        return (await attempt(AuthenticationServiceStub(self.identity).Authenticate(request))).session

    async def end_session(self, session_id: str) -> None:
        """As the admin: end one session."""
        request = revocation_pb2.RevokeGrantRequest(grant_id=session_id, reason="demo")
        await attempt(RevocationServiceStub(self.identity).RevokeGrant(request, metadata=self.admin))

    async def log_in_admin(self) -> None:
        """Log the admin in for the rest of the demo."""
        client = self.client("admin")
        await client.log_in(audience="identity")
        self.admin = (("authorization", f"Bearer {client.held.access_token}"),)


async def main() -> None:
    """Set the stage, tell the story, measure."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        dev = ("identity.cli", "dev", "--directory", directory, "--listen", "127.0.0.1:0")
        address = await start(stack, directory / "identity.log", "identity", *dev)
        known = json.loads((directory / "dev.json").read_text())
        orders_address = await start_peers(stack, directory, dict.fromkeys(PEERS, address))
        await tell(await set_stage(stack, address, orders_address, known))


async def start_peers(stack: AsyncExitStack, directory: Path, addresses: dict[str, str]) -> str:
    """Start the three services, each with its secret and with the *addresses* of Identity; -> where orders is."""
    for name in PEERS:
        os.environ |= {
            "IDENTITY_ADDRESS": addresses[name],
            "IDENTITY_CLIENT_ID": name,
            "IDENTITY_CLIENT_SECRET_FILE": str(directory / f"{name}.secret"),
            f"{name.upper()}_PORT": "0",
        }
        service_address = await start(stack, directory / f"{name}.log", name, f"{name}.server")
        os.environ[f"{name.upper()}_ADDRESS"] = service_address
    return service_address


async def set_stage(stack: AsyncExitStack, address: str, orders_address: str, known: dict[str, Any]) -> Stage:
    """Connect to Identity and to orders, and log the admin in."""
    identity = await stack.enter_async_context(grpc.aio.insecure_channel(address))
    orders = await stack.enter_async_context(grpc.aio.insecure_channel(orders_address))
    stage = Stage(identity, orders, known)
    await stage.log_in_admin()
    return stage


async def tell(stage: Stage) -> None:
    """The story, and how fast it went."""
    await tell_of_roles(stage)
    await tell_of_refresh(stage)
    await tell_of_sessions(stage)
    await tell_of_delegation(stage)
    await measure(stage)


async def start(stack: AsyncExitStack, log: Path, name: str, *command: object) -> str:
    """Start a Python module as a process; -> the address it says it is ready on. It is stopped with the stack."""
    examples = str(Path(__file__).parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [examples, os.environ.get("PYTHONPATH")]))}
    with log.open("w") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=errors, env=environment
        )
    stack.push_async_callback(stop, process)
    lines = process.stdout or asyncio.StreamReader()
    async for line in lines:
        if line.startswith(f"{name} is ready on ".encode()):
            return line.decode().split()[-1]
    raise SystemExit(f"{name} did not start:\n{log.read_text()}")


async def stop(process: asyncio.subprocess.Process) -> None:
    """Ask the process to end, and wait for it."""
    process.send_signal(signal.SIGTERM)
    await process.communicate()


async def outcome(call: Awaitable[Any]) -> str:
    """`ok`, or the reason of the refusal."""
    try:
        await call
    except IdentityError as refusal:
        return refusal.reason
    return "ok"


async def refused_soon(attempt_call: Callable[[], Awaitable[Any]]) -> str:
    """The outcome once it is a refusal; `ok` if there is none within SOON_SECONDS."""
    return await _soon(attempt_call, is_ok=False)


async def accepted_soon(attempt_call: Callable[[], Awaitable[Any]]) -> str:
    """The outcome once it is `ok`; the refusal if it lasts for SOON_SECONDS."""
    return await _soon(attempt_call, is_ok=True)


async def _soon(attempt_call: Callable[[], Awaitable[Any]], *, is_ok: bool) -> str:
    deadline = time.monotonic() + SOON_SECONDS
    while ((result := await outcome(attempt_call())) == "ok") is not is_ok and time.monotonic() < deadline:
        pass
    return result


def say(what: str, result: str) -> None:
    """One line of the story."""
    print(f"  {what:<62} {result}", flush=True)


async def tell_of_roles(stage: Stage) -> None:
    """A role given and a role taken away, seen by one client that holds its tokens all the while."""
    print("Roles")
    alice = stage.client("user")
    await alice.log_in()
    say("alice, a clerk, gets an order", await outcome(alice.get_order("1")))
    say("alice cancels it; that needs a manager", await outcome(alice.cancel_order("1")))
    await stage.set_roles("clerk", "manager")
    old = alice.held.access_token
    cancelled = await accepted_soon(lambda: alice.cancel_order("1"))
    say("made a manager, she cancels it (her client renews by itself)", cancelled)
    say("  ... and holds another access token now", "ok" if alice.held.access_token != old else "the same token")
    await stage.set_roles("clerk")
    say("no longer a manager, she cancels another", await refused_soon(lambda: alice.cancel_order("2")))


async def tell_of_refresh(stage: Stage) -> None:
    """Rotation: a lost answer is repeated, a spent token ends the session."""
    print("Refresh")
    alice, tokens = stage.client("user"), TokenServiceStub(stage.identity)
    await alice.log_in()
    first = alice.held.refresh_token
    await alice.renew()
    second = alice.held.refresh_token
    repeated = await attempt(tokens.Refresh(token_pb2.RefreshRequest(refresh_token=first)))
    say("the answer got lost: the same token again gives", same(repeated.tokens.refresh_token == second))
    await alice.renew()
    spent = tokens.Refresh(token_pb2.RefreshRequest(refresh_token=first))
    say("a thief uses the oldest one", await outcome(attempt(spent)))
    say("the session is over for both", await outcome(alice.renew()))


async def tell_of_sessions(stage: Stage) -> None:
    """The stateful half: an opaque token, the same handler, and a log-out that ends everything."""
    print("Sessions")
    session = await stage.open_session()
    metadata = (("authorization", f"Bearer {session.session_token}"),)
    stub, request = OrderServiceStub(stage.orders), orders_pb2.GetOrderRequest(order_id="1")

    def get_order() -> Awaitable[Any]:
        return attempt(stub.GetOrder(request, metadata=metadata))

    say("alice logs in for a session token, and gets an order", await outcome(get_order()))
    await attempt(SessionServiceStub(stage.identity).Logout(session_pb2.LogoutRequest(), metadata=metadata))
    say("she logs out; her session token", await refused_soon(get_order))


async def tell_of_delegation(stage: Stage) -> None:
    """Three services in a chain: the last one sees the user, and who acts for her."""
    print("Delegation")
    alice = stage.client("user")
    await alice.log_in(audience="orders")
    billed = await alice.bill_order("1")
    say("orders bills through billing, billing reserves at stock", f"{len(billed.chain) - 1} services act for her")
    metadata = (("authorization", f"Bearer {alice.held.access_token}"),)
    stub, request = OrderServiceStub(stage.orders), orders_pb2.GetOrderRequest(order_id="1")
    await stage.end_session(alice.held.session_id)
    again = await refused_soon(lambda: attempt(stub.GetOrder(request, metadata=metadata)))
    say("an admin ends her session; the same token again", again)


def same(is_same: bool) -> str:
    """How two refresh tokens compare."""
    return "the same successor" if is_same else "another successor"


async def measure(stage: Stage) -> None:
    """From the acknowledgement of the admin's RPC to the first refusal at the peer, under a closed loop of calls."""
    print(f"Delays over {RUNS} runs each: the admin's acknowledgement -> the peer's first refusal, calls back to back")

    async def revoke(raw_token: str, _: int) -> None:
        await stage.revoke(raw_token)

    async def change_roles(_: str, run: int) -> None:
        await stage.set_roles(*(("clerk", "manager") if run % 2 == 0 else ("clerk",)))

    await report(stage, "token revoked", "TOKEN_REVOKED", revoke)
    await report(stage, "role given or taken", "TOKEN_OUTDATED", change_roles)


async def report(stage: Stage, what: str, reason: str, act: Callable[[str, int], Awaitable[None]]) -> None:
    """Measure one kind of act, and print it."""
    runs = [await one_run(stage, reason, act, run) for run in range(RUNS)]
    delays = sorted(delay for delay, _ in runs)
    p50, p99 = (delays[math.ceil(share * RUNS) - 1] * 1000 for share in (0.50, 0.99))
    accepted = [count for _, count in runs]
    say(what, f"p50 {p50:.1f} ms   p99 {p99:.1f} ms   max {delays[-1] * 1000:.1f} ms")
    say("  calls accepted before it, in each run", f"{min(accepted)} to {max(accepted)}")
    if min(accepted) == 0:
        raise SystemExit("a run had no accepted call before it: it measured nothing")


async def one_run(stage: Stage, reason: str, act: Callable[[str, int], Awaitable[None]], run: int) -> tuple[float, int]:
    """-> seconds from the acknowledgement to the first refusal (0 where that came first), calls accepted before."""
    alice = stage.client("user")
    await alice.log_in()
    metadata = (("authorization", f"Bearer {alice.held.access_token}"),)
    stub, request = OrderServiceStub(stage.orders), orders_pb2.GetOrderRequest(order_id="3")
    accepted, is_accepted = 0, asyncio.Event()

    async def call_until_refused() -> float:
        nonlocal accepted
        while (result := await outcome(attempt(stub.GetOrder(request, metadata=metadata)))) == "ok":
            accepted += 1
            is_accepted.set()
        if result != reason:
            raise SystemExit(f"refused with {result}, not with {reason}")
        return time.monotonic()

    caller = asyncio.create_task(call_until_refused())
    await asyncio.wait_for(is_accepted.wait(), 10)
    await act(alice.held.access_token, run)
    acknowledged = time.monotonic()
    return max(0.0, await asyncio.wait_for(caller, 10) - acknowledged), accepted


if __name__ == "__main__":
    asyncio.run(main())
