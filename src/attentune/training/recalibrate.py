"""The calibration of a trained adapter, fitted anew: for texts unlike those of training, or once sources were edited.

Tensors, recipe and log of training stay as they are.
"""

from dataclasses import replace
from pathlib import Path

from attentune import store
from attentune.errors import DataError, UnsupportedError
from attentune.predict import Job, load
from attentune.store import Stored
from attentune.tasks import Data
from attentune.tasks.data import load_rows, parted
from attentune.tasks.generate import Generation
from attentune.tasks.rows import check_known
from attentune.tasks.sources import Source
from attentune.training.recipe import TaskOptions, parse_recipe
from attentune.training.train import certified, measured

RESULTS = {"validation", "test", "baseline", "intervals", "calibration", "reliability", "seeds", "attention"}
"""Keys of metrics.json that depend on the rows or on the calibration."""


def recalibrate(
    folder: str | Path,
    data: Source,
    output: str | Path,
    split: str | None = None,
    backbone: str | None = None,
    batch_size: int = 32,
) -> Stored:
    """Write an adapter with temperature, prediction sets and thresholds fitted anew; `output` may be its own folder.

    They are fitted on labelled rows of `split`, else of the only split there is, else of validation; the out-of-scope
    class and the share of false alarms are those of the adapter's recipe. The metrics become those of the rows.

    Raises:
        UnsupportedError: the task states no probabilities.
        DataError: there are no such rows, they do not fit the task, or none of the out-of-scope class is among them.
        StoreError: there is no adapter, its backbone is another one, or `output` is no place for one.
    """
    target = store.check_writable(output)
    stored = store.read(folder)
    # An adopted adapter was not trained: its recipe is a comment.
    trained = any(line.strip() and not line.startswith("#") for line in stored.recipe.splitlines())
    card, options = stored.card, parse_recipe(stored.recipe).task if trained else TaskOptions()
    if isinstance(card.task, Generation):
        raise UnsupportedError(f"{card.task.kind} states no probabilities, so that there is nothing to calibrate")
    kind, strange = card.task.kind, options.out_of_scope
    given = load_rows(data, card.columns, kind, split, usual=("validation",))
    check_known(given, kind, card.task.labels, split or "the data's", strange)
    rows, outside = parted(given, strange)
    if strange is not None and not outside and options.false_alarms is None:
        raise DataError(f"no row is of the out-of-scope class {strange!r}, so none can choose the threshold")
    adapter = load(stored.folder, backbone)
    features = card.task.encode(adapter.predictor.tokenizer, [*rows, *outside], card.max_length)
    logits = adapter.predictor.logits([Job(f, adapter.name) for f in features], batch_size)
    found = {"validation": logits[: len(rows)], "outside validation": logits[len(rows) :]}
    judged_rows = Data(kind, card.columns, card.task.labels, [], rows)
    task, calibration, judged = certified(card.task, judged_rows, {"validation": features[: len(rows)]}, found, options)
    fresh = replace(card, name=target.name, task=task, calibration=calibration)
    metrics = {name: value for name, value in stored.metrics.items() if name not in RESULTS}
    metrics |= {"run": {**metrics.get("run", {}), "calibration_rows": len(rows)}, **measured(task, judged)}
    more = {store.CARD: fresh.to_json(), store.README: store.readme(stored.folder, fresh, metrics)}
    return store.read(store.copy(stored.folder, output, metrics, more))
