"""What runs inside services that trust Identity: verification, guards, and the errors that they refuse with.

Names are loaded when first used: importing this package loads neither grpc nor protobuf. The asyncio face is
`identity_client.aio`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from identity_client.errors import IdentityError
    from identity_client.principal import NoPrincipal, Principal, current_principal, find_principal

_HOMES = {
    "IdentityError": "identity_client.errors",
    "NoPrincipal": "identity_client.principal",
    "Principal": "identity_client.principal",
    "current_principal": "identity_client.principal",
    "find_principal": "identity_client.principal",
}

__all__ = ["IdentityError", "NoPrincipal", "Principal", "current_principal", "find_principal"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
