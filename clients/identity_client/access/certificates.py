"""Tokens that are bound to a client certificate (RFC 8705): good only on a connection that shows it."""

from __future__ import annotations

import base64
import hashlib
import ssl
from collections.abc import Iterable, Mapping

from identity_client.errors import CertificateMismatch

_PEM_KEY = "x509_pem_cert"  # where grpc keeps the client's own certificate, verified in the handshake


def thumbprint(pem: bytes) -> str:
    """The SHA-256 of a certificate's DER as base64url without padding (x5t#S256). Raises ValueError."""
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def check_bound(expected: str, auth_context: Mapping[str, Iterable[bytes]]) -> None:
    """Whether the connection's client certificate has the thumbprint *expected*. Raises CertificateMismatch."""
    shown = list(auth_context.get(_PEM_KEY, ()))
    if len(shown) != 1 or thumbprint(shown[0]) != expected:
        raise CertificateMismatch()
