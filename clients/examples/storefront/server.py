"""The storefront: `python -m storefront.server`, then open http://localhost:8000. STOREFRONT_COOKIES=jwt keeps log-ins
as two tokens in place of one session."""

from __future__ import annotations

import os
import socket
import sys

import uvicorn

from identity_client import aio
from storefront.app import create_app


def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(os.environ.get("STOREFRONT_PORT", "8000"))))
    origin = f"http://localhost:{listener.getsockname()[1]}"
    match os.environ.get("STOREFRONT_COOKIES", "session"):
        case "session" | "jwt" as cookies:
            app = create_app(aio.Identity.from_env(), origin, cookies)
        case other:
            sys.exit(f"STOREFRONT_COOKIES is session or jwt, not {other}")
    # The middleware itself reads X-Forwarded-For, from the proxies that it is told of.
    config = uvicorn.Config(app, proxy_headers=False, log_level="warning")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
