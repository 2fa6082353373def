"""`identity doctor`: looks at everything that the service stands on, changes nothing, and says what to do."""

from __future__ import annotations

import datetime
import enum
import json
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cryptography import x509
from sqlalchemy import Connection, make_url
from sqlalchemy.exc import DBAPIError

from identity_client.clock import Clock

from .config import ConfigurationError, Settings
from .domain.audit_seals import SealKey
from .domain.values import KeyState, SigningKeyRecord
from .lasting import Label, find_secret
from .signing import open_key
from .storage import inspection
from .storage.database import is_postgres
from .storage.schema import REVISION, find_revision
from .storage.sealing import MasterKey
from .storage.sql.audit_check import AuditReport, check_audit
from .storage.sql.sealed import all_secrets
from .storage.sql.signing_keys import all_keys
from .tls import check_pair

_DAY_SECONDS = 86_400
_CERTIFICATE_DAYS = 21
_UNSEALED_SECONDS = 60
_SHOWN_PROBLEMS = 20
_MIB = 2**20
_LITTLE_SPACE, _NO_SPACE = 1024 * _MIB, 64 * _MIB
_FORBIDDEN_MODE = stat.S_IWGRP | stat.S_IRWXO


class Severity(enum.IntEnum):
    """The worst of a report is the command's exit status."""

    OK = 0
    WARNING = 1
    ERROR = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and what is to be done about it."""

    check: str
    severity: Severity
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Patient:
    """What is looked at. *problems*: what is wrong with the settings, as `identity serve` would say it."""

    settings: Settings
    problems: list[str]
    clock: Clock
    master: MasterKey | None = field(init=False)

    def __post_init__(self) -> None:
        try:
            master = MasterKey.from_file(Path(self.settings.master_key_file))
        except ConfigurationError:
            master = None  # told by the check of the files
        object.__setattr__(self, "master", master)

    @property
    def database(self) -> Path | None:
        """The file, "." where the setting names none; None for PostgreSQL."""
        if is_postgres(self.settings.database):
            return None
        try:
            return Path(make_url(self.settings.database).database or "")
        except ValueError:
            return Path()


async def examine(patient: Patient) -> list[Finding]:
    """Every check, in an order in which causes come before effects."""
    findings = [finding for check in (_configuration, _secret_files, _tls, _disk) for finding in check(patient)]
    findings += await _database(patient)
    return [*findings, *await _redis(patient)]


def as_text(findings: list[Finding]) -> str:
    """For people: a line for each, and what to do below those that ask for it."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.severity.name.lower():8} {finding.check:14} {finding.found}")
        if finding.severity is not Severity.OK:
            lines.append(f"{'':23} -> {finding.advice}")
    counts = Counter(finding.severity for finding in findings)
    return "\n".join([*lines, f"{counts[Severity.ERROR]} errors, {counts[Severity.WARNING]} warnings"])


def as_json(findings: list[Finding]) -> str:
    """For programs: the worst severity, and every finding."""
    listed = [asdict(finding) | {"severity": finding.severity.name.lower()} for finding in findings]
    return json.dumps({"severity": worst(findings).name.lower(), "findings": listed}, indent=2)


def worst(findings: list[Finding]) -> Severity:
    """The severity of the whole report."""
    return max(finding.severity for finding in findings)


def _good(check: str, found: str) -> Finding:
    return Finding(check, Severity.OK, found)


# -- the machine ---------------------------------------------------------------------------------------------------


def _configuration(patient: Patient) -> Iterator[Finding]:
    for problem in patient.problems:
        yield Finding("configuration", Severity.ERROR, problem, "Mend the setting; the service does not start so.")
    for warning in patient.settings.warnings():
        yield Finding("configuration", Severity.WARNING, warning, "Change the setting unless it is meant so.")
    if not patient.problems:
        yield _good("configuration", "the settings are complete")


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
        yield _good(check, "the master key, the TLS key and the database are closed to others")


def _tls(patient: Patient) -> Iterator[Finding]:
    settings, check = patient.settings, "tls"
    if not settings.tls_certificate_file:
        yield _good(check, "plain text: no tls_certificate_file is set")
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
        yield _good(check, said)


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
        yield _good("disk", said)


# -- the database --------------------------------------------------------------------------------------------------


async def _database(patient: Patient) -> list[Finding]:
    path = patient.database
    if path is not None and not path.is_file():
        advice = "Correct the setting, or start the service to make it."
        return [Finding("database", Severity.ERROR, f"{path} is no file", advice)]

    def check_all(connection: Connection) -> list[Finding]:
        checks = _CHECKS if find_revision(connection) == REVISION else ()
        return [*_schema(connection), *(finding for check in checks for finding in check(patient, connection))]

    try:
        return await inspection.look(patient.settings.database, check_all)
    except (DBAPIError, OSError) as error:
        found = f"{path or 'PostgreSQL'} cannot be read: {getattr(error, 'orig', None) or error}"
        advice = "Is it a database of this service, may you read it, is the disk sound? Restore a backup if need be."
        return [Finding("database", Severity.ERROR, found, advice)]


async def _redis(patient: Patient) -> list[Finding]:
    if not patient.settings.redis_url:
        return []
    from .redis_doctor import examine_redis

    try:
        feed = await inspection.look(patient.settings.database, inspection.feed_position)
    except (DBAPIError, OSError):
        feed = None  # told by the check of the database
    return await examine_redis(patient, feed)


def _schema(connection: Connection) -> Iterator[Finding]:
    revision = find_revision(connection)
    if revision == REVISION:
        yield _good("migrations", f"the schema is of revision {revision}, as it should be")
    elif revision is None or revision < REVISION:
        found = f"the schema is of revision {revision or 'none'}; {REVISION} is pending"
        advice = "Run `identity migrate`; over SQLite the service does so when it starts. Until then, no more is seen."
        yield Finding("migrations", Severity.WARNING, found, advice)
    else:
        found = f"the schema is of revision {revision}, newer than this program's {REVISION}"
        yield Finding("migrations", Severity.ERROR, found, "Use the newer program.")


def _integrity(_: Patient, connection: Connection) -> Iterator[Finding]:
    problems = inspection.integrity_problems(connection)
    for problem in problems:
        yield Finding("integrity", Severity.ERROR, problem, "Stop the service, and restore a backup on a sound disk.")
    if not problems:
        yield _good("integrity", "the database is sound, as far as can be seen from here")


def _durability(patient: Patient, connection: Connection) -> list[Finding]:
    if not is_postgres(patient.settings.database):
        return []  # SQLite is opened with synchronous=FULL
    from .postgres_doctor import examine_durability

    return examine_durability(connection)


def _clock(patient: Patient, connection: Connection) -> Iterator[Finding]:
    newest, now = inspection.newest_time(connection), patient.clock.now()
    behind = 0 if newest is None else newest - now
    if behind > patient.settings.leeway_seconds:
        found = f"this machine's clock is {behind:,.0f} seconds behind the newest time in the database"
        advice = "Set the clock by NTP. If the time in the database is wrong, it was set wrongly before: wait it out."
        yield Finding("clock", Severity.ERROR, found, advice)
    else:
        yield _good("clock", "not behind the newest time in the database")


def _signing_keys(patient: Patient, connection: Connection) -> Iterator[Finding]:
    check, keys = "signing keys", all_keys(connection)
    if not any(key.state is KeyState.ACTIVE for key in keys):
        yield Finding(check, Severity.ERROR, "no signing key is active", "Start the service: it makes one.")
    for key in keys:
        days = int(patient.clock.now() - key.create_time) // _DAY_SECONDS
        yield _good(check, f"key {key.key_id} is {key.state}, and {days} days old")
        if patient.master is not None and key.sealed_private_key and not _opens(key, patient.master):
            found = f"key {key.key_id} does not open with the master key"
            yield Finding(check, Severity.ERROR, found, "Restore the master key that it was sealed under.")


def _opens(key: SigningKeyRecord, master: MasterKey) -> bool:
    try:
        open_key(key, master)
    except ConfigurationError:
        return False
    return True


def _master_key(patient: Patient, connection: Connection) -> list[Finding]:
    from .master_key_doctor import examine_master_key

    return [] if patient.master is None else examine_master_key(connection, patient.master)


def _audit(patient: Patient, connection: Connection) -> Iterator[Finding]:
    check = "audit log"
    if patient.master is None:
        yield Finding(
            check, Severity.ERROR, "the seals cannot be proved without the master key", "Restore the master key."
        )
        return
    keys = all_keys(connection)
    if keys and not any(_opens(key, patient.master) for key in keys):
        found = "the seals were not checked: no signing key opens with this master key, so it is another database's"
        yield Finding(check, Severity.ERROR, found, "Restore the master key; nothing is known of the log until then.")
        return
    try:
        key = SealKey(find_secret(all_secrets(connection), patient.master, Label.AUDIT_SEAL))
    except ConfigurationError:
        return  # told by the check of the master key
    report = check_audit(connection, key)
    advice = "Somebody wrote past the service, or the disk failed: compare with a backup, and treat it as a breach."
    for problem in report.problems[:_SHOWN_PROBLEMS]:
        yield Finding(check, Severity.ERROR, problem, advice)
    if len(report.problems) > _SHOWN_PROBLEMS:
        found = f"{len(report.problems) - _SHOWN_PROBLEMS} more problems of this kind"
        yield Finding(check, Severity.ERROR, found, advice)
    if not report.problems:
        yield _good(check, _sealed(report))
    yield from _audit_ages(report, inspection.oldest_account_time(connection))


def _sealed(report: AuditReport) -> str:
    if report.newest is None:
        return f"no seals yet; {report.unsealed_count} events wait for the first"
    newest = report.newest
    removed = (
        f", those under the first {report.removed_through} removed for their age" if report.removed_through else ""
    )
    return (
        f"{newest.seal_number} seals hold over events 1-{newest.last_event_id}{removed}; {report.unsealed_count} wait "
        f"for the next. Digest of the newest, to be noted elsewhere: {newest.digest().hex()}"
    )


def _audit_ages(report: AuditReport, oldest_account_time: int | None) -> Iterator[Finding]:
    if report.unsealed_seconds > _UNSEALED_SECONDS:
        found = f"{report.unsealed_count} events are not sealed, the oldest for {report.unsealed_seconds:,} seconds"
        yield Finding("audit log", Severity.WARNING, found, "Look into the service's log for why it does not seal.")
    if report.first is not None and oldest_account_time is not None:
        days = (report.first.time_ms // 1000 - oldest_account_time) // _DAY_SECONDS
        if days > 0:
            found = f"the first seal is {days} days younger than the oldest account"
            advice = (
                "Unless an older release was upgraded then, the log was removed and begun anew: treat it as a breach."
            )
            yield Finding("audit log", Severity.WARNING, found, advice)


_CHECKS: tuple[Callable[[Patient, Connection], Iterable[Finding]], ...] = (
    _integrity,
    _durability,
    _clock,
    _master_key,
    _signing_keys,
    _audit,
)
