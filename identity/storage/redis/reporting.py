"""One line in the log for each new trouble with Redis, and one when it is over."""

from __future__ import annotations

import logging
import time

from redis.exceptions import RedisError

from identity.storage.redis.client import UnsafePolicy, Unvouched
from identity_client.errors import DependencyDown

_LOG_SECONDS = 60.0

_log = logging.getLogger(__name__)


class Report:
    """*subject* says whose trouble it is, *meanwhile* how things go on."""

    def __init__(self, subject: str, meanwhile: str) -> None:
        self._subject = subject
        self._meanwhile = meanwhile
        self._problem = ""
        self._logged_at = float("-inf")

    @property
    def is_well(self) -> bool:
        """Whether nothing failed since it last went well."""
        return not self._problem

    def failed(self, error: Exception) -> None:
        """One line for each new problem, and for a lasting one a line a minute. Not what Redis says: it may repeat what
        was sent to it, the password included."""
        if not isinstance(error, (RedisError, OSError, DependencyDown, UnsafePolicy)):
            _log.exception("%s in Redis met something unforeseen", self._subject, exc_info=error)
            return
        is_ours = isinstance(error, (UnsafePolicy, Unvouched))
        now, problem = time.monotonic(), str(error) if is_ours else type(error).__name__
        if problem != self._problem or now - self._logged_at >= _LOG_SECONDS:
            _log.warning("%s in Redis %s: %s", self._subject, self._meanwhile, problem)
            self._logged_at = now
        self._problem = problem

    def succeeded(self) -> None:
        """All is well, again or still."""
        if self._problem:
            _log.info("%s in Redis goes on as before", self._subject)
        self._problem = ""
