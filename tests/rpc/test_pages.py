"""Page tokens, page sizes and masks of every list and update there is: hostile ones are refused, and named."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from typing import Any

import pytest
from google.protobuf.message_factory import GetMessageClass

from identity.server import CONTRACT
from identity_client.errors import InvalidRequest
from tests.rpc.api import Api, Metadata, bearer
from tests.rpc.refusals import refusal

METHODS = {
    f"/{service.full_name}/{method.name}": method
    for module in CONTRACT
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
LISTS = [path for path, method in METHODS.items() if "page_token" in method.input_type.fields_by_name]
UPDATES = [path for path, method in METHODS.items() if "update_mask" in method.input_type.fields_by_name]

TOKENS = {
    "no base64": "!",
    "cut short": "LTE",
    "not UTF-8": "_w==",
    "not ASCII": "\u00fc",
    "three parts": urlsafe_b64encode(b"1\x002\x003").decode(),
    "a time below zero": urlsafe_b64encode(b"-1\x00" + b"A" * 22).decode(),
    "an id that is none": urlsafe_b64encode(b"1\x00short").decode(),
    "absurdly long": urlsafe_b64encode(b"a" * 3_000).decode(),
    "words of SQL": urlsafe_b64encode(b"1 OR 1=1\x00' OR ''='").decode(),
}


@pytest.fixture
async def everyone(api: Api) -> Metadata:
    service = await api.create_service("orders", "peer", "admin")
    return bearer((await api.login_service("orders", service.client_secret)).access_token)


async def send(api: Api, path: str, metadata: Metadata, **fields: Any) -> Any:
    method = METHODS[path]
    named = {"username": "root"} if "username" in method.input_type.fields_by_name else {}
    request = GetMessageClass(method.input_type)(**named, **fields)
    channel: Any = api.channel
    return await channel.unary_unary(path)(request.SerializeToString(), metadata=metadata)


def test_there_are_lists_and_updates_to_try() -> None:
    assert len(LISTS) >= 6
    assert len(UPDATES) >= 2


@pytest.mark.requirement("R60")
@pytest.mark.parametrize("path", LISTS)
async def test_a_page_that_never_was_is_refused(api: Api, everyone: Metadata, path: str) -> None:
    assert await send(api, path, everyone) is not None
    for name, token in TOKENS.items():
        error = await refusal(send(api, path, everyone, page_token=token))
        assert isinstance(error, InvalidRequest), name
        assert error.field == "page_token", name
    for size in (-1, 1_001, 2**31 - 1):
        error = await refusal(send(api, path, everyone, page_size=size))
        assert isinstance(error, InvalidRequest)
        assert error.field == "page_size"


@pytest.mark.requirement("R60")
@pytest.mark.parametrize("path", UPDATES)
@pytest.mark.parametrize("paths", [[], ["*"], [""], ["name"], ["account_id"], ["scopes", "built_in"], ["a" * 4_000]])
async def test_a_mask_that_names_nothing_that_can_change_is_refused(
    api: Api, everyone: Metadata, path: str, paths: list[str]
) -> None:
    error = await refusal(send(api, path, everyone, update_mask={"paths": paths}))
    assert isinstance(error, InvalidRequest)
    assert error.field == "update_mask"
