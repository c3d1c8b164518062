"""The committed pages of the benchmarks are what their scripts make of the committed figures."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PARTS = "overheads memory limits allocator compiled tiny_attention serving together frozen trust".split()
ASK = """
import importlib, json, sys
from pathlib import Path
import bench
pages = {"bench": bench.page(bench.measured())}
for name in sys.argv[1:]:
    figures = json.loads((Path("results") / f"{name}.json").read_text())
    pages[name] = importlib.import_module(name).markdown(figures)
json.dump(pages, sys.stdout)
"""


def test_pages_say_what_was_measured() -> None:
    # One process for all: most of its time is the import of torch and peft.
    done = subprocess.run(
        [sys.executable, "-c", ASK, *PARTS], cwd=BENCHMARKS, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    for name, page in json.loads(done.stdout).items():
        assert page == (BENCHMARKS / "results" / f"{name}.md").read_text(encoding="utf-8"), name
