"""Handlers that grpc finds by their methods' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import grpc.aio


class Unregistered:
    """Stands for *server* before the generated `add_...Servicer_to_server`, which name their handlers and register
    them, too.

    grpc.aio awaits the calls of each registered method by a task of its own, and goes through all of these tasks for
    every call: with the methods of this contract that took longer than the handler of a short call.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Have them asked by name."""
        self._server.add_generic_rpc_handlers(tuple(handlers))

    def add_registered_method_handlers(self, _service: str, _handlers: Mapping[str, Any]) -> None:
        """They are found by name already."""
