"""A token source as call credentials of grpc, for channels with TLS that are opened elsewhere.

They compose with a channel's own credentials: grpc.composite_channel_credentials(tls, call_credentials(source)). Unlike
`Identity.channel` they repeat nothing.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

import grpc

from identity_client.aio.token_source import AccessToken, TokenSource


def call_credentials(source: TokenSource) -> grpc.CallCredentials:
    """Credentials whose every call carries the token of *source*, which lives on the running loop."""
    return grpc.metadata_call_credentials(_Plugin(source, asyncio.get_running_loop()))


class _Plugin(grpc.AuthMetadataPlugin):
    """Runs on a thread of grpc's C core, which must not be blocked: what is not in hand is fetched by the loop."""

    def __init__(self, source: TokenSource, loop: asyncio.AbstractEventLoop) -> None:
        self._source = source
        self._loop = loop

    def __call__(self, _: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        held = self._source.held
        if held is not None:
            callback(held.metadata, None)
            return

        def answer(future: Future[AccessToken]) -> None:
            error = future.exception()
            if error is None:
                callback(future.result().metadata, None)
            else:
                callback((), error if isinstance(error, Exception) else RuntimeError("the loop has ended"))

        asyncio.run_coroutine_threadsafe(self._source.get(), self._loop).add_done_callback(answer)
