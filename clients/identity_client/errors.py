"""Every refusal, as a class: the server raises it, the wire carries its status and reason, the caller catches it.

A class names its canonical gRPC status as text, so that importing this module loads no grpc. `identity_client.status`
packs an error into a status and reads one back out of it. Reasons are those of `identity/v1/errors.proto`.
"""

from __future__ import annotations

from typing import ClassVar

ERROR_DOMAIN = "identity.v1"


class IdentityError(Exception):
    """A refusal with a canonical status, a stable reason and a sentence that tells the caller what to mend."""

    status: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"
    sentence: ClassVar[str] = "Something went wrong inside the service."

    account_id: str = ""
    """On the guard's side: whose token was refused, where the token is genuine. It does not leave the process."""
    grant_id: str = ""
    """Likewise, the grant behind that token."""
    refused_by: str = ""
    """On the caller's side: `guard` when a guard refused before the method ran."""
    refused_audience: str = ""
    """On the caller's side: the name of the service whose guard refused."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.sentence)

    @property
    def metadata(self) -> dict[str, str]:
        """What ErrorInfo.metadata carries besides; never a secret."""
        return {}


class Internal(IdentityError):
    """INTERNAL: a defect. The text is constant; *error_id* finds the cause in the log."""

    def __init__(self, message: str = "", error_id: str = "") -> None:
        super().__init__(message)
        self.error_id = error_id

    @property
    def metadata(self) -> dict[str, str]:
        return {"error_id": self.error_id}


# -- INVALID_ARGUMENT: mend the request ----------------------------------------------------------------------------


class InvalidRequest(IdentityError):
    """INVALID_ARGUMENT: *field* (proto name; empty for the whole message) breaks the rule that the message states."""

    status = "INVALID_ARGUMENT"
    reason = "INVALID_FIELD"
    sentence = "A field of the request is missing or out of its range."

    def __init__(self, message: str = "", field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field and message else message)
        self.field = field

    @property
    def metadata(self) -> dict[str, str]:
        return {"field": self.field} if self.field else {}


class MalformedRequest(InvalidRequest):
    """INVALID_ARGUMENT: the bytes are no message of the request's type."""

    reason = "MALFORMED_REQUEST"
    sentence = "The request's bytes are not a message of this method's request type."


class UnknownAudience(InvalidRequest):
    """INVALID_ARGUMENT: no service account and no group has this name."""

    reason = "UNKNOWN_AUDIENCE"
    sentence = "The audience is neither a service account's username nor a configured group."

    def __init__(self, message: str = "", field: str = "audience") -> None:
        super().__init__(message or self.sentence, field)


class ScopeNotGranted(InvalidRequest):
    """INVALID_ARGUMENT: the account's roles do not grant a scope that was asked for."""

    reason = "SCOPE_NOT_GRANTED"
    sentence = "A scope was asked for that the account's roles do not grant."

    def __init__(self, message: str = "", field: str = "scopes") -> None:
        super().__init__(message or self.sentence, field)


class UnknownRole(InvalidRequest):
    """INVALID_ARGUMENT: an account was to have a role that does not exist."""

    reason = "UNKNOWN_ROLE"
    sentence = "An account was to have a role that does not exist: create it first."

    def __init__(self, message: str = "", field: str = "roles") -> None:
        super().__init__(message or self.sentence, field)


class RequestIdReused(InvalidRequest):
    """INVALID_ARGUMENT: the caller has given this request_id to another request within the last day."""

    reason = "REQUEST_ID_REUSED"
    sentence = "The request_id was used for another request within the last day: choose a new one for each request."

    def __init__(self, message: str = "", field: str = "request_id") -> None:
        super().__init__(message or self.sentence, field)


# -- UNAUTHENTICATED: log in again, or renew -----------------------------------------------------------------------


class Unauthenticated(IdentityError):
    """UNAUTHENTICATED: the caller did not prove who they are. Base class; its subclasses say why."""

    status = "UNAUTHENTICATED"


class CredentialsMissing(Unauthenticated):
    reason = "CREDENTIALS_MISSING"
    sentence = "This method needs an access token: send metadata 'authorization: Bearer <token>'."


class CredentialsMalformed(Unauthenticated):
    reason = "CREDENTIALS_MALFORMED"
    sentence = "Send exactly one 'authorization' entry, of the form 'Bearer <token>'."


class BadCredentials(Unauthenticated):
    reason = "BAD_CREDENTIALS"
    sentence = "The credentials are not valid."


class TokenError(Unauthenticated):
    """UNAUTHENTICATED: a token was refused. Base class of the verifier's refusals."""


class TokenMalformed(TokenError):
    reason = "TOKEN_MALFORMED"
    sentence = "The text is not an access token of this issuer."


class BadSignature(TokenError):
    reason = "BAD_SIGNATURE"
    sentence = "The token's signature does not verify."


class UnknownKey(TokenError):
    reason = "UNKNOWN_KEY"
    sentence = "No published key has the token's key id."


class WrongIssuer(TokenError):
    reason = "WRONG_ISSUER"
    sentence = "The token was issued by another issuer."


class WrongAudience(TokenError):
    reason = "WRONG_AUDIENCE"
    sentence = "The token is meant for another service."


class TokenExpired(TokenError):
    reason = "TOKEN_EXPIRED"
    sentence = "The token has expired: renew it and repeat the call."


class TokenNotYetValid(TokenError):
    reason = "TOKEN_NOT_YET_VALID"
    sentence = "The token was issued in the future: check the clocks."


class TokenRevoked(TokenError):
    reason = "TOKEN_REVOKED"
    sentence = "The token was revoked: log in again."


class TokenOutdated(TokenError):
    reason = "TOKEN_OUTDATED"
    sentence = "The account or its roles changed since the token was issued: renew it and repeat the call."


class CertificateMismatch(TokenError):
    reason = "CERTIFICATE_MISMATCH"
    sentence = "The token is bound to a client certificate that this connection does not show."


class AuthenticationTooOld(Unauthenticated):
    reason = "AUTHENTICATION_TOO_OLD"
    sentence = "This method needs a more recent log-in: log in again."


class RefreshInvalid(Unauthenticated):
    reason = "REFRESH_INVALID"
    sentence = "The refresh token is not valid: log in again."


class RefreshReused(Unauthenticated):
    reason = "REFRESH_REUSED"
    sentence = "A spent refresh token was used again, so its session was ended: log in again."


class SessionEnded(Unauthenticated):
    reason = "SESSION_ENDED"
    sentence = "The session was ended: log in again."


class SessionExpired(Unauthenticated):
    reason = "SESSION_EXPIRED"
    sentence = "The session has expired: log in again."


class StoreSetBack(Unauthenticated):
    reason = "STORE_SET_BACK"
    sentence = "The refresh token is newer than the service's database: log in again."


# -- PERMISSION_DENIED: ask an admin -------------------------------------------------------------------------------


class PermissionMissing(IdentityError):
    status = "PERMISSION_DENIED"
    reason = "PERMISSION_MISSING"
    sentence = "The caller lacks a scope or role that this method needs."


class MethodNotGuarded(IdentityError):
    status = "PERMISSION_DENIED"
    reason = "METHOD_NOT_GUARDED"
    sentence = "This method has no access rule and is therefore closed."


# -- NOT_FOUND, ALREADY_EXISTS, ABORTED, FAILED_PRECONDITION -------------------------------------------------------


class NotFound(IdentityError):
    """NOT_FOUND. Base class; its subclasses say what is missing."""

    status = "NOT_FOUND"


class AccountNotFound(NotFound):
    reason = "ACCOUNT_NOT_FOUND"
    sentence = "No account has this id or username."


class GrantNotFound(NotFound):
    reason = "GRANT_NOT_FOUND"
    sentence = "No session or credential has this id."


class RoleNotFound(NotFound):
    reason = "ROLE_NOT_FOUND"
    sentence = "No role has this name."


class SigningKeyNotFound(NotFound):
    reason = "SIGNING_KEY_NOT_FOUND"
    sentence = "No signing key has this id, or it was removed."


class AlreadyExists(IdentityError):
    """ALREADY_EXISTS. Base class; its subclasses say what exists."""

    status = "ALREADY_EXISTS"


class AccountAlreadyExists(AlreadyExists):
    reason = "ACCOUNT_ALREADY_EXISTS"
    sentence = "The username is taken."


class RoleAlreadyExists(AlreadyExists):
    reason = "ROLE_ALREADY_EXISTS"
    sentence = "The role's name is taken."


class CredentialAlreadyExists(AlreadyExists):
    reason = "CREDENTIAL_ALREADY_EXISTS"
    sentence = "The public key or certificate name belongs to a live credential already."


class SigningKeyAlreadyPrepared(AlreadyExists):
    reason = "SIGNING_KEY_ALREADY_PREPARED"
    sentence = "Another signing key is prepared: activate or retire it first."


class SecretAlreadyShown(AlreadyExists):
    """ALREADY_EXISTS: a repeat of a request that was done before; *resource_id* names what was created then."""

    reason = "SECRET_ALREADY_SHOWN"
    sentence = (
        "The request was done before, and its secret was shown then: if that answer was lost, revoke what the "
        "metadata's resource_id names and create another."
    )

    def __init__(self, message: str = "", resource_id: str = "") -> None:
        super().__init__(message)
        self.resource_id = resource_id

    @property
    def metadata(self) -> dict[str, str]:
        return {"resource_id": self.resource_id}


class StateConflict(IdentityError):
    status = "ABORTED"
    reason = "STATE_CONFLICT"
    sentence = "The state changed while the call ran: repeat it."


class FailedPrecondition(IdentityError):
    """FAILED_PRECONDITION. Base class; its subclasses say what must come first."""

    status = "FAILED_PRECONDITION"


class RoleInUse(FailedPrecondition):
    reason = "ROLE_IN_USE"
    sentence = "Accounts still have the role: take it from them first."


class RoleBuiltIn(FailedPrecondition):
    reason = "ROLE_BUILT_IN"
    sentence = "The role belongs to the service itself and cannot be changed or deleted."


class LastAdmin(FailedPrecondition):
    reason = "LAST_ADMIN"
    sentence = "This is the last enabled user with the role admin: give the role to another user first."


class SigningKeyTooNew(FailedPrecondition):
    reason = "SIGNING_KEY_TOO_NEW"
    sentence = "The signing key was published too short a time ago: wait until its usable_time, or force it."


class SigningKeyMisplaced(FailedPrecondition):
    reason = "SIGNING_KEY_STATE"
    sentence = "This does not fit where in its life the signing key is: list the keys."


class TooManySigningKeys(FailedPrecondition):
    reason = "TOO_MANY_SIGNING_KEYS"
    sentence = "As many signing keys are published as peers take: wait until a retired one is removed."


class TokenTooLarge(FailedPrecondition):
    reason = "TOKEN_TOO_LARGE"
    sentence = "The token would not fit its budget: the account has too many roles or scopes."


# -- RESOURCE_EXHAUSTED, UNAVAILABLE, DEADLINE_EXCEEDED: wait, repeat ----------------------------------------------


class RetryLater(IdentityError):
    """A refusal that time mends; RetryInfo carries *retry_after_seconds*."""

    def __init__(self, message: str = "", retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Overloaded(RetryLater):
    status = "RESOURCE_EXHAUSTED"
    reason = "OVERLOADED"
    sentence = "Too much work of this kind is waiting: repeat the call later."


class Throttled(RetryLater):
    status = "RESOURCE_EXHAUSTED"
    reason = "THROTTLED"
    sentence = "Too many log-ins failed for this name or from this address: repeat the call later."


class DependencyDown(RetryLater):
    status = "UNAVAILABLE"
    reason = "DEPENDENCY_DOWN"
    sentence = "The service's database does not answer: repeat the call later."


class TrustStale(RetryLater):
    status = "UNAVAILABLE"
    reason = "TRUST_STALE"
    sentence = "This service's copy of the revocations is too old to judge the call: repeat it later."


class DeadlineExceeded(RetryLater):
    status = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"
    sentence = "The call took too long and was given up: repeat it later."


def _tree(root: type[IdentityError]) -> list[type[IdentityError]]:
    return [root, *(found for child in root.__subclasses__() for found in _tree(child))]


_BASES = frozenset(
    {IdentityError, Unauthenticated, TokenError, NotFound, AlreadyExists, FailedPrecondition, RetryLater}
)

BY_REASON: dict[str, type[IdentityError]] = {
    error.reason: error for error in _tree(IdentityError) if error not in _BASES
}
"""Reason -> class: the table that a client reads backwards."""
