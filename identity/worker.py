"""One of several processes that serve on the same port; started by the supervisor, and by nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from identity_client.errors import IdentityError

from . import logs
from .config import ConfigurationError, Settings, load
from .server import Server, serve_until

_log = logging.getLogger(__name__)


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_reader(sys.stdin.fileno(), stop.set)  # nothing is ever written to it: it ends with the supervisor
    server = Server(settings, is_sharing_port=True)
    try:
        address = await server.start()
    except BaseException:
        await server.stop()
        raise
    _log.info("worker %d is ready on %s", os.getpid(), address)
    await stop.wait()
    loop.remove_reader(sys.stdin.fileno())
    await serve_until(server, stop, settings.drain_seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m identity.worker ADDRESS PAGES [FILE]`."""
    address, pages, *config = sys.argv[1:] if arguments is None else arguments
    try:
        settings = load(Path(config[0]) if config else None, os.environ)
        logs.configure(settings.log_level)
        Path(pages.removeprefix("unix:")).unlink(missing_ok=True)  # of the one before, which may have been killed
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(replace(settings, listen=address, http_listen=pages)))
    except (ConfigurationError, IdentityError, RuntimeError) as error:
        _log.error("the worker cannot start: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
