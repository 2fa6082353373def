"""RevocationService over Revoker, SessionRevoker and Explainer."""

from __future__ import annotations

import ipaddress
from typing import Any, TypeAlias

import grpc

from identity.domain.explain import Check, Explainer, Explanation, Outcome
from identity.domain.grants import SessionFilter
from identity.domain.ports import RevocationStore
from identity.domain.revoke import Revoker
from identity.domain.session_revoker import SessionRevoker
from identity.v1 import revocation_pb2 as pb
from identity.v1 import revocation_pb2_grpc
from identity_client.errors import InvalidRequest
from identity_client.tokens import opaque
from identity_client.trust.entries import Entry, EntryKind

from . import convert, pages
from .context import act_of_admin

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_ENTRY_KINDS = {
    pb.REVOCATION_KIND_UNSPECIFIED: None,
    pb.REVOCATION_KIND_TOKEN: EntryKind.TOKEN,
    pb.REVOCATION_KIND_GRANT: EntryKind.GRANT,
    pb.REVOCATION_KIND_ACCOUNT: EntryKind.ACCOUNT,
    pb.REVOCATION_KIND_ROLE: EntryKind.ROLE,
    pb.REVOCATION_KIND_KEY: EntryKind.KEY,
}
_EXPLAINED_KINDS = {
    opaque.Kind.REFRESH: pb.EXPLAINED_KIND_REFRESH_TOKEN,
    opaque.Kind.SESSION: pb.EXPLAINED_KIND_SESSION_TOKEN,
    opaque.Kind.API_KEY: pb.EXPLAINED_KIND_API_KEY,
    opaque.Kind.CLIENT_SECRET: pb.EXPLAINED_KIND_CLIENT_SECRET,
}
_OUTCOMES = {
    Outcome.PASSED: pb.CHECK_OUTCOME_PASSED,
    Outcome.FAILED: pb.CHECK_OUTCOME_FAILED,
    Outcome.SKIPPED: pb.CHECK_OUTCOME_SKIPPED,
}
_LONGEST_ORIGIN = 64


class RevocationServicer(revocation_pb2_grpc.RevocationServiceServicer):
    """Ends tokens and grants for administrators, and tells what became of them."""

    def __init__(
        self, revoker: Revoker, session_revoker: SessionRevoker, explainer: Explainer, revocations: RevocationStore
    ) -> None:
        self._revoker = revoker
        self._session_revoker = session_revoker
        self._explainer = explainer
        self._revocations = revocations

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: _Context) -> pb.RevokeTokenResponse:
        raw_token = convert.presented(request.token, "token")
        count = await self._revoker.revoke_token(raw_token, convert.note(request.reason), act_of_admin(context))
        return pb.RevokeTokenResponse(ended_grant_count=count)

    async def RevokeGrant(self, request: pb.RevokeGrantRequest, context: _Context) -> pb.RevokeGrantResponse:
        grant_id = convert.checked_id(request.grant_id, "grant_id")
        count = await self._revoker.end_grant(grant_id, convert.note(request.reason), act_of_admin(context))
        return pb.RevokeGrantResponse(ended_grant_count=count)

    async def RevokeAccount(self, request: pb.RevokeAccountRequest, context: _Context) -> pb.RevokeAccountResponse:
        ref = convert.account_ref(request)
        count = await self._revoker.end_account(ref, convert.note(request.reason), act_of_admin(context))
        return pb.RevokeAccountResponse(ended_grant_count=count)

    async def RevokeSessions(self, request: pb.RevokeSessionsRequest, context: _Context) -> pb.RevokeSessionsResponse:
        which, note = _filter(request.filter), convert.note(request.reason)
        if request.dry_run:
            return pb.RevokeSessionsResponse(ended_grant_count=await self._session_revoker.count(which))
        count = await self._session_revoker.end(which, note, act_of_admin(context))
        return pb.RevokeSessionsResponse(ended_grant_count=count)

    async def ListRevocations(self, request: pb.ListRevocationsRequest, _: _Context) -> pb.ListRevocationsResponse:
        if request.kind not in _ENTRY_KINDS:
            raise InvalidRequest(f"use one of {', '.join(pb.RevocationKind.keys()[1:])}", "kind")
        limit, below = pages.page_size(request.page_size), pages.read_number(request.page_token)
        found = await self._revocations.list_page(_ENTRY_KINDS[request.kind], below, limit + 1)
        return pb.ListRevocationsResponse(
            revocations=[_revocation(version, entry) for version, entry in found[:limit]],
            next_page_token=pages.write_token(str(found[limit - 1][0])) if len(found) > limit else "",
        )

    async def ExplainToken(self, request: pb.ExplainTokenRequest, _: _Context) -> pb.ExplainTokenResponse:
        raw_token = convert.presented(request.token, "token")
        return _explanation(await self._explainer.explain(raw_token))


def _filter(message: pb.SessionFilter) -> SessionFilter:
    which = SessionFilter(
        account=convert.account_ref(message, "filter.") if message.WhichOneof("account") else None,
        issued_before=message.issued_before.seconds if message.HasField("issued_before") else None,
        origin=_network(message.origin) if message.origin else None,
    )
    if message.all == (which != SessionFilter()):
        raise InvalidRequest("give conditions, or all = true for every session there is, not both", "filter")
    return which


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text if len(text) <= _LONGEST_ORIGIN else "")
    except ValueError:
        raise InvalidRequest(
            "an IP address, or a network without host bits like 192.0.2.0/24", "filter.origin"
        ) from None


def _revocation(version: int, entry: Entry) -> pb.Revocation:
    message = pb.Revocation(version=version, expire_time=convert.timestamp(entry.expire_time))
    match entry.kind:
        case EntryKind.TOKEN:
            message.kind, message.token_id = pb.REVOCATION_KIND_TOKEN, entry.name
        case EntryKind.GRANT:
            message.kind, message.grant_id = pb.REVOCATION_KIND_GRANT, entry.name
        case EntryKind.ACCOUNT:
            message.kind, message.account_id = pb.REVOCATION_KIND_ACCOUNT, entry.name
            message.minimum_generation = entry.minimum
        case EntryKind.ROLE:
            message.kind, message.role = pb.REVOCATION_KIND_ROLE, entry.name
            message.minimum_policy_version = entry.minimum
        case EntryKind.KEY:
            message.kind, message.key_id = pb.REVOCATION_KIND_KEY, entry.name
    return message


def _explanation(told: Explanation) -> pb.ExplainTokenResponse:
    message = pb.ExplainTokenResponse(good=told.is_good, checks=[_check(each) for each in told.checks])
    if told.kind is not None:
        message.kind = _EXPLAINED_KINDS[told.kind]
    elif told.is_jwt:
        message.kind = pb.EXPLAINED_KIND_ACCESS_TOKEN
    if told.claims is not None:
        claims = told.claims
        message.token_id, message.grant_id, message.account_id = claims.token_id, claims.grant_id, claims.account_id
        message.audiences.append(claims.audience)
        message.scopes.extend(claims.scopes)
        message.roles.extend(claims.roles)
        message.issue_time.CopyFrom(convert.timestamp(claims.issue_time))
        message.expire_time.CopyFrom(convert.timestamp(claims.expire_time))
    if told.grant is not None:
        grant = told.grant
        message.grant_id, message.account_id = grant.snapshot.grant_id, grant.snapshot.account_id
        message.audiences.extend(grant.audiences)
        message.scopes.extend(grant.snapshot.scopes)
        message.roles.extend(grant.snapshot.roles)
        message.issue_time.CopyFrom(convert.timestamp(grant.create_time))
        if grant.expire_time is not None:
            message.expire_time.CopyFrom(convert.timestamp(grant.expire_time))
    return message


def _check(value: Check) -> pb.TokenCheck:
    return pb.TokenCheck(
        name=value.name, outcome=_OUTCOMES[value.outcome], reason=value.reason, explanation=value.explanation
    )
