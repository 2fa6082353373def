"""The asyncio face: connect to the identity service, guard servers, know who calls.

async with aio.Identity.from_env() as identity:
    server = grpc.aio.server(interceptors=[identity.guard("orders", orders_pb2)])
"""

from identity_client.access.gate import ForkedError
from identity_client.access.hooks import Hooks
from identity_client.access.options import MethodOptions
from identity_client.access.rules import Rule, RuleError
from identity_client.aio.environment import ConfigurationError, Connection
from identity_client.aio.guard import Guard
from identity_client.aio.identity import Identity, StartError
from identity_client.principal import NoPrincipal, Principal, current_principal, find_principal

__all__ = [
    "ConfigurationError",
    "Connection",
    "ForkedError",
    "Guard",
    "Hooks",
    "Identity",
    "MethodOptions",
    "NoPrincipal",
    "Principal",
    "Rule",
    "RuleError",
    "StartError",
    "current_principal",
    "find_principal",
]
