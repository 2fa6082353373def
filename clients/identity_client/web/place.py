"""Where a user is: the address and agent that the identity service is told of a log-in."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import NamedTuple, TypeAlias

from identity_client.web.asgi import Request

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_LONGEST_AGENT = 256


class Place(NamedTuple):
    """*ip_address* is empty where it is unknown."""

    ip_address: str
    user_agent: str


class Places:
    """Reads X-Forwarded-For of *trusted_proxies* (addresses or networks such as 10.0.0.0/8) alone: anyone else may
    write into it what they like. Raises ValueError for what is no network."""

    def __init__(self, trusted_proxies: Collection[str]) -> None:
        self._trusted = tuple(ipaddress.ip_network(each) for each in trusted_proxies)

    def of(self, request: Request) -> Place:
        """Where *request* comes from."""
        address = self._address(request)
        return Place("" if address is None else str(address), _agent(request))

    def _address(self, request: Request) -> _Address | None:
        client = request.scope.get("client")
        address = _parse(client[0]) if client else None
        entries = [entry for value in request.values(b"x-forwarded-for") for entry in value.split(",")]
        # From the nearest hop back to the first that is none of ours: each trusted hop vouches for the one before it.
        while entries and address is not None and self._is_trusted(address):
            before = _parse(entries.pop().strip())
            if before is None:
                break
            address = before
        return address

    def _is_trusted(self, address: _Address) -> bool:
        return any(address in network for network in self._trusted)


def _parse(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # One spelling for one place, or its guesses would be counted twice.
    return getattr(address, "ipv4_mapped", None) or address


def _agent(request: Request) -> str:
    values = request.values(b"user-agent")
    return "".join(filter(str.isprintable, values[0]))[:_LONGEST_AGENT] if values else ""
