"""Random bodies for every RPC: each is answered, or refused with a documented status, reason and text, and never with
UNKNOWN or INTERNAL. The long form is run by `make attacks`."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from identity.v1 import trust_pb2
from tests.rpc.api import Api, Metadata, bearer
from tests.rpc.test_bad_input import GOOD_REQUESTS, METHODS, SOME_ID, assert_useful, method_of, path_of

COUNT = int(os.environ.get("IDENTITY_TEST_BODIES", "50"))
AT_ONCE = 16

LARGEST = 64 * 1024
"""Of larger bodies the transport alone decides."""

STREAM_SECONDS = 2.0
"""A stream that has said nothing for so long is answered well enough."""

TEXTS = (
    "",
    "root",
    "orders",
    "clerk",
    SOME_ID,
    "a.b.c",
    "\0",
    "\u202e",
    "é" * 300,
    "' OR 1=1 --",
    "x" * 5_000,
    "../..",
)
NUMBERS = (0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
_WHOLE = {FieldDescriptor.CPPTYPE_INT32: 32, FieldDescriptor.CPPTYPE_INT64: 64}
_POSITIVE = {FieldDescriptor.CPPTYPE_UINT32: 32, FieldDescriptor.CPPTYPE_UINT64: 64}


def noise(chance: random.Random, _: MethodDescriptor) -> bytes:
    return chance.randbytes(chance.choice((1, 7, 40, 400)))


def records(chance: random.Random, _: MethodDescriptor) -> bytes:
    """Well-formed fields of low numbers, with any content."""
    parts = []
    for _number in range(chance.randint(1, 6)):
        content = chance.randbytes(chance.randint(0, 30))
        parts.append(bytes([chance.randint(1, 15) << 3 | 2, len(content)]) + content)
        parts.append(bytes([chance.randint(1, 15) << 3, chance.randint(0, 127)]))
    return b"".join(parts)


def spoilt(chance: random.Random, method: MethodDescriptor) -> bytes:
    """A good request with a byte changed, taken out or put in, or with its end cut off or repeated."""
    good = [request for name, request in GOOD_REQUESTS.items() if method_of(name) is method]
    body = chance.choice(good).SerializeToString() if good else b""
    at = chance.randint(0, len(body))
    return chance.choice(
        (
            body[:at] + chance.randbytes(1) + body[at + 1 :],
            body[:at] + body[at + 1 :],
            body[:at] + chance.randbytes(1) + body[at:],
            body[:at],
            body + body[at:],
        )
    )


def filled(chance: random.Random, method: MethodDescriptor) -> bytes:
    """A message of the right type, with strange values."""
    request = GetMessageClass(method.input_type)()
    fill(chance, request, depth=4)
    body: bytes = request.SerializeToString()
    return body if len(body) < LARGEST else filled(chance, method)


def fill(chance: random.Random, message: Any, depth: int) -> None:
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.4:
            continue
        if field.is_repeated:
            for _ in range(chance.choice((1, 1, 2, 2, 150))):
                put_one(chance, message, field, depth)
        else:
            put_one(chance, message, field, depth)


def put_one(chance: random.Random, message: Any, field: FieldDescriptor, depth: int) -> None:
    held = getattr(message, field.name)
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        part: Message = held.add() if field.is_repeated else held
        if not field.is_repeated:
            part.SetInParent()
        if depth:
            fill(chance, part, depth - 1)
    elif field.is_repeated:
        held.append(value_of(chance, field))
    else:
        setattr(message, field.name, value_of(chance, field))


def value_of(chance: random.Random, field: FieldDescriptor) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return chance.randbytes(20) if field.type == FieldDescriptor.TYPE_BYTES else chance.choice(TEXTS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return chance.choice((0, 1, 2, 3, 999))
    if kind in _WHOLE:
        return max(-(2 ** (_WHOLE[kind] - 1)), min(2 ** (_WHOLE[kind] - 1) - 1, chance.choice(NUMBERS)))
    if kind in _POSITIVE:
        return min(2 ** _POSITIVE[kind] - 1, abs(chance.choice(NUMBERS)))
    return chance.choice((0.0, -1.5, float("inf"), float("nan")))


MAKERS: tuple[Callable[[random.Random, MethodDescriptor], bytes], ...] = (noise, records, spoilt, filled)


async def send(api: Api, method: MethodDescriptor, body: bytes, metadata: Metadata) -> str:
    """What became of the body: the name of the status."""
    channel: Any = api.channel
    try:
        if method.server_streaming:
            stream = channel.unary_stream(path_of(method))(body, metadata=metadata)
            try:
                async with asyncio.timeout(STREAM_SECONDS):
                    await stream.read()
            except TimeoutError:
                return "OK"
            finally:
                stream.cancel()
        else:
            await channel.unary_unary(path_of(method))(body, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        assert error.code() not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL), (body, error.details())
        assert_useful(error)
        return error.code().name
    return "OK"


async def caller(api: Api, secret: str) -> Metadata:
    return bearer((await api.login_service("untold", secret)).access_token)


@pytest.mark.parametrize("method", METHODS, ids=path_of)
async def test_random_bodies_are_answered_or_refused_usefully(api: Api, method: MethodDescriptor) -> None:
    await api.create_service("orders")
    secret = (await api.create_service("untold", "peer", "admin")).client_secret  # a name that no body has
    chance = random.Random(path_of(method))  # the same bodies in each run
    seen: Counter[str] = Counter()
    for _ in range(0, COUNT, AT_ONCE):
        own = await caller(api, secret)  # anew: the bodies may have outdated the last one
        bodies = [chance.choice(MAKERS)(chance, method) for _ in range(AT_ONCE)]
        seen.update(await asyncio.gather(*(send(api, method, body, own) for body in bodies)))
    assert (await api.trust.GetKeys(trust_pb2.GetKeysRequest())).key_set.keys
    print(path_of(method), dict(seen))
