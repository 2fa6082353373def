"""Roles: their names, and the scopes that they grant. Names are free; two of them open this service's own methods."""

from __future__ import annotations

import re
from collections.abc import Iterable

from identity_client.errors import InvalidRequest, ScopeNotGranted

MAXIMUM_ROLES = 32
MAXIMUM_TEXT_BYTES = 768
"""All names of one account together: they must fit a token, which must fit gRPC metadata."""

OWN_SCOPES = "identity."
"""How the scopes that open this service's own methods begin."""

_NAME = re.compile(r"[a-z][a-z0-9._-]{0,63}")

_GRANTS: dict[str, frozenset[str]] = {
    "admin": frozenset({"identity.admin", "identity.admin.read", "identity.audit"}),
    "peer": frozenset({"identity.watch", "identity.introspect"}),
}


def check_roles(roles: Iterable[str]) -> tuple[str, ...]:
    """The names, sorted, each once. Raises InvalidRequest."""
    names = tuple(sorted(set(roles)))
    if len(names) > MAXIMUM_ROLES or sum(map(len, names)) > MAXIMUM_TEXT_BYTES:
        raise InvalidRequest(f"at most {MAXIMUM_ROLES} roles of {MAXIMUM_TEXT_BYTES} characters together", "roles")
    if not all(map(_NAME.fullmatch, names)):
        raise InvalidRequest("a role is 1-64 of a-z, 0-9, '.', '_' and '-', beginning with a letter", "roles")
    return names


def granted_scopes(roles: Iterable[str]) -> tuple[str, ...]:
    """Every scope that *roles* grant, sorted."""
    return tuple(sorted(set().union(*(_GRANTS.get(role, frozenset()) for role in roles))))


def narrow(granted: tuple[str, ...], requested: tuple[str, ...]) -> tuple[str, ...]:
    """The scopes of a new grant: those asked for, or all. Raises ScopeNotGranted."""
    if not set(requested).issubset(granted):
        raise ScopeNotGranted()
    return still_granted(granted, requested)


def still_granted(granted: tuple[str, ...], requested: tuple[str, ...]) -> tuple[str, ...]:
    """The scopes of an old grant: those asked for then that the roles still grant."""
    return tuple(scope for scope in granted if scope in requested) if requested else granted
