"""The master key: what is secret at rest is sealed under it.

It lives in a file of its own, outside the database. A sealed value is bound to its context, so that a value moved to
another row does not open; it carries the number of its key, so that the master key can be rotated: the newest seals,
and all that the file holds open.
"""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from identity.config import ConfigurationError
from identity.storage import key_file
from identity.storage.key_file import KEY_BYTES, Keys

_FORMAT = b"\1"
_HEADER_BYTES = 3
_NONCE_BYTES = 12

_log = logging.getLogger(__name__)


class SealBroken(ValueError):
    """A sealed value does not open: another master key, another context, or changed bytes."""


class KeyMissing(SealBroken):
    """It is sealed under a key that the file does not hold."""


class MasterKey:
    """Seals, opens and derives, with the keys of one file.

    Both sealing and opening are rare. The file is read again before a value is sealed, and for a number that is not
    known: so a service that runs follows a rotation without a restart.
    """

    def __init__(self, path: Path, keys: Keys) -> None:
        self._path = path
        self._keys = keys

    @classmethod
    def from_file(cls, path: Path) -> MasterKey:
        """Raises ConfigurationError: see key_file.read_keys."""
        return cls(path, key_file.read_keys(path))

    @classmethod
    def generate(cls, path: Path) -> MasterKey:
        """Write a new key to *path*, for its owner alone. Raises FileExistsError."""
        key = secrets.token_bytes(KEY_BYTES)
        key_file.create(path, key)
        return cls(path, {1: key})

    @property
    def numbers(self) -> list[int]:
        """Of the keys that are held, the newest last."""
        return sorted(self._keys)

    @property
    def newest(self) -> int:
        """The number of the key that seals."""
        return max(self._keys)

    def derive(self, label: str) -> bytes:
        """Another key of 32 bytes for one purpose (HKDF-SHA256, RFC 5869), from the oldest key that is held.

        It changes when that one is forgotten: what has to last is kept sealed, see identity.lasting.
        """
        return _derive(self._keys[min(self._keys)], label)

    def seal(self, plaintext: bytes, context: str) -> bytes:
        """Encrypt and authenticate *plaintext* for *context* under the newest key (AES-256-GCM)."""
        self._read_again()
        header, nonce = _FORMAT + self.newest.to_bytes(2, "big"), secrets.token_bytes(_NONCE_BYTES)
        return header + nonce + self._cipher(self.newest).encrypt(nonce, plaintext, header + context.encode())

    def open(self, sealed: bytes, context: str) -> bytes:
        """What `seal` was given for this context. Raises SealBroken, KeyMissing."""
        number = key_number(sealed)
        if number not in self._keys:
            self._read_again()
        if number not in self._keys:
            held = ", ".join(map(str, self.numbers))
            raise KeyMissing(f"it is sealed under key {number}, and the file holds {held}")
        header, rest = sealed[:_HEADER_BYTES], sealed[_HEADER_BYTES:]
        try:
            cipher = self._cipher(number)
            return cipher.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], header + context.encode())
        except (InvalidTag, ValueError):
            raise SealBroken("the sealed value does not open with this master key") from None

    def _cipher(self, number: int) -> AESGCM:
        return AESGCM(_derive(self._keys[number], "seal"))

    def _read_again(self) -> None:
        """Where the file cannot be used at the moment, the keys that are held go on."""
        try:
            self._keys = key_file.read_keys(self._path)
        except ConfigurationError as error:
            _log.warning("the master key that was read at the start is used: %s", error)


def key_number(sealed: bytes) -> int:
    """The number of the key that a value is sealed under. Raises SealBroken: it is none."""
    if len(sealed) < _HEADER_BYTES or not sealed.startswith(_FORMAT):
        raise SealBroken("the value is not sealed, or in another format")
    return int.from_bytes(sealed[1:_HEADER_BYTES], "big")


def signing_key_context(key_id: str) -> str:
    """What the private half of a signing key is bound to."""
    return f"signing-key/{key_id}"


def secret_context(label: str) -> str:
    """What a lasting secret is bound to."""
    return f"secret/{label}"


def _derive(key: bytes, label: str) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=f"identity/{label}".encode()).derive(key)
