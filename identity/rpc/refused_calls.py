"""Calls that were refused to callers whose token is good, or ended because theirs no longer is: each leaves its trace
in the audit log, beside the answer."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, TypeAlias

import grpc

from identity.domain.ports import AuditStore
from identity.domain.values import Act
from identity_client.errors import IdentityError, LastAdmin, PermissionMissing, RetryLater, TokenError
from identity_client.principal import find_principal

from .context import act_of_refused

_log = logging.getLogger(__name__)

REFUSED = "call.refused"
ENDED = "call.ended"

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class RefusedCalls:
    """Writes them into the audit log. Neither delays a refusal nor fails for it."""

    def __init__(self, audit: AuditStore) -> None:
        self._audit = audit
        self._tasks: set[asyncio.Task[None]] = set()

    def by_guard(self, method: str, error: BaseException | None, context: _Context) -> None:
        """The guard refused a call with *error* before its handler ran, or ended one that it had admitted."""
        if isinstance(error, PermissionMissing):
            self._note(REFUSED, method, error, context)
        elif isinstance(error, TokenError) and find_principal() is not None:
            self._note(ENDED, method, error, context)

    def by_handler(self, method: str, error: IdentityError, context: _Context) -> None:
        """A call was refused by its handler, or by what that calls."""
        principal = find_principal()
        if principal is not None and isinstance(error, PermissionMissing | LastAdmin):
            error.account_id, error.grant_id = principal.account_id, principal.grant_id
            self._note(REFUSED, method, error, context)

    async def written(self) -> None:
        """Return when all that was noted stands in the log, or cannot."""
        await asyncio.gather(*self._tasks)

    def _note(self, action: str, method: str, error: IdentityError, context: _Context) -> None:
        # The tasks are few: of a flood most end at once, and those that write wait in the writer's bounded queue.
        act = act_of_refused(context, error.account_id, error.grant_id)
        task = asyncio.create_task(self._write(action, method, error.reason, act))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, action: str, method: str, reason: str, act: Act) -> None:
        account_id = act.caller.account_id if act.caller else None
        try:
            await self._audit.note_refusal(action, reason, "", act, account_id, method)
        except RetryLater as error:
            _log.warning("a refused call of %s is missing in the audit log: %s", method, error.reason)
        except Exception:
            _log.exception("a refused call of %s is missing in the audit log", method)
