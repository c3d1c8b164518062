"""Draw docs/pictures/pareto.svg and docs/pictures/reliability.svg from what was measured.

make demo
python scripts/picture_scores.py demo/intent

The first is the picture of one task in benchmarks/results/comparison/report.html, the second that of an adapter folder.
"""

import argparse
import json
import re
from pathlib import Path

from attentune.evaluation.calibration import Reliability
from attentune.evaluation.pictures import reliability_diagram, svg

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
REPORT = ROOT / "benchmarks" / "results" / "comparison" / "report.html"
TASK, PICTURE = "trec6", "Score and bytes"


def pareto() -> str:
    """Score against saved bytes of every contender, with the front of those that nobody beats."""
    page = REPORT.read_text(encoding="utf-8")
    section = page[page.index(f"<h2>{TASK}:") :]
    found = re.search(r"<svg.*?</svg>", section[section.index(f"<h3>{PICTURE}</h3>") :], re.DOTALL)
    if found is None:
        raise SystemExit(f"{REPORT} has no picture {PICTURE!r} of {TASK}")
    return found[0]


def reliability(adapter: Path) -> str:
    """Stated probability against the share that came true on the test rows, before and after the temperature."""
    bins = json.loads((adapter / "metrics.json").read_text(encoding="utf-8"))["reliability"]["test"]
    shown = {"as learned": "before", "calibrated": "after"}
    return svg(reliability_diagram({name: Reliability.from_card(bins[key]) for name, key in shown.items()}))


def on_white(picture: str) -> str:
    """With a background of its own: dark pages would swallow black letters."""
    head, rest = picture.split(">", 1)
    return f'{head}><rect width="100%" height="100%" fill="#ffffff"/>{rest}\n'


def main() -> None:
    """Read the command line, write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path)
    given = parser.parse_args()
    (PICTURES / "pareto.svg").write_text(on_white(pareto()), encoding="utf-8")
    (PICTURES / "reliability.svg").write_text(on_white(reliability(given.adapter)), encoding="utf-8")


if __name__ == "__main__":
    main()
