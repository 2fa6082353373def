"""What `identity doctor` finds of the master key: which of its keys seal what the database holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sqlalchemy import Connection

from ..config import ConfigurationError
from ..lasting import open_secret
from ..storage.sealing import MasterKey, SealBroken
from ..storage.sql.sealed import all_secrets, count_sealed
from .findings import Finding, Severity

_CHECK = "master key"


def examine_master_key(connection: Connection, master: MasterKey) -> list[Finding]:
    """*master*: the keys of the file."""
    try:
        sealed = count_sealed(connection)
    except SealBroken as error:
        advice = "Somebody wrote past the service, or the disk failed: compare with a backup."
        return [Finding(_CHECK, Severity.ERROR, f"of what should be sealed: {error}", advice)]
    return [*_key_numbers(sealed, master), *_secrets(connection, master)]


def _secrets(connection: Connection, master: MasterKey) -> Iterator[Finding]:
    secrets = all_secrets(connection)
    if broken := sorted(label for label in secrets if not _opens(label, secrets[label], master)):
        found = f"secrets do not open with the master key: {', '.join(broken)}"
        yield Finding(_CHECK, Severity.ERROR, found, "Restore the master key that they were sealed under.")


def _key_numbers(sealed: Counter[int], master: MasterKey) -> Iterator[Finding]:
    for number in sorted(sealed.keys() | set(master.numbers)):
        said = f"{sealed[number]} values are sealed under key {number}"
        if number not in master.numbers:
            advice = "Copy the file of a replica that has the key, or restore it."
            yield Finding(_CHECK, Severity.ERROR, f"{said}, which the file does not hold", advice)
        elif number == master.newest:
            yield Finding(_CHECK, Severity.OK, said)
        elif sealed[number]:
            found = f"{said}, and {master.newest} is the newest"
            advice = f"Run `identity master-key reseal` once the file of every replica holds key {master.newest}."
            yield Finding(_CHECK, Severity.WARNING, found, advice)
        else:
            found = f"the file holds key {number}, and nothing is sealed under it"
            yield Finding(_CHECK, Severity.WARNING, found, "Run `identity master-key forget`.")


def _opens(label: str, sealed: bytes, master: MasterKey) -> bool:
    try:
        open_secret(sealed, master, label)
    except ConfigurationError:
        return False
    return True
