"""One paragraph at the end of a test run: how many golden cases held, and what was left out and why."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

LEFT_OUT = "golden: left out"
"""The property of a test that carries (what, why)."""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Works with several workers: properties travel with the reports."""
    reports = [r for key in ("passed", "skipped", "failed") for r in terminalreporter.stats.get(key, [])]
    golden = [r for r in reports if "test_golden.py::test_case[" in r.nodeid and (r.when == "call" or r.failed)]
    if not golden:
        return
    counts = {kind: sum(r.outcome == kind for r in golden) for kind in ("passed", "failed", "skipped")}
    terminalreporter.section("golden cases")
    terminalreporter.line(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} excluded by name")
    reasons: dict[str, list[str]] = defaultdict(list)
    for report in golden:
        for name, value in report.user_properties:
            if name == LEFT_OUT:
                what, why = value
                reasons[why].append(what)
    for why, what in reasons.items():
        terminalreporter.line(f"left out {', '.join(sorted(what))}: {why}")
