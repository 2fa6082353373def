"""A channel whose TLS files may be replaced while it is used: calls that begin afterwards go over a new connection,
those in flight end on the old one."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any, Self

import grpc
import grpc.aio

from identity_client.tls_files import FileWatch, TlsFiles

DRAIN_SECONDS = 3_600.0
"""How long calls on the old connection may go on."""

Open = Callable[[grpc.ChannelCredentials], grpc.aio.Channel]


class ReloadingChannel(grpc.aio.Channel):
    """Stands for the newest channel that *open_channel* made of *files*. Raises OSError: they cannot be read."""

    def __init__(self, files: TlsFiles, open_channel: Open) -> None:
        self._watch = FileWatch(files)
        self._open = open_channel
        self._channel = open_channel(files.credentials())
        self._draining: set[asyncio.Task[None]] = set()

    def current(self) -> grpc.aio.Channel:
        """The channel for a call that begins now."""
        credentials = self._watch.changed()
        if credentials is not None:
            self._retire(self._channel)
            self._channel = self._open(credentials)
        return self._channel

    async def close(self, grace: float | None = None) -> None:
        for task in self._draining:
            task.cancel()
        await asyncio.gather(*self._draining, return_exceptions=True)
        await self._channel.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self.current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.current().channel_ready()

    def unary_unary(self, *form: Any, **options: Any) -> Any:
        return _Method(self, "unary_unary", form, options)

    def unary_stream(self, *form: Any, **options: Any) -> Any:
        return _Method(self, "unary_stream", form, options)

    def stream_unary(self, *form: Any, **options: Any) -> Any:
        return _Method(self, "stream_unary", form, options)

    def stream_stream(self, *form: Any, **options: Any) -> Any:
        return _Method(self, "stream_stream", form, options)

    def _retire(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.get_running_loop().create_task(channel.close(DRAIN_SECONDS), context=contextvars.Context())
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)


class _Method:
    """One method of a stub: of the newest channel at each call."""

    def __init__(self, owner: ReloadingChannel, shape: str, form: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._owner = owner
        self._build = (shape, form, options)
        self._channel: grpc.aio.Channel | None = None
        self._method: Any = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        channel = self._owner.current()
        if channel is not self._channel:
            shape, form, keywords = self._build
            self._channel, self._method = channel, getattr(channel, shape)(*form, **keywords)
        return self._method(*arguments, **options)
