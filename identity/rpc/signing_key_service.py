"""SigningKeyService over the SigningKeyKeeper."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from identity.domain.once import RequestIds
from identity.domain.signing_keys import SigningKeyKeeper, remove_time, usable_time
from identity.domain.texts import check_text
from identity.domain.values import KeyState, SigningKeyRecord
from identity.v1 import signing_key_pb2 as pb
from identity.v1 import signing_key_pb2_grpc
from identity_client.errors import InvalidRequest

from . import convert
from .context import act_of_admin, act_of_creator

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_LONGEST_KEY_ID = 64
_STATES = {
    KeyState.PREPARED: pb.SIGNING_KEY_STATE_PREPARED,
    KeyState.ACTIVE: pb.SIGNING_KEY_STATE_ACTIVE,
    KeyState.RETIRED: pb.SIGNING_KEY_STATE_RETIRED,
    KeyState.REVOKED: pb.SIGNING_KEY_STATE_REVOKED,
}


class SigningKeyServicer(signing_key_pb2_grpc.SigningKeyServiceServicer):
    """Administers signing keys."""

    def __init__(self, keeper: SigningKeyKeeper, request_ids: RequestIds) -> None:
        self._keeper = keeper
        self._request_ids = request_ids

    async def ListSigningKeys(self, _: pb.ListSigningKeysRequest, __: _Context) -> pb.ListSigningKeysResponse:
        return pb.ListSigningKeysResponse(signing_keys=map(_message, await self._keeper.list_all()))

    async def PrepareSigningKey(
        self, request: pb.PrepareSigningKeyRequest, context: _Context
    ) -> pb.PrepareSigningKeyResponse:
        prepared = await self._keeper.prepare(act_of_creator(context, request, self._request_ids))
        return pb.PrepareSigningKeyResponse(signing_key=_message(prepared))

    async def ActivateSigningKey(
        self, request: pb.ActivateSigningKeyRequest, context: _Context
    ) -> pb.ActivateSigningKeyResponse:
        key_id = _key_id(request.key_id)
        activated = await self._keeper.activate(key_id, act_of_admin(context), force=request.force)
        return pb.ActivateSigningKeyResponse(signing_key=_message(activated))

    async def RetireSigningKey(
        self, request: pb.RetireSigningKeyRequest, context: _Context
    ) -> pb.RetireSigningKeyResponse:
        retired = await self._keeper.retire(_key_id(request.key_id), act_of_admin(context))
        return pb.RetireSigningKeyResponse(signing_key=_message(retired))

    async def RevokeSigningKey(
        self, request: pb.RevokeSigningKeyRequest, context: _Context
    ) -> pb.RevokeSigningKeyResponse:
        note = convert.note(request.reason)
        revoked, active_key_id = await self._keeper.revoke(_key_id(request.key_id), note, act_of_admin(context))
        return pb.RevokeSigningKeyResponse(signing_key=_message(revoked), active_key_id=active_key_id)


def _key_id(text: str) -> str:
    if not text:
        raise InvalidRequest("name the key by its key_id, as ListSigningKeys shows it", "key_id")
    return check_text(text, _LONGEST_KEY_ID, "key_id")


def _message(key: SigningKeyRecord) -> pb.SigningKey:
    times = {"create_time": key.create_time, "activate_time": key.activate_time, "retire_time": key.retire_time}
    times |= {"revoke_time": key.revoke_time, "remove_time": remove_time(key)}
    if key.state is KeyState.PREPARED:
        times["usable_time"] = usable_time(key)
    shown = {name: convert.timestamp(time) for name, time in times.items() if time is not None}
    return pb.SigningKey(key_id=key.key_id, state=_STATES[key.state], **shown)
