"""What a front end refuses on its own account, besides what the identity service and its rules refuse."""

from __future__ import annotations

from typing import ClassVar


class WebRefusal(Exception):
    """A refusal with an HTTP status, a stable reason and a sentence that tells the caller what to mend."""

    http_status: ClassVar[int] = 400
    reason: ClassVar[str]
    sentence: ClassVar[str]

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.sentence)


class CrossSiteRequest(WebRefusal):
    """Another site may have made the browser send this (cross-site request forgery)."""

    http_status = 403
    reason = "CROSS_SITE_REQUEST"
    sentence = "With a cookie, this request is taken from the site's own pages alone."


class CredentialsAmbiguous(WebRefusal):
    """Cookie and Authorization header name a caller each."""

    reason = "CREDENTIALS_AMBIGUOUS"
    sentence = "Send a cookie or an Authorization header, not both."


class CookieRepeated(WebRefusal):
    """The browser sent a cookie of ours twice: somebody planted one."""

    reason = "COOKIE_REPEATED"
    sentence = "The request has the same cookie twice: delete the cookies of this site and log in again."


class HeaderRepeated(WebRefusal):
    reason = "HEADER_REPEATED"
    sentence = "The request has a header twice that may stand once."


class CookiesTooLarge(WebRefusal):
    http_status = 431
    reason = "COOKIES_TOO_LARGE"
    sentence = "The request has more cookies than are read: delete the cookies of this site."


class PathAmbiguous(WebRefusal):
    reason = "PATH_AMBIGUOUS"
    sentence = "The path has an empty or dotted segment, a backslash or a control character."


class BodyMalformed(WebRefusal):
    reason = "BODY_MALFORMED"
    sentence = "Send the fields as a form or as a JSON object of strings, each once."


class BodyTooLarge(WebRefusal):
    http_status = 413
    reason = "BODY_TOO_LARGE"
    sentence = "The body is larger than any log-in."


class MediaTypeUnknown(WebRefusal):
    http_status = 415
    reason = "MEDIA_TYPE_UNKNOWN"
    sentence = "Send application/x-www-form-urlencoded or application/json."


class MethodNotAllowed(WebRefusal):
    http_status = 405
    reason = "METHOD_NOT_ALLOWED"
    sentence = "This route takes POST."


class PasswordChangeRequired(WebRefusal):
    """The password is right, and must be replaced before anyone is logged in."""

    http_status = 403
    reason = "PASSWORD_CHANGE_REQUIRED"
    sentence = "The password must be changed first: send it with a new one to the route for that."


class NothingToRenew(WebRefusal):
    """There is no refresh cookie that belongs to the access cookie."""

    http_status = 401
    reason = "NOTHING_TO_RENEW"
    sentence = "There is no session to renew: log in again."
