"""From what a peer writes down to the judge of its guard. Every mistake in it is found here, and not by a call."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import ModuleType

from identity_client.access.judge import Judge
from identity_client.access.options import MethodOptions, OnStale, Options, Terms
from identity_client.access.remote import Recollection, build_judge
from identity_client.access.rules import HEALTH_RULES, Rule, RuleError, Rules
from identity_client.clock import Clock
from identity_client.tokens.verifier import Verifier
from identity_client.trust.state import TrustState

DEFAULT_GROUP = "internal"


def make_judge(
    name: str,
    modules: Sequence[ModuleType],
    *,
    trust: TrustState,
    clock: Clock,
    rules: Mapping[str, Rule] | None = None,
    groups: Collection[str] = (DEFAULT_GROUP,),
    max_staleness_seconds: float = 30.0,
    on_stale: OnStale = "reject",
    enforce: bool = True,
    methods: Mapping[str, MethodOptions] | None = None,
    recollection: Recollection | None = None,
) -> Judge:
    """The judge of the service *name*; the parameters are those of `Identity.guard`. With *recollection* it asks a
    source about each call. Raises RuleError, ValueError."""
    if not modules and not rules:
        raise RuleError("a guard needs the generated modules of its services, or a table of rules")
    complete = Rules.from_modules(*modules, table=rules).with_default(HEALTH_RULES)
    options = Options.of(Terms(max_staleness_seconds, on_stale, enforce), methods or {})
    if unknown := sorted(options.by_method.keys() - complete.methods()):
        raise RuleError(f"there are options for methods that have no rule: {', '.join(unknown)}")
    verifier = Verifier(audiences=frozenset({name, *groups}), trust=trust, clock=clock)
    return build_judge(
        rules=complete, verifier=verifier, trust=trust, recollection=recollection, options=options, clock=clock
    )
