"""TLS files on the caller's side: read anew when they change. A client's credentials cannot change in place
(grpc#41779), so whoever opens channels with them opens another."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

CHECK_SECONDS = 1.0
"""How often at most the files are looked at."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: the authority that servers must be vouched for by ("" for the system's own), and the client
    certificate with its key, if the client is to show one."""

    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """As the files are now. Raises OSError."""
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca_file),
            private_key=_read(self.key_file),
            certificate_chain=_read(self.certificate_file),
        )

    def stamps(self) -> tuple[int, ...]:
        """What moves when a file does. Raises OSError."""
        return tuple(Path(path).stat().st_mtime_ns for path in self._paths)

    @property
    def _paths(self) -> list[str]:
        return [path for path in (self.ca_file, self.certificate_file, self.key_file) if path]


class FileWatch:
    """Tells when files have changed since they were last used. Not locked: for one thread, or whoever holds a lock."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamps = files.stamps()
        self._checked_at = time.monotonic()

    def changed(self) -> grpc.ChannelCredentials | None:
        """New credentials; None while nothing changed, or while the files cannot be read: the old ones stay in use."""
        now = time.monotonic()
        if now - self._checked_at < CHECK_SECONDS:
            return None
        self._checked_at = now
        try:
            stamps = self._files.stamps()
            if stamps == self._stamps:
                return None
            credentials = self._files.credentials()
        except OSError as error:
            _log.error("the TLS files cannot be read; the ones read last stay in use: %s", error.strerror)
            return None
        self._stamps = stamps
        return credentials


def _read(path: str) -> bytes | None:
    return Path(path).read_bytes() if path else None
