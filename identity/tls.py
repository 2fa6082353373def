"""The server's certificate, read anew for each connection when its files have changed: renewal needs no restart."""

from __future__ import annotations

import datetime
import logging
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store, VerificationError

from .config import ConfigurationError, Settings

_log = logging.getLogger(__name__)


class CertificateFiles:
    """Key, certificate and optional client CA on disk; the last good set is kept when a new one is unreadable."""

    def __init__(self, certificate: str, key: str, client_ca: str) -> None:
        self._paths = [Path(certificate), Path(key), *([Path(client_ca)] if client_ca else [])]
        self._stamps = self._read_stamps()
        self.initial = self._read()

    def changed(self) -> Any:
        """The new configuration, or None while nothing changed (which grpc's type stubs do not know of)."""
        try:
            stamps = self._read_stamps()
            if stamps == self._stamps:
                return None
            configuration = self._read()
        except (OSError, ValueError, TypeError):
            _log.error("the TLS files cannot be read or do not belong together; the ones read last stay in use")
            return None
        self._stamps = stamps
        return configuration

    def _read_stamps(self) -> list[int]:
        return [path.stat().st_mtime_ns for path in self._paths]

    def _read(self) -> grpc.ServerCertificateConfiguration:
        certificate, key, *client_ca = [path.read_bytes() for path in self._paths]
        check_pair(certificate, key)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca[0] if client_ca else None)


class ClientAuthorityFile:
    """The client CA file as it is now; see domain.certificates.ClientAuthorities. "" for none: nobody is trusted."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None

    def is_trusted(self, chain: list[x509.Certificate], now: datetime.datetime) -> bool:
        if self._path is None:
            return False
        try:
            authorities = x509.load_pem_x509_certificates(self._path.read_bytes())
            verifier = _policy(authorities, now).build_client_verifier()
            verifier.verify(chain[0], chain[1:])
        except VerificationError:
            return False
        except (OSError, ValueError):
            _log.error("the client CA file cannot be read: no client certificate is trusted until it can be")
            return False
        return True


def _policy(authorities: list[x509.Certificate], now: datetime.datetime) -> PolicyBuilder:
    # Which names a certificate bears is ours to judge, and TLS has judged the chain; what is asked here is who vouches
    # for it today. Of an authority nothing is asked but that it is one: `openssl req -x509` gives it no key usage, and
    # the rules of the public web refuse that.
    anything = ExtensionPolicy.permit_all()
    authority = anything.require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _must_be_ca)
    authority = authority.may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _must_sign)
    builder = PolicyBuilder().store(Store(authorities)).time(now)
    return builder.extension_policies(ca_policy=authority, ee_policy=anything)


def _must_sign(_: Policy, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("its key does not sign certificates")


def _must_be_ca(_: Policy, __: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if not constraints.ca:
        raise ValueError("the certificate is no authority's")


def check_pair(certificate: bytes, key: bytes) -> None:
    """Raises ValueError: not PEM, or the key is another certificate's. grpc itself would fail each handshake."""
    own_key = load_pem_private_key(key, None).public_key()
    certified_key = x509.load_pem_x509_certificates(certificate)[0].public_key()
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if own_key.public_bytes(*form) != certified_key.public_bytes(*form):
        raise ValueError("the key is not the certificate's")


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Credentials for the configured files, None for plain text. With a client CA, clients must show a certificate.

    Raises ConfigurationError.
    """
    if not settings.tls_certificate_file:
        return None
    try:
        files = CertificateFiles(settings.tls_certificate_file, settings.tls_key_file, settings.tls_client_ca_file)
    except (OSError, ValueError, TypeError):  # TypeError: the key is encrypted
        problem = "tls_certificate_file and tls_key_file must be a PEM certificate and its unencrypted PEM key"
        raise ConfigurationError([problem]) from None
    return grpc.dynamic_ssl_server_credentials(
        files.initial, files.changed, require_client_authentication=bool(settings.tls_client_ca_file)
    )
