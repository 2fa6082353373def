"""Older trees of this repository, out of its history."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

from identity.storage.schema import REVISION
from tests.replicas import ROOT

PRESENT = "the present tree"

_SEARCHED = 400


def chosen_revisions() -> list[str]:
    """Those that IDENTITY_TEST_UPGRADE_FROM names, separated by commas; else those to begin with.

    They are the newest one of another schema that `identity migrate` can make, and the one before this. A tree without
    a history, such as an unpacked archive, has nothing but itself.
    """
    if named := os.environ.get("IDENTITY_TEST_UPGRADE_FROM", ""):
        return named.split(",")
    history = _git("rev-list", f"--max-count={_SEARCHED}", "HEAD").split()[1:]
    if not history:
        return [PRESENT]
    able = set(_holding('"migrate"', "identity/cli.py", history).split())
    same = set(_holding(f'REVISION = "{REVISION}"', "identity/storage/schema.py", history).split())
    older = [revision for revision in history if revision in able - same]
    nearest = [revision for revision in history[:1] if revision in able]
    return list(dict.fromkeys(older[:1] + nearest)) or [PRESENT]


def unpack(revision: str, folder: Path) -> Path:
    """-> the tree of *revision*, in *folder* where it is an older one."""
    if revision == PRESENT:
        return ROOT
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def _holding(text: str, path: str, revisions: list[str]) -> str:
    lines = _git("grep", "-l", "-F", text, *revisions, "--", path).split()
    return "\n".join(line.partition(":")[0] for line in lines)


def _git(*arguments: str) -> str:
    """The output; empty where there is no history, or no git."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout
    except FileNotFoundError:
        return ""
