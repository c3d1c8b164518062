"""Draw docs/reference/matrix.md from what the laws found.

pytest tests/laws --matrix docs/reference/matrix.json    # minutes; the only source of the page
python scripts/matrix.py
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
FOUND, PAGE = REFERENCE / "matrix.json", REFERENCE / "matrix.md"

FEATURES = {
    "start": "added to the model, its default start changes nothing (1)",
    "disabled": "switched off, the base answers bit for bit (1)",
    "unloaded": "taken off, nothing of it is left (1, 9)",
    "copied": "a deep copy after a forward is independent (9)",
    "saved": "what is saved is what is loaded, bit for bit (2)",
    "gradients": "all of its tensors get gradients, and nothing else does (3)",
    "checkpointed": "gradient checkpointing, re-entrant or not, gives equal gradients (4)",
    "resumed": "a training that was cut off and resumed equals one that never was (11)",
    "mixed rows": "rows of different adapters in one batch equal each row alone (5)",
    "padded": "a padded batch equals its rows one by one (6)",
    "padded left": "padding on the left is exact (6)",
    "sdpa": "eager attention equals sdpa (8)",
    "bfloat16": "a bfloat16 base under float32 adapters is as near as the bare one (8)",
    "compiled": "`torch.compile(fullgraph=True)` changes nothing (8)",
    "merged": "merged equals unmerged, and unmerging restores the base (10)",
    "cached": "generation with a cache equals generation without (7)",
    "beams": "so does beam search (7)",
    "mixed writing": "rows of different adapters write what each writes alone (5, 7)",
}
"""Feature -> what the laws ask, with the number of the law in CONTRIBUTING."""

HEAD = """\
# Methods, architectures, features

What every method does on every architecture, as the tests in `tests/laws` found it on tiny random models: this page is
drawn from their results ([matrix.json](matrix.json)) by `scripts/matrix.py`, never by hand, and a test fails when a
method, an architecture or a law is not in it.

- **yes**: every test of that cell holds.
- **no** with a number: it is refused, with that sentence. **yes** with a number: it holds in one way of asking and is
  refused in another.
- **–** with a number: nothing is asked here, for that reason.
- empty: no test asks it of this cell; encoders do not write.

`loreft` (Wu et al. 2024) is no method of attentune: `tests/laws/loreft.py` writes it as a sixth one, to show that
registering is enough.
"""

Row = Mapping[str, Any]


class Notes:
    """Sentences, numbered in the order in which they are first met."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, found: Sequence[str]) -> str:
        """The cell of one feature: what was found, in a word, and the numbers of what was said."""
        if "fails" in found:
            return "**fails**"
        said = sorted(
            self.numbers.setdefault(one.partition(": ")[2], len(self.numbers) + 1) for one in found if one != "holds"
        )
        word = "yes" if "holds" in found else "–" if all(one.startswith("apart") for one in found) else "no"
        return f"{word} {' '.join(f'[^{n}]' for n in said)}".strip() if found else ""


def render(rows: Sequence[Row]) -> str:
    """Rows of `tests/laws/matrix.py` -> the page."""
    forms, kinds = list(dict.fromkeys(row["form"] for row in rows)), list(dict.fromkeys(row["kind"] for row in rows))
    found = {(row["form"], row["kind"]): row["features"] for row in rows}
    notes = Notes()
    parts = [HEAD, "## Laws\n", _table(["feature", "what is asked (law)"], FEATURES.items())]
    parts += ["## What can be added where\n", "Each method in each form that has laws of its own.\n"]
    added = [[kind, *(notes.mark(found[form, kind].get("start", ())) for form in forms)] for kind in kinds]
    parts.append(_table(["", *(_shown(form) for form in forms)], added))
    for form in forms:
        asked = [name for name in FEATURES if any(name in found[form, kind] for kind in kinds)]
        cells = [[kind, *(notes.mark(found[form, kind].get(name, ())) for name in asked)] for kind in kinds]
        parts += [f"## {_shown(form)}\n", _table(["", *asked], cells)]
    parts += [f"[^{n}]: {sentence}\n" for sentence, n in notes.numbers.items()]
    return "\n".join(parts)


def _shown(form: str) -> str:
    """`tiny_attention-width=2-heads=2` -> tiny_attention (width=2, heads=2)"""
    method, *options = form.split("-")
    return f"{method} ({', '.join(options)})" if options else method


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Read what was found, write the page."""
    PAGE.write_text(render(json.loads(FOUND.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
