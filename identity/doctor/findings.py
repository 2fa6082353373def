"""What is looked at, what is found, and how it is told."""

from __future__ import annotations

import enum
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sqlalchemy import make_url

from identity_client.clock import Clock

from ..config import ConfigurationError, Settings
from ..storage.database import is_postgres
from ..storage.sealing import MasterKey


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


def good(check: str, found: str) -> Finding:
    """Nothing is to be done."""
    return Finding(check, Severity.OK, found)


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
