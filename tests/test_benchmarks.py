"""The committed pages of the benchmarks are what their scripts make of the committed figures."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PAGES = {
    "bench": "page(module.measured())",
    "serving": "markdown(figures)",
    "memory": "markdown(figures)",
    "limits": "markdown(figures)",
}
ASK = """
import importlib, json, sys
from pathlib import Path
module = importlib.import_module({name!r})
kept = Path("results") / "{name}.json"
figures = json.loads(kept.read_text()) if kept.is_file() else None
sys.stdout.write(module.{made})
"""


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_was_measured(name: str) -> None:
    asked = ASK.format(name=name, made=PAGES[name])
    done = subprocess.run(
        [sys.executable, "-c", asked], cwd=BENCHMARKS, capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (BENCHMARKS / "results" / f"{name}.md").read_text(encoding="utf-8")
