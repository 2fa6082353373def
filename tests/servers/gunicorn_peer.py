"""A peer that gunicorn runs: each worker answers HTTP, and calls on a guarded gRPC server of its own.

It is gunicorn's configuration (-c python:...) as well as the application. With MADE_BEFORE_FORK it does what it must
not: it makes its Identity while gunicorn's master loads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

import identity_client
from tests.clients.shapes import SERVICE, TABLE, Handlers

workers = 2
early = identity_client.Identity.from_env() if "MADE_BEFORE_FORK" in os.environ else None
here: dict[str, Any] = {}


def post_fork(_server: object, _worker: object) -> None:
    """gunicorn calls it in each new worker."""
    identity = here["identity"] = early or identity_client.Identity.from_env()
    identity.__enter__()
    server = here["server"] = grpc.server(ThreadPoolExecutor(4), interceptors=[identity.guard("shapes", rules=TABLE)])
    handlers = grpc.method_handlers_generic_handler(SERVICE, Handlers().table(is_sync=True))
    server.add_generic_rpc_handlers((handlers,))
    here["port"] = server.add_insecure_port("127.0.0.1:0")
    server.start()


def worker_exit(_server: object, _worker: object) -> None:
    """gunicorn calls it in each worker that ends."""
    here["server"].stop(1).wait()
    here["identity"].__exit__(None, None, None)
    print("worker left cleanly", flush=True)


def app(_environ: dict[str, object], start_response: Callable[..., object]) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"process_id": os.getpid(), "port": here["port"]}).encode()]
