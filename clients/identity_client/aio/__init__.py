"""The asyncio face: connect to the identity service, guard servers, know who calls.

async with aio.Identity.from_env() as identity:
    server = grpc.aio.server(interceptors=[identity.guard("orders", orders_pb2)])
"""

from identity_client.access.gate import ForkedError
from identity_client.access.hooks import Hooks
from identity_client.access.options import MethodOptions
from identity_client.access.rules import Rule, RuleError
from identity_client.aio import logins
from identity_client.aio.channel import interceptors
from identity_client.aio.credentials import call_credentials
from identity_client.aio.endpoints import Endpoints
from identity_client.aio.environment import ConfigurationError, Connection
from identity_client.aio.guard import Guard
from identity_client.aio.identity import Identity, StartError
from identity_client.aio.token_source import AccessToken, TokenSource
from identity_client.principal import NoPrincipal, Principal, current_principal, find_principal
from identity_client.tls_files import TlsFiles
from identity_client.trust.metrics import TrustMetrics

__all__ = [
    "AccessToken",
    "ConfigurationError",
    "Connection",
    "Endpoints",
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
    "TlsFiles",
    "TokenSource",
    "TrustMetrics",
    "call_credentials",
    "current_principal",
    "find_principal",
    "interceptors",
    "logins",
]
