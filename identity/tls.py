"""The server's certificate, read anew for each connection when its files have changed: renewal needs no restart."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import grpc

from .config import Settings

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
        except OSError:
            _log.error("the TLS files cannot be read; the ones read last stay in use")
            return None
        self._stamps = stamps
        return configuration

    def _read_stamps(self) -> list[int]:
        return [path.stat().st_mtime_ns for path in self._paths]

    def _read(self) -> grpc.ServerCertificateConfiguration:
        certificate, key, *client_ca = [path.read_bytes() for path in self._paths]
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca[0] if client_ca else None)


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Credentials for the configured files, None for plain text. With a client CA, clients must show a certificate."""
    if not settings.tls_certificate_file:
        return None
    files = CertificateFiles(settings.tls_certificate_file, settings.tls_key_file, settings.tls_client_ca_file)
    return grpc.dynamic_ssl_server_credentials(
        files.initial, files.changed, require_client_authentication=bool(settings.tls_client_ca_file)
    )
