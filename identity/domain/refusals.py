"""Refused log-ins: one uniform answer outside, the cause in the audit log inside."""

from __future__ import annotations

import enum
import hashlib
import hmac

from identity_client.errors import BadCredentials, IdentityError

from .ports import AuditStore
from .values import Act


class Cause(enum.StrEnum):
    """Why a credential was refused, as audited; never told to the caller."""

    NAME_UNKNOWN = "NAME_UNKNOWN"
    PASSWORD_WRONG = "PASSWORD_WRONG"  # noqa: S105 - a cause, not a password
    ACCOUNT_DISABLED = "ACCOUNT_DISABLED"
    CREDENTIAL_UNKNOWN = "CREDENTIAL_UNKNOWN"
    CREDENTIAL_ENDED = "CREDENTIAL_ENDED"  # ended or expired, or its account disabled
    CREDENTIAL_CHANGED = "CREDENTIAL_CHANGED"  # while it was being checked
    SECRET_WRONG = "SECRET_WRONG"  # noqa: S105 - a cause, not a secret
    CLIENT_ID_WRONG = "CLIENT_ID_WRONG"
    ASSERTION_MALFORMED = "ASSERTION_MALFORMED"
    ASSERTION_KEY_UNKNOWN = "ASSERTION_KEY_UNKNOWN"
    ASSERTION_SIGNATURE_WRONG = "ASSERTION_SIGNATURE_WRONG"
    ASSERTION_ISSUER_WRONG = "ASSERTION_ISSUER_WRONG"  # iss and sub are not the key's own account
    ASSERTION_AUDIENCE_WRONG = "ASSERTION_AUDIENCE_WRONG"
    ASSERTION_EXPIRED = "ASSERTION_EXPIRED"
    ASSERTION_NOT_YET_VALID = "ASSERTION_NOT_YET_VALID"
    ASSERTION_LIVES_TOO_LONG = "ASSERTION_LIVES_TOO_LONG"
    ASSERTION_REPLAYED = "ASSERTION_REPLAYED"
    CERTIFICATE_MISSING = "CERTIFICATE_MISSING"
    CERTIFICATE_EXPIRED = "CERTIFICATE_EXPIRED"
    CERTIFICATE_UNTRUSTED = "CERTIFICATE_UNTRUSTED"
    CERTIFICATE_UNREGISTERED = "CERTIFICATE_UNREGISTERED"


class Rejected(BadCredentials):
    """UNAUTHENTICATED, in the very bytes of every other BadCredentials; *cause* is for the audit log."""

    def __init__(self, cause: Cause) -> None:
        super().__init__()
        self.cause = cause


class RefusalLog:
    """Notes refused log-ins. A name that was typed may be a password in the wrong field: a keyed hash is kept of it."""

    def __init__(self, audit: AuditStore, name_key: bytes) -> None:
        self._audit = audit
        self._name_key = name_key

    async def noted(
        self, error: IdentityError, action: str, name: str, act: Act, account_id: str | None = None
    ) -> IdentityError:
        """*error*, once it stands in the audit log: whoever tries credentials leaves a trace, right ones included.

        *name*: what was to be logged in to, "" where the attempt gives no name; *account_id*: whose it is, if anyone's.
        """
        cause = error.cause if isinstance(error, Rejected) else error.reason
        name_hash = ""
        if name:
            name_hash = hmac.digest(self._name_key, name.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()
        await self._audit.note_refusal(action, cause, name_hash, act, account_id)
        return error
