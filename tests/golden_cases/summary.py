"""One paragraph at the end of a test run: how many golden cases held, and what was left out and why."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

LEFT_OUT = "golden: left out"
"""The property of a test that carries [what, why]."""
NEAR = "golden: near"
"""The property of a test that carries the largest distances of its outputs and of its gradients."""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Works with several workers: properties travel with the reports."""
    reports = [r for key in ("passed", "skipped", "failed") for r in terminalreporter.stats.get(key, [])]
    golden = [r for r in reports if "test_golden.py::test_case[" in r.nodeid and (r.when == "call" or r.failed)]
    if not golden:
        return
    counts = {kind: sum(r.outcome == kind for r in golden) for kind in ("passed", "failed", "skipped")}
    terminalreporter.section("golden cases")
    terminalreporter.line(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} excluded by name")
    properties = [entry for report in golden for entry in report.user_properties]
    near = [value for name, value in properties if name == NEAR]
    if near:
        outputs, gradients = (max(column) for column in zip(*near, strict=True))
        terminalreporter.line(f"largest distance: outputs {outputs:.1e}, gradients {gradients:.1e}")
    reasons: dict[str, list[str]] = defaultdict(list)
    for what, why in (value for name, value in properties if name == LEFT_OUT):
        reasons[why].append(what)
    for why, what in reasons.items():
        terminalreporter.line(f"left out {', '.join(sorted(what))}: {why}")
