"""The master key: what is secret at rest is sealed under it, and other keys are derived from it.

It lives in a file of its own, outside the database. A sealed value is bound to its context, so that a value moved to
another row does not open; it carries the number of its key, so that the master key can be rotated.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from identity.config import ConfigurationError

KEY_BYTES = 32

_FORMAT = 1
_KEY_NUMBER = 1
_HEADER = bytes([_FORMAT]) + _KEY_NUMBER.to_bytes(2, "big")
_NONCE_BYTES = 12
_FORBIDDEN_MODE = stat.S_IWGRP | stat.S_IRWXO  # a group may read: so it is that clusters mount secrets


class SealBroken(ValueError):
    """A sealed value does not open: another master key, another context, or changed bytes."""


class MasterKey:
    """Seals, opens and derives."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a master key has {KEY_BYTES} bytes")
        self._key = key
        self._aead = AESGCM(self.derive("seal"))

    @classmethod
    def from_file(cls, path: Path) -> MasterKey:
        """Raises ConfigurationError: missing, readable by everyone, or not a key that `generate` wrote."""
        try:
            mode = path.stat().st_mode
            text = path.read_bytes()
        except OSError as error:
            raise ConfigurationError([f"master_key_file: {path} cannot be read: {error.strerror}"]) from None
        if mode & _FORBIDDEN_MODE:
            raise ConfigurationError([f"master_key_file: {path} must not be open to others: chmod 600 {path}"])
        try:
            return cls(base64.b64decode(text.strip(), validate=True))
        except (ValueError, binascii.Error):
            problem = f"master_key_file: {path} holds no master key: {KEY_BYTES} bytes in base64 are expected"
            raise ConfigurationError([problem]) from None

    @classmethod
    def generate(cls, path: Path) -> MasterKey:
        """Write a new key to *path*, for its owner alone. Raises FileExistsError."""
        key = secrets.token_bytes(KEY_BYTES)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(base64.b64encode(key) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return cls(key)

    def derive(self, label: str) -> bytes:
        """Another key of 32 bytes for one purpose (HKDF-SHA256, RFC 5869)."""
        return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=f"identity/{label}".encode()).derive(self._key)

    def seal(self, plaintext: bytes, context: str) -> bytes:
        """Encrypt and authenticate *plaintext* for *context* (AES-256-GCM)."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _HEADER + nonce + self._aead.encrypt(nonce, plaintext, _HEADER + context.encode())

    def open(self, sealed: bytes, context: str) -> bytes:
        """What `seal` was given for this context. Raises SealBroken."""
        header, rest = sealed[: len(_HEADER)], sealed[len(_HEADER) :]
        try:
            if header != _HEADER:
                raise SealBroken("sealed under another key or in another format")
            return self._aead.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], header + context.encode())
        except (InvalidTag, ValueError):
            raise SealBroken("the sealed value does not open with this master key") from None
