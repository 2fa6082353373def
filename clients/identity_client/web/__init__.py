"""Sessions of people in browsers: ASGI middleware for any framework, beside API callers with bearers.

identity = aio.Identity.from_env()  # entered by the application's start-up
app = web.IdentityMiddleware(
    app, identity=identity, name="storefront", origins=["https://shop.example"],
    rules={"/": web.Rule(public=True), "/account": web.Rule(), "/admin": web.Rule(any_roles=frozenset({"manager"}))},
)
"""

from identity_client.access.rules import Rule, RuleError
from identity_client.principal import NoPrincipal, Principal, current_principal, find_principal
from identity_client.web.middleware import IdentityMiddleware

__all__ = [
    "IdentityMiddleware",
    "NoPrincipal",
    "Principal",
    "Rule",
    "RuleError",
    "current_principal",
    "find_principal",
]
