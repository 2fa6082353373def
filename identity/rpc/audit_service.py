"""AuditService over the AuditReader."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from ipaddress import ip_address
from typing import Any, TypeAlias

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from identity.domain.audit import AT_ONCE, AuditReader, Wanted
from identity.domain.audit_events import OK, REFUSED, AuditEvent, AuditFilter
from identity.domain.texts import check_text
from identity.domain.values import AccountRef
from identity.v1 import audit_pb2 as pb
from identity.v1 import audit_pb2_grpc
from identity_client.errors import DependencyDown, InvalidRequest

from . import convert, pages

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

SEND_SECONDS = 30.0
"""How long a reader may take for one message."""

_LONGEST_TEXT = 128
_ACTION = re.compile(r"[a-z][a-z0-9_.]{0,63}")
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    """Shows the audit log."""

    def __init__(self, reader: AuditReader) -> None:
        self._reader = reader

    async def ListAuditEvents(self, request: pb.ListAuditEventsRequest, _: _Context) -> pb.ListAuditEventsResponse:
        limit = min(pages.page_size(request.page_size), AT_ONCE)
        before = pages.read_number(request.page_token)
        page = await self._reader.list_page(_wanted(request.filter), before, limit)
        return pb.ListAuditEventsResponse(
            events=map(_event, page.events),
            next_page_token="" if page.next_id is None else pages.write_token(str(page.next_id)),
        )

    # A coroutine, which grpc takes as well as a generator: only what sends by itself can see a reader stand still.
    async def WatchAuditEvents(self, request: pb.WatchAuditEventsRequest, context: _Context) -> None:  # type: ignore[override]
        async with aclosing(self._reader.watch(_wanted(request.filter), _after(request))) as found:
            async for page in found:
                message = pb.WatchAuditEventsResponse(events=map(_event, page.events), last_event_id=page.next_id or 0)
                await _send(context, message)


async def _send(context: _Context, message: pb.WatchAuditEventsResponse) -> None:
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await context.write(message)
    except TimeoutError:
        raise DependencyDown("The stream was not read for too long: open it again after the last event id.") from None


def _after(request: pb.WatchAuditEventsRequest) -> int | None:
    if not request.HasField("after_event_id"):
        return None
    if request.after_event_id < 0:
        raise InvalidRequest("last_event_id of the message received last, or 0", "after_event_id")
    return request.after_event_id


def _wanted(message: pb.AuditFilter) -> Wanted:
    """Raises InvalidRequest."""
    start_ms, end_ms = (_milliseconds(message, field) for field in ("start_time", "end_time"))
    if start_ms is not None and end_ms is not None and end_ms <= start_ms:
        raise InvalidRequest("a time after start_time", "filter.end_time")
    return Wanted(
        AuditFilter(
            start_ms=start_ms,
            end_ms=end_ms,
            action_prefix=_action_prefix(message.action_prefix),
            outcome=_outcome(message.outcome),
            grant_id=convert.checked_id(message.grant_id, "filter.grant_id") if message.grant_id else "",
            origin=_origin(message.origin),
            request_id=check_text(message.request_id, _LONGEST_TEXT, "filter.request_id"),
        ),
        account=_account(message.WhichOneof("account"), message.account_id, message.username),
        caller=_account(message.WhichOneof("caller"), message.caller_account_id, message.caller_username),
    )


def _account(which: str | None, account_id: str, username: str) -> AccountRef | None:
    match which:
        case None:
            return None
        case "account_id" | "caller_account_id":
            return AccountRef(account_id=convert.checked_id(account_id, f"filter.{which}"))
        case _:
            return AccountRef(username=username)


def _milliseconds(message: pb.AuditFilter, field: str) -> int | None:
    if not message.HasField(field):  # type: ignore[arg-type]
        return None
    time: Timestamp = getattr(message, field)
    if not (0 <= time.seconds < 2**35 and 0 <= time.nanos < 10**9):
        raise InvalidRequest("a time from 1970 on", f"filter.{field}")
    return time.seconds * 1_000 + -(-time.nanos // 1_000_000)


def _action_prefix(text: str) -> str:
    if text and not _ACTION.fullmatch(text):
        raise InvalidRequest("the beginning of an action, such as session. or account.create", "filter.action_prefix")
    return text


def _outcome(text: str) -> str:
    if text not in ("", OK, REFUSED) and not _REASON.fullmatch(text):
        raise InvalidRequest("ok, refused, or a reason such as PASSWORD_WRONG", "filter.outcome")
    return text


def _origin(text: str) -> str:
    """Addresses are compared in their one canonical form."""
    try:
        return str(ip_address(text))
    except ValueError:
        return check_text(text, _LONGEST_TEXT, "filter.origin")


def _event(value: AuditEvent) -> pb.AuditEvent:
    message = pb.AuditEvent(
        event_id=value.event_id,
        action=value.action,
        outcome=value.outcome,
        account_id=value.account_id,
        grant_id=value.grant_id,
        caller_account_id=value.caller_account_id,
        caller_grant_id=value.caller_grant_id,
        subject=value.subject,
        request_id=value.request_id,
        attempt_count=value.attempt_count,
        erased=value.personal is None,
    )
    message.event_time.FromMilliseconds(value.time_ms)
    if value.personal is not None:
        message.origin = value.personal.origin
        message.user_agent = value.personal.user_agent
        message.note = value.personal.note
        message.name_hash = value.personal.name_hash
    return message
