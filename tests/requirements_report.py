"""Which tests prove which requirement: collected while the tests run, judged and printed at their end."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_FILE = Path(__file__).with_name("requirements.toml")


def read_requirements() -> tuple[dict[str, str], set[str]]:
    """-> id: sentence, and the ids that are due."""
    table = tomllib.loads(_FILE.read_text())
    released = set(table.pop("released"))
    return {name: row["text"] for name, row in table.items()}, {
        name for name, row in table.items() if row["due"] in released
    }


@dataclass(eq=False)
class RequirementsReport:
    """A pytest plugin. A skipped test counts as missing; a requirement holds when it has tests and all of them pass."""

    sentences: dict[str, str] = field(default_factory=lambda: read_requirements()[0])
    due: set[str] = field(default_factory=lambda: read_requirements()[1])
    ids_of: dict[str, list[str]] = field(default_factory=dict)
    outcomes: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            self.ids_of[item.nodeid] = [mark.args[0] for mark in item.iter_markers("requirement")]
            if unknown := set(self.ids_of[item.nodeid]) - set(self.sentences):
                raise pytest.UsageError(f"{item.nodeid} names unknown requirements: {sorted(unknown)}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        for name in self.ids_of.get(report.nodeid, ()):
            known = self.outcomes[name].get(report.nodeid)
            self.outcomes[name][report.nodeid] = "failed" if "failed" in (known, report.outcome) else report.outcome

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("requirements")
        for name, sentence in self.sentences.items():
            tests = self.outcomes.get(name, {})
            if not tests and name not in self.due:
                continue
            terminalreporter.write_line(f"{name:<4} {self._verdict(name):<8} {len(tests):>3} tests  {sentence}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.OK and any(self._verdict(name) != "proved" for name in self.due):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _verdict(self, name: str) -> str:
        outcomes = set(self.outcomes.get(name, {}).values())
        if "failed" in outcomes:
            return "FAILED"
        return "proved" if "passed" in outcomes else "MISSING"
