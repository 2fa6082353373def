"""What the guards of both faces share: what happens to a judgement, and who is told."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from identity_client.access.certificates import check_bound
from identity_client.access.hooks import Hooks
from identity_client.access.judge import Judge
from identity_client.access.report import Report, host_of
from identity_client.access.streams import OpenStream
from identity_client.errors import IdentityError, UnknownKey
from identity_client.principal import Principal

_log = logging.getLogger(__name__)


class ForkedError(RuntimeError):
    """A guard or Identity is used in another process than the one that made it: its connection and its threads stayed
    behind there, so that it would hear of no revocation."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"this {what} was made before the process forked; make it in the child, for instance in gunicorn's "
            "post_fork hook or in the application's start-up function"
        )


class Process:
    """Remembers the process that it was made in."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._process_id = os.getpid()

    def check(self) -> None:
        """Raises ForkedError in any other process."""
        if os.getpid() != self._process_id:
            raise ForkedError(self._what)


class Gate:
    """Tells hooks and report of every judgement, and decides whether a refusal is enforced."""

    def __init__(
        self,
        judge: Judge,
        *,
        audience: str,
        hooks: Hooks | None,
        on_unknown_key: Callable[[], None] | None,
    ) -> None:
        self.audience = audience
        self.report = Report(audience, judge.clock)
        self.process = Process("guard")
        self._judge = judge
        self._hooks = hooks
        self._on_unknown_key = on_unknown_key
        self._is_enforced_throughout = judge.options.is_enforced_throughout

    def judged(self, method: str) -> None:
        """A call begins to be judged. Raises ForkedError."""
        self.process.check()
        if self._hooks is not None:
            self._tell(self._hooks.on_judged, method)
        if not self._is_enforced_throughout and not self._judge.options.find(method).enforce:
            self.report.tick()

    def accepted_stale(self, method: str) -> None:
        """A call was admitted although the trust state is older than allowed."""
        if self._hooks is not None:
            self._tell(self._hooks.on_accepted_stale, method)

    def is_enforced(self, method: str) -> bool:
        """Whether refusals of *method* are carried out."""
        return self._judge.options.find(method).enforce

    def refused(self, method: str, error: IdentityError) -> None:
        """A call is refused with *error*, or would be."""
        if isinstance(error, UnknownKey) and self._on_unknown_key is not None:
            self._on_unknown_key()
        if self._hooks is not None:
            tell = self._hooks.on_refused if self.is_enforced(method) else self._hooks.on_would_refuse
            self._tell(tell, method, error.reason)

    def reporting(self, method: str, error: IdentityError) -> Callable[[Any], Principal | None]:
        """A prelude that puts a refusal which is not enforced into the report; the call has no principal."""

        def note(context: Any) -> Principal | None:
            self.report.note(method, error, host_of(context.peer()))
            return None

        return note

    def binding(self, method: str, principal: Principal) -> Callable[[Any], Principal | None]:
        """A prelude that admits *principal* only on a connection with the certificate that the token is bound to."""

        def check(context: Any) -> Principal | None:
            try:
                check_bound(principal.certificate_thumbprint, context.auth_context())
            except IdentityError as error:
                error.account_id, error.grant_id = principal.account_id, principal.grant_id
                return self.refuse_late(method, error, context)
            return principal

        return check

    def refuse_late(self, method: str, error: IdentityError, context: Any) -> Principal | None:
        """A call is refused in its handler's place. Raises *error*, or reports it."""
        self.refused(method, error)
        if self.is_enforced(method):
            raise error
        return self.reporting(method, error)(context)

    def is_ended(self, stream: OpenStream, error: IdentityError) -> bool:
        """A running call no longer holds. Answers whether it is to end."""
        self.refused(stream.method, error)
        if self.is_enforced(stream.method):
            return True
        self.report.note(stream.method, error, host_of(stream.context.peer()))
        return False

    def _tell(self, hook: Callable[..., None], method: str, *arguments: str) -> None:
        try:
            hook(method if self._judge.rules.find(method) is not None else "", *arguments)
        except Exception:
            _log.exception("a hook of the guard of %s failed", self.audience)
