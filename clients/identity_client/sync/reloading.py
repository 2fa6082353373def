"""The threaded twin of `identity_client.aio.reloading`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self

import grpc

from identity_client.tls_files import FileWatch, TlsFiles

Open = Callable[[grpc.ChannelCredentials], grpc.Channel]


class ReloadingChannel(grpc.Channel):
    """Stands for the newest channel that *open_channel* made of *files*. Raises OSError: they cannot be read.

    A channel that was replaced is let go, not closed: closing would cancel its calls. It goes with the last of them.
    """

    def __init__(self, files: TlsFiles, open_channel: Open) -> None:
        self._watch = FileWatch(files)
        self._open = open_channel
        self._channel = open_channel(files.credentials())
        self._lock = threading.Lock()

    def current(self) -> grpc.Channel:
        """The channel for a call that begins now."""
        with self._lock:
            credentials = self._watch.changed()
            if credentials is not None:
                self._channel = self._open(credentials)
            return self._channel

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def subscribe(self, callback: Any, try_to_connect: bool | None = False) -> None:
        self.current().subscribe(callback, try_to_connect or False)

    def unsubscribe(self, callback: Any) -> None:
        self.current().unsubscribe(callback)

    def unary_unary(self, *form: Any, **options: Any) -> Any:
        return _Method(self, "unary_unary", form, options)

    def unary_stream(self, *form: Any, **options: Any) -> Any:
        return _Method(self, "unary_stream", form, options)

    def stream_unary(self, *form: Any, **options: Any) -> Any:
        return _Method(self, "stream_unary", form, options)

    def stream_stream(self, *form: Any, **options: Any) -> Any:
        return _Method(self, "stream_stream", form, options)


class _Method:
    """One method of a stub: of the newest channel at each call."""

    def __init__(self, owner: ReloadingChannel, shape: str, form: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._owner = owner
        self._build = (shape, form, options)
        self._built: tuple[grpc.Channel, Any] | None = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._method()(*arguments, **options)

    def with_call(self, *arguments: Any, **options: Any) -> Any:
        return self._method().with_call(*arguments, **options)

    def future(self, *arguments: Any, **options: Any) -> Any:
        return self._method().future(*arguments, **options)

    def _method(self) -> Any:
        channel, built = self._owner.current(), self._built
        if built is None or built[0] is not channel:
            shape, form, options = self._build
            built = self._built = (channel, getattr(channel, shape)(*form, **options))
        return built[1]
