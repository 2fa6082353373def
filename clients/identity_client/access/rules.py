"""Who may call a method: rules from the options in protos, or from a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.descriptor import FileDescriptor, MethodDescriptor


class RuleError(ValueError):
    """The rules are incomplete or contradict each other; raised when a guard is built, never during a call."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may call. With nothing set: every caller with a valid token for this service."""

    public: bool = False
    scopes: frozenset[str] = frozenset()  # all of them
    any_roles: frozenset[str] = frozenset()  # at least one of them
    is_confirmed: bool = False  # the identity service is asked on every call
    max_authentication_age_seconds: float | None = None

    def __post_init__(self) -> None:
        is_closed = (
            self.scopes or self.any_roles or self.is_confirmed or self.max_authentication_age_seconds is not None
        )
        if self.public and is_closed:
            raise RuleError("a public method has no other condition")
        if self.max_authentication_age_seconds is not None and self.max_authentication_age_seconds <= 0:
            raise RuleError("max_authentication_age is positive")


class Rules:
    """Rules by full method name, /package.Service/Method. A method without a rule is closed."""

    def __init__(self, by_method: Mapping[str, Rule]) -> None:
        self._by_method = dict(by_method)

    @classmethod
    def from_table(cls, table: Mapping[str, Rule]) -> Rules:
        """From full method names. Raises RuleError for another form of name."""
        for method in table:
            if not method.startswith("/") or method.count("/") != 2:
                raise RuleError(f"{method!r} is not of the form /package.Service/Method")
        return cls(table)

    @classmethod
    def from_modules(cls, *modules: ModuleType, table: Mapping[str, Rule] | None = None) -> Rules:
        """From the option `identity.v1.access` of every method in generated `_pb2` modules, or from *table* for methods
        without the option and for services of other modules.

        Raises RuleError, which names at once every method that has neither, has two different rules, or stands in the
        table although its service has no such method.
        """
        methods = {_full_name(method): method for module in modules for method in _methods(module)}
        rows = cls.from_table(table or {})
        missing = [
            method.full_name for name, method in methods.items() if not _has_rule(method) and not rows.find(name)
        ]
        if missing:
            raise RuleError(
                f"these methods lack the option identity.v1.access and a row in the table: {', '.join(missing)}"
            )
        services = {name.rpartition("/")[0] for name in methods}
        unknown = [name for name in rows.methods() if name not in methods and name.rpartition("/")[0] in services]
        if unknown:
            raise RuleError(f"the table names methods that their services do not have: {', '.join(unknown)}")
        return cls({name: _rule(method) for name, method in methods.items() if _has_rule(method)}) | rows

    def __or__(self, other: Rules) -> Rules:
        """Both together. Raises RuleError where they give one method different rules."""
        for method, rule in other._by_method.items():
            if self._by_method.get(method, rule) != rule:
                raise RuleError(f"{method} has two different rules")
        return Rules(self._by_method | other._by_method)

    def with_default(self, other: Rules) -> Rules:
        """These, and those of *other* for methods without one."""
        return Rules(other._by_method | self._by_method)

    def find(self, method: str) -> Rule | None:
        """The rule of a method, None for a closed one."""
        return self._by_method.get(method)

    def items(self) -> Iterable[tuple[str, Rule]]:
        """Every method that has a rule, and the rule."""
        return self._by_method.items()

    def methods(self) -> list[str]:
        """Every method that has a rule."""
        return sorted(self._by_method)

    def confirmed_methods(self) -> list[str]:
        """The methods whose callers must be confirmed with the identity service."""
        return sorted(method for method, rule in self._by_method.items() if rule.is_confirmed)


HEALTH_RULES = Rules.from_table({f"/grpc.health.v1.Health/{name}": Rule(public=True) for name in ("Check", "Watch")})
"""The standard health service: probes carry no token."""


def _methods(module: ModuleType) -> list[MethodDescriptor]:
    descriptor: FileDescriptor | None = getattr(module, "DESCRIPTOR", None)
    if descriptor is None:
        raise RuleError(f"{module.__name__} is not a generated _pb2 module")
    return [method for service in descriptor.services_by_name.values() for method in service.methods]


def _full_name(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def _has_rule(method: MethodDescriptor) -> bool:
    from identity.v1 import access_pb2

    return bool(method.GetOptions().HasExtension(access_pb2.access))


def _rule(method: MethodDescriptor) -> Rule:
    from identity.v1 import access_pb2

    option = method.GetOptions().Extensions[access_pb2.access]
    has_age = option.HasField("max_authentication_age")
    try:
        return Rule(
            public=option.public,
            scopes=frozenset(option.scopes),
            any_roles=frozenset(option.any_roles),
            is_confirmed=option.freshness == access_pb2.FRESHNESS_CONFIRMED,
            max_authentication_age_seconds=option.max_authentication_age.ToTimedelta().total_seconds()
            if has_age
            else None,
        )
    except RuleError as error:
        raise RuleError(f"{method.full_name}: {error}") from None
