"""What `identity doctor` finds of the settings, the files, the certificates and the disk."""

from __future__ import annotations

import datetime
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509

from ..config import ConfigurationError
from ..storage.sealing import MasterKey
from ..tls import check_pair
from .findings import Finding, Patient, Severity, good

_CERTIFICATE_DAYS = 21
_MIB = 2**20
_LITTLE_SPACE, _NO_SPACE = 1024 * _MIB, 64 * _MIB
_FORBIDDEN_MODE = stat.S_IWGRP | stat.S_IRWXO


def examine_machine(patient: Patient) -> list[Finding]:
    """In an order in which causes come before effects."""
    return [finding for check in (_configuration, _secret_files, _tls, _disk) for finding in check(patient)]


def _configuration(patient: Patient) -> Iterator[Finding]:
    for problem in patient.problems:
        yield Finding("configuration", Severity.ERROR, problem, "Mend the setting; the service does not start so.")
    for warning in patient.settings.warnings():
        yield Finding("configuration", Severity.WARNING, warning, "Change the setting unless it is meant so.")
    if not patient.problems:
        yield good("configuration", "the settings are complete")


def _secret_files(patient: Patient) -> Iterator[Finding]:
    check, is_good = "secret files", bool(patient.settings.master_key_file)
    try:
        MasterKey.from_file(Path(patient.settings.master_key_file))
    except ConfigurationError as error:
        is_good = False
        for problem in error.problems if patient.settings.master_key_file else ():
            yield Finding(check, Severity.ERROR, problem, "Restore the file from its safe copy, for its owner alone.")
    database = patient.database
    is_file = database is not None and database.name
    files = [database.with_name(database.name + end) for end in ("", "-wal", "-shm")] if database and is_file else []
    for path in (Path(patient.settings.tls_key_file), *files):
        if path.is_file() and path.stat().st_mode & _FORBIDDEN_MODE:
            is_good = False
            found = f"{path} is open to others: {stat.filemode(path.stat().st_mode)}"
            yield Finding(
                check, Severity.ERROR, found, f"chmod 600 {path}; what others could read may be known to them."
            )
    if is_good:
        yield good(check, "the master key, the TLS key and the database are closed to others")


def _tls(patient: Patient) -> Iterator[Finding]:
    settings, check = patient.settings, "tls"
    if not settings.tls_certificate_file:
        yield good(check, "plain text: no tls_certificate_file is set")
        return
    now = datetime.datetime.fromtimestamp(patient.clock.now(), datetime.UTC)
    try:
        certificate = Path(settings.tls_certificate_file).read_bytes()
        check_pair(certificate, Path(settings.tls_key_file).read_bytes())
        yield from _certificate(check, x509.load_pem_x509_certificates(certificate)[0], now, "tls_certificate_file")
        if settings.tls_client_ca_file:
            for authority in x509.load_pem_x509_certificates(Path(settings.tls_client_ca_file).read_bytes()):
                yield from _certificate(check, authority, now, "tls_client_ca_file")
    except (OSError, ValueError, TypeError):  # TypeError: the key is encrypted
        found = "the TLS files cannot be read, are no unencrypted PEM, or the key is not the certificate's"
        yield Finding(
            check, Severity.ERROR, found, "Put the certificate and its own key in place; no restart is needed."
        )


def _certificate(check: str, held: x509.Certificate, now: datetime.datetime, name: str) -> Iterator[Finding]:
    begin, end = held.not_valid_before_utc, held.not_valid_after_utc
    if now < begin:
        said = f"{name}: the certificate is not valid before {begin:%Y-%m-%d %H:%M} UTC"
    elif now >= end:
        said = f"{name}: the certificate expired on {end:%Y-%m-%d %H:%M} UTC"
    else:
        said = f"{name}: the certificate expires in {(end - now).days} days, on {end:%Y-%m-%d %H:%M} UTC"
    if not begin <= now < end:
        yield Finding(check, Severity.ERROR, said, "Replace it; it is read again without a restart.")
    elif end - now < datetime.timedelta(days=_CERTIFICATE_DAYS):
        yield Finding(check, Severity.WARNING, said, "Renew it; it is read again without a restart.")
    else:
        yield good(check, said)


def _disk(patient: Patient) -> Iterator[Finding]:
    folder = patient.database.absolute().parent if patient.database is not None else None
    if folder is None or not folder.is_dir():
        return  # told by the check of the database
    free = shutil.disk_usage(folder).free
    said = f"{free // _MIB:,} MiB are free where the database lies"
    if free < _NO_SPACE:
        yield Finding("disk", Severity.ERROR, said, "Make room now: without it no log-in can be written.")
    elif free < _LITTLE_SPACE:
        yield Finding("disk", Severity.WARNING, said, "Make room, or shorten audit_retention_days.")
    else:
        yield good("disk", said)
