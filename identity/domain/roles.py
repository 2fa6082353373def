"""Roles: names that accounts bear, the scopes that each grants, and what administrators do to them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from identity_client.errors import InvalidRequest, ScopeNotGranted

from .feed import Feed
from .ports import RoleStore
from .texts import check_text
from .values import Act, Role, RoleChange

MAXIMUM_ROLES = 32
MAXIMUM_ROLE_BYTES = 768
"""All role names of one account together: they must fit a token, which must fit gRPC metadata."""
MAXIMUM_SCOPES = 64
MAXIMUM_DESCRIPTION = 256

OWN_SCOPES = "identity."
"""How the scopes that open this service's own methods begin."""

KNOWN_OWN_SCOPES = frozenset(
    OWN_SCOPES + name
    for name in ("admin", "admin.read", "audit", "watch", "introspect", "introspect.any", "exchange", "forward")
)

_NAME = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_SCOPE = re.compile(r"[!#-\[\]-~]{1,64}")  # RFC 6749 section 3.3


class RoleAdmin:
    """What administrators do to roles."""

    def __init__(self, roles: RoleStore, feed: Feed) -> None:
        self._roles = roles
        self._feed = feed

    async def create(self, name: str, scopes: tuple[str, ...], description: str, act: Act) -> Role:
        """Raises InvalidRequest, RoleAlreadyExists."""
        check_role_name(name, "name")
        return await self._roles.create(name, check_scopes(scopes, "scopes"), check_description(description), act)

    async def get(self, name: str) -> Role:
        """Raises InvalidRequest, RoleNotFound."""
        return await self._roles.get(check_role_name(name, "name"))

    async def list_page(self, after_name: str, limit: int) -> list[Role]:
        """At most *limit* roles after *after_name*, by name."""
        return await self._roles.list_page(after_name, limit)

    async def update(self, name: str, change: RoleChange, act: Act) -> Role:
        """Where less is granted than before, tokens that carry the role are outdated at once, by one feed entry.

        Raises InvalidRequest, RoleNotFound, RoleBuiltIn.
        """
        check_role_name(name, "role.name")
        checked = RoleChange(
            None if change.scopes is None else check_scopes(change.scopes, "role.scopes"),
            None if change.description is None else check_description(change.description, "role.description"),
        )
        role, version = await self._roles.update(name, checked, act)
        await self._feed.published(version)
        return role

    async def delete(self, name: str, act: Act) -> None:
        """Raises InvalidRequest, RoleNotFound, RoleBuiltIn, RoleInUse."""
        await self._roles.delete(check_role_name(name, "name"), act)


def check_role_name(name: str, field: str) -> str:
    """Raises InvalidRequest."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest("a role is 1-64 of a-z, 0-9, '.', '_' and '-', beginning with a letter", field)
    return name


def check_roles(roles: Iterable[str]) -> tuple[str, ...]:
    """The names of an account's roles, sorted, each once. Raises InvalidRequest."""
    names = tuple(sorted(set(roles)))
    if len(names) > MAXIMUM_ROLES or sum(map(len, names)) > MAXIMUM_ROLE_BYTES:
        raise InvalidRequest(f"at most {MAXIMUM_ROLES} roles of {MAXIMUM_ROLE_BYTES} characters together", "roles")
    for name in names:
        check_role_name(name, "roles")
    return names


def check_scopes(scopes: Iterable[str], field: str) -> tuple[str, ...]:
    """Scopes that a role or credential may grant, sorted, each once. Raises InvalidRequest."""
    texts = tuple(sorted(set(scopes)))
    if len(texts) > MAXIMUM_SCOPES or not all(map(_SCOPE.fullmatch, texts)):
        raise InvalidRequest(
            f"at most {MAXIMUM_SCOPES} scopes, each of 1-64 printable ASCII characters without spaces, '\"' and '\\'",
            field,
        )
    if unknown := [text for text in texts if text.startswith(OWN_SCOPES) and text not in KNOWN_OWN_SCOPES]:
        raise InvalidRequest(f"this service has no scope {unknown[0]}", field)
    return texts


def check_description(text: str, field: str = "description") -> str:
    """Raises InvalidRequest."""
    return check_text(text, MAXIMUM_DESCRIPTION, field)


def narrow(granted: tuple[str, ...], requested: tuple[str, ...]) -> tuple[str, ...]:
    """The scopes of a new grant: those asked for, or all. Raises ScopeNotGranted."""
    if not set(requested).issubset(granted):
        raise ScopeNotGranted()
    return still_granted(granted, requested)


def still_granted(granted: tuple[str, ...], requested: tuple[str, ...]) -> tuple[str, ...]:
    """The scopes of an old grant: those asked for then that the roles still grant."""
    return tuple(scope for scope in granted if scope in requested) if requested else granted
