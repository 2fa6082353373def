"""The master key's file: one key a line, each with its number; the newest has the highest.

```
1 MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=
2 ...
```

A line without a number is key 1, as a file of one key is written. The file is replaced as a whole, so that whoever
reads it finds the keys of before or those of after.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from identity import failpoints
from identity.config import ConfigurationError

KEY_BYTES = 32
HIGHEST_NUMBER = 2**16 - 1

_FORBIDDEN_MODE = stat.S_IWGRP | stat.S_IRWXO  # a group may read: so it is that clusters mount secrets

Keys = Mapping[int, bytes]
"""Master keys by their numbers."""


def read_keys(path: Path) -> Keys:
    """Every key of the file. Raises ConfigurationError: missing, open to others, or not as it is written here."""
    try:
        mode = path.stat().st_mode
        text = path.read_bytes()
    except OSError as error:
        raise ConfigurationError([f"master_key_file: {path} cannot be read: {error.strerror}"]) from None
    if mode & _FORBIDDEN_MODE:
        raise ConfigurationError([f"master_key_file: {path} must not be open to others: chmod 600 {path}"])
    lines = text.strip().splitlines()
    if not lines:
        raise ConfigurationError([f"master_key_file: {path} holds no master key: it is empty"])
    return _distinct(path, [_parse(path, number, line) for number, line in enumerate(lines, 1)])


def create(path: Path, key: bytes) -> None:
    """Write a file of one key, for its owner alone. Raises FileExistsError."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        _write(file.fileno(), base64.b64encode(key) + b"\n")


def replace_keys(path: Path, keys: Keys) -> None:
    """Put *keys* in the place of those in the file, durably and at once; owner, group and mode stay.

    Raises ConfigurationError.
    """
    text = b"".join(b"%d %s\n" % (number, base64.b64encode(keys[number])) for number in sorted(keys))
    target = path.resolve()  # a link stays one
    new = target.with_name(target.name + ".new")
    try:
        old = target.stat()
        new.unlink(missing_ok=True)  # of a command that was killed
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), old.st_uid, old.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
            _write(file.fileno(), text)
        failpoints.hit("key_file.before_replace")
        new.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise ConfigurationError([f"master_key_file: {path} cannot be replaced: {error.strerror}"]) from None
    failpoints.hit("key_file.after_replace")


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other commands from changing the file meanwhile. Raises ConfigurationError: one does, or it is missing."""
    busy = ConfigurationError([f"master_key_file: {path} is being changed by another command: repeat this one"])
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ConfigurationError([f"master_key_file: {path} cannot be read: {error.strerror}"]) from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        if not os.path.samestat(os.fstat(file), path.stat()):  # it was replaced before it was ours
            raise busy
        yield
    finally:
        os.close(file)


def _parse(path: Path, line_number: int, line: bytes) -> tuple[int, bytes]:
    """Number and key of a line; what a refused one holds is not shown."""
    *prefix, encoded = line.split(b" ") if b" " in line else (b"1", line)
    number = prefix[0] if len(prefix) == 1 else b""
    problem = (
        f"master_key_file: line {line_number} of {path} holds no master key: a number from 1 to {HIGHEST_NUMBER} and, "
        f"after one space, {KEY_BYTES} bytes in base64 are expected"
    )
    if not number.isdigit() or number.startswith(b"0") or len(number) > 5 or int(number) > HIGHEST_NUMBER:
        raise ConfigurationError([problem])
    try:
        key = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        raise ConfigurationError([problem]) from None
    if len(key) != KEY_BYTES:
        raise ConfigurationError([problem])
    return int(number), key


def _distinct(path: Path, keys: list[tuple[int, bytes]]) -> Keys:
    numbers = [number for number, _ in keys]
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        problem = f"number {twice[0]} more than once: a line without a number is key 1"
        raise ConfigurationError([f"master_key_file: {path} holds {problem}"])
    if len({key for _, key in keys}) < len(keys):
        raise ConfigurationError([f"master_key_file: {path} holds one key under two numbers: each needs its own"])
    return dict(keys)


def _write(file: int, text: bytes) -> None:
    os.write(file, text)
    os.fsync(file)


def _sync_folder(folder: Path) -> None:
    """Have the new name of a file survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
