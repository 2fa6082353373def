"""Secrets that outlive the master key: what sessions, seals and counters of years hang on.

Each is derived from the master key once, and kept sealed in the database from then on, so that a new master key
changes none of them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from .config import ConfigurationError
from .storage.sealing import KeyMissing, MasterKey, SealBroken, secret_context
from .storage.sql.sealed import SqlSealedStore


class Label(enum.StrEnum):
    """What a secret is for."""

    REFRESH = "refresh"  # tells refresh tokens from guesses
    AUDIT_NAMES = "audit-names"  # hashes the names that refused attempts gave
    AUDIT_SEAL = "audit-seal"  # seals the audit log
    THROTTLE = "throttle"  # hashes the names that are counted
    REQUEST_IDS = "request-ids"  # hashes what was asked for


Secrets = Mapping[Label, bytes]


async def open_secrets(master: MasterKey, store: SqlSealedStore) -> Secrets:
    """Every secret; the first start makes them, and of replicas that start at once all have the same.

    Raises ConfigurationError: one does not open.
    """
    held = await store.secrets()
    if missing := [label for label in Label if label not in held]:
        new: dict[str, bytes] = {label: master.seal(master.derive(label), secret_context(label)) for label in missing}
        held = await store.add_secrets(new)
    return {label: open_secret(held[label], master, label) for label in Label}


def find_secret(held: Mapping[str, bytes], master: MasterKey, label: Label) -> bytes:
    """One secret of those that are kept, or as the first start would make it. Raises ConfigurationError."""
    return open_secret(held[label], master, label) if label in held else master.derive(label)


def open_secret(sealed: bytes, master: MasterKey, label: str) -> bytes:
    """Raises ConfigurationError: it does not open."""
    try:
        return master.open(sealed, secret_context(label))
    except SealBroken as error:
        raise not_opened(f"the secret {label}", error) from None


def not_opened(what: str, error: SealBroken) -> ConfigurationError:
    """Why *what* of the database cannot be used, in a sentence that says where the fault is."""
    if isinstance(error, KeyMissing):
        return ConfigurationError(
            [f"master_key_file: {what} of the database does not open: {error}. Copy the file of a replica that runs"]
        )
    return ConfigurationError([f"master_key_file: this is not the key that {what} of the database is sealed under"])
