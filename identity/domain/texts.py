"""Free texts of callers: for people to read, in lists and in the audit log."""

from __future__ import annotations

from identity_client.errors import InvalidRequest

from .secrets import refuse_token_text


def check_text(text: str, maximum: int, field: str) -> str:
    """*text* of at most *maximum* characters, without a control character or a token. Raises InvalidRequest."""
    if len(text) > maximum:
        raise InvalidRequest(f"at most {maximum} characters", field)
    if not text.isprintable():
        raise InvalidRequest("control characters are not allowed", field)
    for word in text.split():
        refuse_token_text(word, field)
    return text
