"""CredentialService over the CredentialAdmin."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from identity.domain.certificates import dns_name, spiffe_name
from identity.domain.credentials import CredentialAdmin
from identity.domain.grants import ApiKeyUse, Credential, CredentialTerms, GrantKind
from identity.domain.once import RequestIds
from identity.domain.values import Act
from identity.v1 import credential_pb2 as pb
from identity.v1 import credential_pb2_grpc
from identity_client.errors import InvalidRequest

from . import convert, pages
from .context import act_of_admin, act_of_creator

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_KINDS = {
    GrantKind.CLIENT_SECRET: pb.CREDENTIAL_KIND_CLIENT_SECRET,
    GrantKind.API_KEY: pb.CREDENTIAL_KIND_API_KEY,
    GrantKind.PUBLIC_KEY: pb.CREDENTIAL_KIND_PUBLIC_KEY,
    GrantKind.CERTIFICATE: pb.CREDENTIAL_KIND_CERTIFICATE,
}
_USES = {ApiKeyUse.EXCHANGE: pb.API_KEY_USE_EXCHANGE, ApiKeyUse.BEARER: pb.API_KEY_USE_BEARER}
_USES_BACK = {number: use for use, number in _USES.items()}


class CredentialServicer(credential_pb2_grpc.CredentialServiceServicer):
    """Administers credentials."""

    def __init__(self, admin: CredentialAdmin, request_ids: RequestIds) -> None:
        self._admin = admin
        self._request_ids = request_ids

    async def CreateClientSecret(
        self, request: pb.CreateClientSecretRequest, context: _Context
    ) -> pb.CreateClientSecretResponse:
        ref, terms = convert.account_ref(request), _terms(request.terms)
        created = await self._admin.create_client_secret(ref, terms, self._act(context, request))
        return pb.CreateClientSecretResponse(credential=_credential(created.credential), client_secret=created.text)

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, context: _Context) -> pb.CreateApiKeyResponse:
        use = _USES_BACK.get(request.use)
        if use is None:
            raise InvalidRequest(f"use one of {', '.join(pb.ApiKeyUse.keys()[1:])}", "use")
        ref, terms = convert.account_ref(request), _terms(request.terms)
        created = await self._admin.create_api_key(ref, terms, use, self._act(context, request))
        return pb.CreateApiKeyResponse(credential=_credential(created.credential), api_key=created.text)

    async def CreatePublicKey(
        self, request: pb.CreatePublicKeyRequest, context: _Context
    ) -> pb.CreatePublicKeyResponse:
        ref, terms = convert.account_ref(request), _terms(request.terms)
        created = await self._admin.create_public_key(ref, terms, request.public_key_pem, self._act(context, request))
        return pb.CreatePublicKeyResponse(credential=_credential(created))

    async def CreateCertificateIdentity(
        self, request: pb.CreateCertificateIdentityRequest, context: _Context
    ) -> pb.CreateCertificateIdentityResponse:
        ref, terms = convert.account_ref(request), _terms(request.terms)
        created = await self._admin.create_certificate_name(ref, terms, _name(request), self._act(context, request))
        return pb.CreateCertificateIdentityResponse(credential=_credential(created))

    async def ListCredentials(self, request: pb.ListCredentialsRequest, _: _Context) -> pb.ListCredentialsResponse:
        limit, before = pages.page_size(request.page_size), pages.read_time_and_id(request.page_token)
        found = await self._admin.list_page(convert.account_ref(request), before, limit + 1)
        last = found[limit - 1] if len(found) > limit else None
        return pb.ListCredentialsResponse(
            credentials=[_credential(each) for each in found[:limit]],
            next_page_token="" if last is None else pages.write_token(str(last.create_time), last.grant_id),
        )

    async def RevokeCredential(
        self, request: pb.RevokeCredentialRequest, context: _Context
    ) -> pb.RevokeCredentialResponse:
        credential_id = convert.checked_id(request.credential_id, "credential_id")
        count = await self._admin.revoke(credential_id, convert.note(request.reason), act_of_admin(context))
        return pb.RevokeCredentialResponse(ended_grant_count=count)

    def _act(self, context: _Context, request: Any) -> Act:
        return act_of_creator(context, request, self._request_ids)


def _terms(message: pb.CredentialTerms) -> CredentialTerms:
    return CredentialTerms(
        display_name=message.display_name,
        audiences=tuple(message.audiences),
        scopes=tuple(message.scopes),
        expire_time=message.expire_time.seconds if message.HasField("expire_time") else None,
    )


def _name(request: pb.CreateCertificateIdentityRequest) -> str:
    match request.WhichOneof("name"):
        case "spiffe_id":
            return spiffe_name(request.spiffe_id, "spiffe_id")
        case "dns_name":
            return dns_name(request.dns_name, "dns_name")
        case _:
            raise InvalidRequest("give spiffe_id or dns_name", "name")


def _credential(value: Credential) -> pb.Credential:
    terms = pb.CredentialTerms(
        display_name=value.terms.display_name, audiences=value.terms.audiences, scopes=value.terms.scopes
    )
    if value.terms.expire_time is not None:
        terms.expire_time.CopyFrom(convert.timestamp(value.terms.expire_time))
    message = pb.Credential(
        credential_id=value.grant_id,
        account_id=value.account_id,
        kind=_KINDS[value.kind],
        terms=terms,
        create_time=convert.timestamp(value.create_time),
        use=pb.API_KEY_USE_UNSPECIFIED if value.use is None else _USES[value.use],
        key_id=(value.lookup_name or "") if value.kind is GrantKind.PUBLIC_KEY else "",
        certificate_name=(value.lookup_name or "") if value.kind is GrantKind.CERTIFICATE else "",
    )
    if value.last_used_time is not None:
        message.last_used_time.CopyFrom(convert.timestamp(value.last_used_time))
    return message
