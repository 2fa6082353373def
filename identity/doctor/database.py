"""What `identity doctor` finds of the database: its schema, its soundness, its keys and its audit log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from ..config import ConfigurationError
from ..domain.audit_seals import SealKey
from ..domain.values import KeyState, SigningKeyRecord
from ..lasting import Label, find_secret
from ..signing import open_key
from ..storage import inspection
from ..storage.database import is_postgres
from ..storage.schema import REVISION, find_revision
from ..storage.sealing import MasterKey
from ..storage.sql.audit_check import AuditReport, check_audit
from ..storage.sql.sealed import all_secrets
from ..storage.sql.signing_keys import all_keys
from .findings import Finding, Patient, Severity, good

_DAY_SECONDS = 86_400
_UNSEALED_SECONDS = 60
_SHOWN_PROBLEMS = 20


async def examine_database(patient: Patient) -> list[Finding]:
    """Nothing more is looked for where it cannot be read, or its schema is another release's."""
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


def _schema(connection: Connection) -> Iterator[Finding]:
    revision = find_revision(connection)
    if revision == REVISION:
        yield good("migrations", f"the schema is of revision {revision}, as it should be")
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
        yield good("integrity", "the database is sound, as far as can be seen from here")


def _durability(patient: Patient, connection: Connection) -> list[Finding]:
    if not is_postgres(patient.settings.database):
        return []  # SQLite is opened with synchronous=FULL
    from .postgres import examine_durability

    return examine_durability(connection)


def _clock(patient: Patient, connection: Connection) -> Iterator[Finding]:
    newest, now = inspection.newest_time(connection), patient.clock.now()
    behind = 0 if newest is None else newest - now
    if behind > patient.settings.leeway_seconds:
        found = f"this machine's clock is {behind:,.0f} seconds behind the newest time in the database"
        advice = "Set the clock by NTP. If the time in the database is wrong, it was set wrongly before: wait it out."
        yield Finding("clock", Severity.ERROR, found, advice)
    else:
        yield good("clock", "not behind the newest time in the database")


def _signing_keys(patient: Patient, connection: Connection) -> Iterator[Finding]:
    check, keys = "signing keys", all_keys(connection)
    if not any(key.state is KeyState.ACTIVE for key in keys):
        yield Finding(check, Severity.ERROR, "no signing key is active", "Start the service: it makes one.")
    for key in keys:
        days = int(patient.clock.now() - key.create_time) // _DAY_SECONDS
        yield good(check, f"key {key.key_id} is {key.state}, and {days} days old")
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
    from .master_key import examine_master_key

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
        yield good(check, _sealed(report))
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
