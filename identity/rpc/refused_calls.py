"""Calls that were refused to callers whose token is good: each leaves its trace in the audit log, beside the answer.

Of a call that the guard refuses the judge alone knows the caller, and the firewall alone the place: a context variable
joins the two.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import Any, TypeAlias

import grpc

from identity.domain.ports import AuditStore
from identity.domain.values import Act
from identity_client.access.judge import Ask, Judge, Judgement, Look, Metadata
from identity_client.errors import IdentityError, LastAdmin, PermissionMissing, RetryLater
from identity_client.principal import find_principal
from identity_client.tokens.claims import Claims

from .context import act_of_refused

_log = logging.getLogger(__name__)

ACTION = "call.refused"

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_forbidden: contextvars.ContextVar[str] = contextvars.ContextVar("forbidden", default="")
"""The account to which the guard refused the call being served."""


class TellingJudge(Judge):
    """Tells whom a call is refused for want of a scope or role."""

    def judge(self, method: str, metadata: Metadata | None) -> Judgement | Ask | Look:
        try:
            return super().judge(method, metadata)
        except PermissionMissing as error:
            _forbidden.set(error.account_id)
            raise

    def admit(self, ask: Ask, claims: Claims) -> Judgement | Look:
        try:
            return super().admit(ask, claims)
        except PermissionMissing as error:
            _forbidden.set(error.account_id)
            raise


class RefusedCalls:
    """Writes them into the audit log. Neither delays a refusal nor fails for it."""

    def __init__(self, audit: AuditStore) -> None:
        self._audit = audit
        self._tasks: set[asyncio.Task[None]] = set()

    def by_guard(self, method: str, context: _Context) -> None:
        """A call was refused before its handler ran."""
        if account_id := _forbidden.get():
            self._note(method, PermissionMissing.reason, account_id, context)

    def by_handler(self, method: str, error: IdentityError, context: _Context) -> None:
        """A call was refused by its handler, or by what that calls."""
        principal = find_principal()
        if principal is not None and isinstance(error, PermissionMissing | LastAdmin):
            self._note(method, error.reason, principal.account_id, context)

    async def written(self) -> None:
        """Return when all that was noted stands in the log, or cannot."""
        await asyncio.gather(*self._tasks)

    def _note(self, method: str, reason: str, account_id: str, context: _Context) -> None:
        # The tasks are few: of a flood most end at once, and those that write wait in the writer's bounded queue.
        task = asyncio.create_task(self._write(method, reason, account_id, act_of_refused(context, account_id)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, method: str, reason: str, account_id: str, act: Act) -> None:
        try:
            await self._audit.note_refusal(ACTION, reason, "", act, account_id, method)
        except RetryLater as error:
            _log.warning("a refused call of %s is missing in the audit log: %s", method, error.reason)
        except Exception:
            _log.exception("a refused call of %s is missing in the audit log", method)
