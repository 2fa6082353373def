"""What a log-in asks for, resolved to what may be issued."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from identity_client.errors import InvalidRequest, UnknownAudience

from .ports import AccountStore

MAXIMUM_AUDIENCES = 16


class Form(enum.Enum):
    """What is issued for a password."""

    TOKENS = "tokens"  # access and refresh token
    ACCESS_TOKEN = "access_token"  # noqa: S105 - the name of a form
    SESSION = "session"  # an opaque session token


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a log-in asks for. No audience means the default, no scopes mean all; *form* matters to people alone."""

    audiences: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    form: Form = Form.TOKENS


@dataclass(frozen=True, slots=True)
class AskedAudiences:
    """The known audiences that were asked for, or the *problem* with them."""

    default: str
    names: tuple[str, ...]
    problem: InvalidRequest | None = None

    def among(self, allowed: tuple[str, ...]) -> tuple[str, ...]:
        """The audiences to issue for, each once, at least one.

        *allowed* are those that a credential is bound to, empty for any. Where none is wanted it is the default, or the
        first allowed one if the default is not allowed. Raises UnknownAudience, InvalidRequest.
        """
        if self.problem is not None:
            raise self.problem
        if not self.names:
            return (self.default,) if not allowed or self.default in allowed else allowed[:1]
        if allowed and not set(self.names).issubset(allowed):
            raise InvalidRequest(f"this credential is for {', '.join(allowed)} only", "audience")
        return self.names


class Audiences:
    """Whom a token may be for: a service account, a configured group, or this service."""

    def __init__(self, accounts: AccountStore, service_name: str, groups: frozenset[str], default: str) -> None:
        self._accounts = accounts
        self._fixed = groups | {service_name}
        self._default = default

    async def resolve(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """The audiences to issue for, each once, at least one; the default where none is wanted.

        Raises UnknownAudience, InvalidRequest.
        """
        return (await self.asked(wanted)).among(())

    async def asked(self, wanted: tuple[str, ...]) -> AskedAudiences:
        """The same for a caller who has proved nothing yet, and is not told here which names there are."""
        try:
            return AskedAudiences(self._default, await self.check_known(wanted))
        except InvalidRequest as problem:
            return AskedAudiences(self._default, (), problem)

    async def check_known(self, names: tuple[str, ...], field: str = "audience") -> tuple[str, ...]:
        """*names*, each once. Raises UnknownAudience, InvalidRequest (too many)."""
        names = tuple(dict.fromkeys(names))
        if len(names) > MAXIMUM_AUDIENCES:
            raise InvalidRequest(f"at most {MAXIMUM_AUDIENCES}", field)
        for name in names:
            if name not in self._fixed and not await self._accounts.is_audience(name):
                raise UnknownAudience(field=field)
        return names
