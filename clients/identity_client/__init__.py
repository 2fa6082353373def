"""What runs inside services that trust Identity: verification, guards, and the errors that they refuse with.

with identity_client.Identity.from_env() as identity:
    server = grpc.server(pool, interceptors=[identity.guard("orders", orders_pb2)])

This is the threaded face; the asyncio face is `identity_client.aio`. Names are loaded when first used: importing this
package loads neither grpc nor protobuf.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from identity_client.access.gate import ForkedError
    from identity_client.access.hooks import Hooks
    from identity_client.access.options import MethodOptions
    from identity_client.access.rules import Rule, RuleError
    from identity_client.aio.environment import ConfigurationError, Connection
    from identity_client.aio.identity import StartError
    from identity_client.errors import IdentityError
    from identity_client.principal import NoPrincipal, Principal, current_principal, find_principal
    from identity_client.sync.guard import Guard
    from identity_client.sync.identity import Identity
    from identity_client.tls_files import TlsFiles
    from identity_client.trust.metrics import TrustMetrics

_HOMES = {
    "ConfigurationError": "identity_client.aio.environment",
    "Connection": "identity_client.aio.environment",
    "ForkedError": "identity_client.access.gate",
    "Guard": "identity_client.sync.guard",
    "Hooks": "identity_client.access.hooks",
    "Identity": "identity_client.sync.identity",
    "IdentityError": "identity_client.errors",
    "MethodOptions": "identity_client.access.options",
    "NoPrincipal": "identity_client.principal",
    "Principal": "identity_client.principal",
    "Rule": "identity_client.access.rules",
    "RuleError": "identity_client.access.rules",
    "StartError": "identity_client.aio.identity",
    "TlsFiles": "identity_client.tls_files",
    "TrustMetrics": "identity_client.trust.metrics",
    "current_principal": "identity_client.principal",
    "find_principal": "identity_client.principal",
}

__all__ = [
    "ConfigurationError",
    "Connection",
    "ForkedError",
    "Guard",
    "Hooks",
    "Identity",
    "IdentityError",
    "MethodOptions",
    "NoPrincipal",
    "Principal",
    "Rule",
    "RuleError",
    "StartError",
    "TlsFiles",
    "TrustMetrics",
    "current_principal",
    "find_principal",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
