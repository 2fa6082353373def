"""Client certificates as a connection showed them: the names that they bear, and what binds a token to them."""

from __future__ import annotations

import datetime
import hashlib
import re
from dataclasses import dataclass
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from identity_client.errors import InvalidRequest
from identity_client.tokens.keys import base64url

from .refusals import Cause, Rejected

MAXIMUM_NAMES = 64

_SPIFFE_ID = re.compile(r"spiffe://[a-z0-9._-]{1,255}(?:/[A-Za-z0-9._-]{1,255}){0,16}")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


class ClientAuthorities(Protocol):
    """The certificate authorities that vouch for clients now."""

    def is_trusted(self, chain: list[x509.Certificate], now: datetime.datetime) -> bool:
        """Whether one of them issued the first of *chain*, by the rest where needed; expiry is not the question."""


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A certificate and the names in it, in the order of preference: SPIFFE ids, then DNS names."""

    names: tuple[str, ...]
    thumbprint: str


def read_certificate(
    chain_pem: bytes | None, authorities: ClientAuthorities, now: datetime.datetime
) -> ClientCertificate:
    """What the connection's certificate says, if it still holds.

    TLS has proved the chain when the connection was made. A connection can outlive its certificate and its authority:
    both are looked at again. Raises Rejected with the cause.
    """
    if chain_pem is None:
        raise Rejected(Cause.CERTIFICATE_MISSING)
    try:
        chain = x509.load_pem_x509_certificates(chain_pem)
        names = _names(chain[0])
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise Rejected(Cause.CERTIFICATE_UNREGISTERED) from None
    if not chain[0].not_valid_before_utc <= now < chain[0].not_valid_after_utc:
        raise Rejected(Cause.CERTIFICATE_EXPIRED)
    if not authorities.is_trusted(chain, now):
        raise Rejected(Cause.CERTIFICATE_UNTRUSTED)
    return ClientCertificate(names, thumbprint(chain[0]))


def thumbprint(certificate: x509.Certificate) -> str:
    """The claim x5t#S256 of a token bound to *certificate* (RFC 8705 section 3.1)."""
    return base64url(hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest())


def spiffe_name(spiffe_id: str, field: str) -> str:
    """How a SPIFFE id is looked up. Raises InvalidRequest."""
    if len(spiffe_id) > 2048 or not _SPIFFE_ID.fullmatch(spiffe_id):
        raise InvalidRequest("a SPIFFE id has the form spiffe://trust-domain/path", field)
    return spiffe_id


def dns_name(name: str, field: str) -> str:
    """How a DNS name is looked up. Raises InvalidRequest."""
    lowered = name.lower().removesuffix(".")
    if len(lowered) > 253 or not _DNS_NAME.fullmatch(lowered):
        raise InvalidRequest("a DNS name has labels of letters, digits and '-', and no wildcard", field)
    return f"dns:{lowered}"


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    uris = [uri for uri in extension.get_values_for_type(x509.UniformResourceIdentifier) if _SPIFFE_ID.fullmatch(uri)]
    names = [f"dns:{name.lower()}" for name in extension.get_values_for_type(x509.DNSName)]
    return tuple([*uris, *names][:MAXIMUM_NAMES])
