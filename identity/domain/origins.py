"""Where calls come from: the unit in which log-ins are counted, and which units many people share."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

LOCAL = "local"
"""Every origin that is no address: a Unix socket, or unknown. Who comes this way is on the machine."""

_SITE_BITS = 64


@lru_cache(maxsize=1_024)  # a log-in asks three times, and a flood of them comes from few places
def unit_of(origin: str) -> str:
    """An IPv4 address; an IPv6 network of 64 bits, all of which one subscriber has at hand; LOCAL for the rest."""
    address = _address(origin)
    if address is None:
        return LOCAL
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((int(address), _SITE_BITS), strict=False))


def is_within(origin: str, networks: tuple[Network, ...]) -> bool:
    """Whether the origin lies in one of these networks; LOCAL lies in none."""
    address = _address(origin)
    return address is not None and any(address in network for network in networks)


def parse_networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    """Networks in CIDR form. Raises ValueError, also where bits are set beyond the prefix."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def _address(origin: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(origin.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
