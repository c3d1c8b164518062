"""The adapter folder: the contract between training and serving. Written whole or not at all, read with every check.

    adapter_config.json         pure peft
    adapter_model.safetensors   pure peft: the method's tensors and the head
    task.json                   the task card: all that prediction needs besides
    recipe.toml                 how it was made
    metrics.json                how good it is
    log.jsonl                   how training went, a line an evaluation
    README.md                   the model card

There is never a pickle in it. It is written beside its place and renamed, so that a kill leaves the old folder or the
new one, whole; if it strikes between the two renames the old one is found again at the next look.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from attentune.confidence import Calibration
from attentune.errors import StoreError
from attentune.tasks import Task, task_from_card
from attentune.tasks.columns import Columns

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "task.json"
RECIPE, METRICS, LOG, README = "recipe.toml", "metrics.json", "log.jsonl", "README.md"
FORMAT = 1


class Saves(Protocol):
    """What writes the peft part: a PeftModel."""

    def save_pretrained(self, save_directory: str, **options: Any) -> None:
        """Write adapter_config.json and adapter_model.safetensors."""
        ...


@dataclass(frozen=True)
class Backbone:
    """Which backbone an adapter was trained on."""

    id: str
    fingerprint: str
    revision: str | None = None


@dataclass(frozen=True)
class TaskCard:
    """Everything that prediction needs besides the tensors."""

    name: str
    method: str
    task: Task
    columns: Columns
    backbone: Backbone
    max_length: int
    pooling: str
    calibration: Calibration = field(default_factory=Calibration)

    def to_json(self) -> str:
        """As task.json holds it."""
        card = {
            "format": FORMAT,
            "attentune": metadata.version("attentune"),
            "name": self.name,
            "method": self.method,
            "task": self.task.to_card(),
            "columns": self.columns.to_card(),
            "backbone": asdict(self.backbone),
            "max_length": self.max_length,
            "pooling": self.pooling,
            "calibration": self.calibration.to_card(),
        }
        return json.dumps(card, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> "TaskCard":
        """A task.json -> card; `where` stands in errors."""
        try:
            card = json.loads(text)
            if card["format"] != FORMAT:
                raise StoreError(f"{where} has format {card['format']}, this attentune reads format {FORMAT}")
            return cls(
                name=card["name"],
                method=card["method"],
                task=task_from_card(card["task"]),
                columns=Columns.from_card(card["columns"]),
                backbone=Backbone(**card["backbone"]),
                max_length=int(card["max_length"]),
                pooling=card["pooling"],
                calibration=Calibration.from_card(card.get("calibration", {})),
            )
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise StoreError(f"{where} is no task card: {error}") from error
        except KeyError as error:
            raise StoreError(f"{where} has no {error.args[0]!r}") from error


@dataclass(frozen=True)
class Stored:
    """An adapter folder, read and checked; the tensors stay in the file."""

    folder: Path
    card: TaskCard
    config: dict[str, Any]
    metrics: dict[str, Any]
    recipe: str


def write(
    folder: str | Path, model: Saves, card: TaskCard, recipe: str, metrics: Mapping[str, Any], log: str = ""
) -> Path:
    """Write an adapter folder; an older one at the same place is replaced.

    Raises:
        StoreError: something that is no adapter is at the place.
    """
    target = check_writable(folder)
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    model.save_pretrained(str(fresh), safe_serialization=True, save_embedding_layers=False)
    (fresh / CARD).write_text(card.to_json(), encoding="utf-8")
    (fresh / RECIPE).write_text(recipe, encoding="utf-8")
    (fresh / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    if log:
        (fresh / LOG).write_text(log, encoding="utf-8")
    # safetensors writes for its owner only; the adapter is for whom the rest of the folder is for.
    (fresh / WEIGHTS).chmod((fresh / CARD).stat().st_mode)
    (fresh / README).write_text(model_card(card, metrics, (fresh / WEIGHTS).stat().st_size), encoding="utf-8")
    _replace(target, fresh)
    return target


def adopt(made: Path, folder: str | Path, metrics: Mapping[str, Any]) -> Path:
    """Put a copy of the adapter folder `made` at `folder`, with other metrics; an older one there is replaced.

    Raises:
        StoreError: something that is no adapter is at the place.
    """
    target = check_writable(folder)
    card = read(made).card
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(made, fresh)
    (fresh / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    (fresh / README).write_text(model_card(card, metrics, (fresh / WEIGHTS).stat().st_size), encoding="utf-8")
    _replace(target, fresh)
    return target


def check_writable(folder: str | Path) -> Path:
    """The place of a new adapter folder: free, empty, or an older adapter; else a StoreError."""
    target = Path(folder).expanduser().absolute()
    _recover(target)
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / CONFIG).is_file()):
        raise StoreError(f"{folder} exists and is no adapter folder; name another one")
    return target


def read(folder: str | Path) -> Stored:
    """Read and check an adapter folder."""
    place = Path(folder).expanduser().absolute()
    _recover(place)
    if not place.is_dir():
        raise StoreError(f"no adapter folder at {folder}")
    missing = [name for name in (CONFIG, WEIGHTS, CARD) if not (place / name).is_file()]
    if missing:
        raise StoreError(f"{folder} is no adapter folder of attentune: it has no {', '.join(missing)}")
    card = TaskCard.from_json((place / CARD).read_text(encoding="utf-8"), f"{folder}/{CARD}")
    config = _read_json(place / CONFIG)
    recipe = place / RECIPE
    return Stored(
        folder=place,
        card=card,
        config=config,
        metrics=_read_json(place / METRICS) if (place / METRICS).is_file() else {},
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path} holds no JSON object")
    return found


def _replace(target: Path, fresh: Path) -> None:
    """Put `fresh` where `target` is. Between the renames only `.old` exists, which `_recover` moves back."""
    old = _old(target)
    if target.exists():
        os.rename(target, old)
    os.rename(fresh, target)
    shutil.rmtree(old, ignore_errors=True)


def _recover(target: Path) -> None:
    old = _old(target)
    if old.is_dir() and not target.exists():
        os.rename(old, target)
    elif old.is_dir():
        shutil.rmtree(old, ignore_errors=True)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def model_card(card: TaskCard, metrics: Mapping[str, Any], size: int) -> str:
    """The README.md of an adapter folder."""
    labels = ", ".join(card.task.labels[:20]) + (" ..." if len(card.task.labels) > 20 else "")
    rows = "\n".join(_score_row(name, metrics[name]) for name in ("validation", "test", "baseline") if name in metrics)
    if "seeds" in metrics:
        rows += "\n" + _seeds_row(metrics["seeds"])
    learned = f"Classes: {labels}." if labels else OPEN_ANSWERS[card.task.kind]
    return CARD_TEXT.format(
        backbone=card.backbone.id,
        name=card.name,
        method=card.method,
        kind=card.task.kind,
        columns=card.columns.shown(),
        example=EXAMPLES.get(card.task.kind, '[("a text", "another text")]' if card.task.pair else '["a text"]'),
        learned=learned,
        size=f"{size / 1024:.0f} KiB",
        scores=rows or "(none were taken)",
        max_length=card.max_length,
        trust=UNSURE if card.task.head == "language" else _trust(card.calibration, metrics.get("calibration", {})),
    )


def _score_row(name: str, scores: Mapping[str, float]) -> str:
    return f"- {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in scores.items())


def _seeds_row(seeds: Mapping[str, Any]) -> str:
    split = "test" if "test" in seeds["mean"] else "validation"
    parts = [
        f"{name} {found['mean']:.4f}" + (f" ({found['low']:.4f} to {found['high']:.4f})" if "low" in found else "")
        for name, found in seeds["mean"][split].items()
    ]
    return f"- {split}, mean over {len(seeds['runs'])} seeds (95% interval): " + ", ".join(parts)


def _trust(calibration: Calibration, measured: Mapping[str, Mapping[str, float]]) -> str:
    """What was fitted on validation, and how it holds on the last split."""
    if not (calibration.rows and measured):
        return "It was not calibrated."
    split, found = list(measured.items())[-1]
    if not found:
        return "Its answers state no probabilities."
    where = "the test rows" if split == "test" else "the same rows, for want of test rows (it looks better than it is)"
    lines = [f"Fitted on {calibration.rows} validation rows, saved in `task.json`, measured on {where}:", ""]
    if "ece" in found:
        lines.append(
            f"- temperature {calibration.temperature:.3f}: expected calibration error {found['ece_before']:.4f} before "
            f"and {found['ece']:.4f} after; negative log-likelihood {found['nll_before']:.4f}, {found['nll']:.4f}"
        )
    for promised in calibration.quantiles:
        name = f"{100 * promised:g}"
        kept, size = found[f"set_coverage_{name}"], found[f"set_size_{name}"]
        lines.append(f"- sets that promise to hold the truth for {name} %: {100 * kept:.1f} %, mean size {size:.3g}")
    if "scope_auroc" in found:
        lines.append(
            f"- out-of-scope texts: AUROC {found['scope_auroc']:.4f}; the threshold finds {found['scope_recall']:.1%} "
            f"of them and flags {found['scope_false_alarms']:.1%} of the others"
        )
    return "\n".join(lines)


OPEN_ANSWERS = {
    "regression": "The answer is a number.",
    "question_answering": "The answer is a passage of the context.",
    "multiple_choice": "The answer is one of the choices that stand in the row.",
    "generation": "The answer is a text that the backbone's own language head writes.",
}
EXAMPLES = {
    "question_answering": '[("a question", "a context")]',
    "multiple_choice": '[("a question", ["a choice", "another choice"])]',
}
UNSURE = "There are no probabilities: what is written may be fluent and wrong."

CARD_TEXT = """\
---
library_name: peft
base_model: {backbone}
tags: [attentune, {method}]
---

# {name}

An adapter ({method}, {size}) that answers one {kind} task on the frozen backbone `{backbone}`: {columns}. {learned}

```python
import attentune  # also before peft loads this folder: it makes the method known

adapter = attentune.load("path/to/this/folder")
adapter.predict({example})
```

## Scores

{scores}

`baseline` knows words alone, without a transformer, on the rows of the last split above. All settings are in
`recipe.toml`.

## How far to trust an answer

{trust}

## Limits

Texts are cut after {max_length} tokens (answers then say `truncated`). The scores hold for texts like those of the
training data; on others they can be much lower, without any sign of it.
"""
