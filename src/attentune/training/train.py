"""Data in, adapter folder out: the one training loop, `transformers.Trainer`, read from top to bottom.

While it runs, checkpoints lie in `<output>.training`; `resume` goes on from the last one and ends in the same tensors
as a run that was never killed. The folder goes when the adapter is written.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase, set_seed

from attentune import store
from attentune.card import TaskCard
from attentune.confidence import Calibration, Judgement, Labelled, calibrate, check_scope, judge
from attentune.evaluation.metrics import check_name
from attentune.methods import METHODS
from attentune.tasks import Data, Features, Task
from attentune.tasks.inputs import unlabelled
from attentune.tasks.sources import Source
from attentune.training import trackers
from attentune.training.adapted import adapt, check_finite, finish, longest
from attentune.training.baseline import baseline
from attentune.training.checkpoints import Checkpoints, every_row
from attentune.training.choice import backbone_of, changes_of, choose, drawn, learned_task, phrased
from attentune.training.frozen import Kept, freeze
from attentune.training.ground import Ground, ground_of
from attentune.training.loop import JointStep, arguments, build_trainer, logits_of
from attentune.training.recipe import Recipe, TaskOptions
from attentune.training.sources.mixture import mean_attention, take_sources
from attentune.training.trackers import Watch, Watcher

Report = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What a training run made."""

    folder: Path
    card: TaskCard
    metrics: dict[str, Any]
    """Scores of `validation`, `test` (if there is one) and the bag-of-words `baseline`. Of the same splits `intervals`,
    95% around the main score, and `calibration`, what `confidence.Judgement.trust` lists; `attention`: the mean weight
    of each prompt on validation rows, where prompts are mixed; `run`: rows of each split and class, steps, seconds."""
    notes: tuple[str, ...]
    """What was guessed from the data."""


def train(
    data: Source | Data | None = None,
    method: str | None = None,
    output: str | Path = "adapter",
    backbone: str | None = None,
    recipe: str | Path | Recipe | None = None,
    *,
    library: str | Path | None = None,
    task: str | None = None,
    text: Sequence[str] = (),
    label: str | None = None,
    resume: bool = False,
    report: Report = lambda line: None,
    watch: Watch | None = None,
    **overrides: Any,
) -> Result:
    """Train an adapter for the task of `data` and write its folder.

    `method` is pasta and `backbone` minilm unless the recipe or you say otherwise, and a recipe can name the data;
    without `recipe` the one that ships for the kind of task and the method is used. `library` is a folder of source
    prompts for methods that mix them: all of it, or those that the recipe's `source_names` names. `overrides` are keys
    of a recipe (`epochs=3`). `report` gets a line after each evaluation, `watch` its number
    and score; what `watch` raises ends it.

    Raises:
        AttentuneError: DataError, ConfigError, StoreError or UnsupportedError; each says what was wanted, what was
            found and what exists.
    """
    target = store.check_writable(output)
    store.tell_replaced(target, report)
    rows, chosen = choose(data, method, recipe, changes_of(task, text, label, overrides), library)
    backbone, chosen = backbone_of(chosen, backbone)
    rows = drawn(rows, chosen.task.shots, chosen.training.seed)
    for note in rows.notes:
        report(note)
    ground = ground_of(backbone, rows.kind == "generation", chosen.training)
    return learn(rows, chosen, target, ground, library=library, resume=resume, report=report, watch=watch)


def learn(
    rows: Data,
    chosen: Recipe,
    target: Path,
    ground: Ground,
    *,
    library: str | Path | None = None,
    resume: bool = False,
    report: Report = lambda line: None,
    watch: Watch | None = None,
    step: JointStep | None = None,
) -> Result:
    """Train one task on its ground and write the folder `target`; else as `train`.

    `step` takes the steps of training where several tasks take theirs together.
    """
    backbone, base, tokenizer, origin = ground.name, ground.base, ground.tokenizer, ground.origin
    set_seed(chosen.training.seed)
    sources = take_sources(chosen, library, origin)
    made = learned_task(rows, chosen.task, base)
    learned, vocabulary, note = phrased(made, chosen.task, backbone, base, tokenizer)
    if note:
        report(note)
    check_scope(learned, chosen.task.false_alarms)
    metric = check_name(rows.kind, chosen.task.metric or learned.checkpoint_metric, rows.labels)
    model = adapt(base, tokenizer, learned, chosen, vocabulary, sources)
    limit = longest(cast("Any", model.peft_config["default"]), base.config, learned, chosen.task, tokenizer)
    begin = time.perf_counter()
    features = encode_splits(learned, tokenizer, rows, limit)
    cut = cut_off(features, limit)
    if cut:
        report(cut)
    checkpoints = Checkpoints(target, identity_of(rows, chosen, ground))
    if not resume and checkpoints.mark.fits():
        report(f"{checkpoints.folder.name} holds this run, interrupted; it begins anew, and --resume would go on")
    kept = Kept(checkpoints.folder / "frozen", ground.room)
    frozen = freeze(model, kept) if chosen.training.cache_frozen else None
    trainer = build_trainer(
        model=model,
        task=learned,
        tokenizer=tokenizer,
        train=features["train"],
        validation=(features["validation"], rows.validation),
        args=arguments(checkpoints.folder, chosen.training, metric, target.name),
        training=chosen.training,
        report=report,
        attention=METHODS[chosen.method].attention,
        step=step,
        frozen=frozen,
    )
    trackers.attach(trainer, target)
    if watch is not None:
        trainer.add_callback(Watcher(watch, metric))
    with closing(kept):
        done = checkpoints.train(trainer, resume)
        trained = [p for p in model.parameters() if p.requires_grad]
        check_finite(trained, chosen.training)
        logits = {name: logits_of(trainer, learned, found) for name, found in features.items() if name != "train"}
    if trainer.write is None:
        check_finite(chain(*logits.values()), chosen.training)
    learned, calibration, judged = certified(learned, rows, features, logits, chosen.task)
    metrics = measured(learned, judged)
    card = TaskCard(target.name, chosen.method, learned, rows.columns, origin, limit, chosen.task.pooling, calibration)
    if trainer.is_world_process_zero():
        report(told(calibration, judged))
        last = rows.test or rows.validation
        metrics["baseline"] = baseline(rows.kind, rows.train, last, rows.labels)
        metrics["run"] = {
            **counted(rows),
            "steps": done.global_step,
            "seconds": round(time.perf_counter() - begin, 1),
            "trainable_parameters": sum(p.numel() for p in trained),
        }
        metrics |= mean_attention(
            model, "default", tokenizer, learned, features["validation"], chosen.training.batch_size * 2
        )
        finish(model, origin.id)
        log = (checkpoints.folder / store.LOG).read_text(encoding="utf-8")
        store.write(target, cast("store.Saves", model), card, chosen.to_toml(), metrics, log)
        checkpoints.remove()
    trackers.detach(trainer)
    trainer.accelerator.wait_for_everyone()
    return Result(target, card, metrics, (*rows.notes, *filter(None, (note, cut))))


def identity_of(rows: Data, chosen: Recipe, ground: Ground) -> list[Any]:
    """What a run must have in common with an earlier one to go on with it."""
    return [chosen.to_toml(), ground.origin.fingerprint, every_row(rows)]


def certified(
    task: Task,
    rows: Data,
    features: Mapping[str, Sequence[Features]],
    logits: Mapping[str, Sequence[Any]],
    options: TaskOptions,
) -> tuple[Task, Calibration, dict[str, Judgement]]:
    """The task as its validation rows fit it, its calibration, and the judgement on each split."""
    task = task.fitted(logits["validation"], features["validation"], rows.validation)
    known = {
        name: Labelled(logits[name], features[name], split, logits[f"outside {name}"])
        for name, split in (("validation", rows.validation), ("test", rows.test))
        if split
    }
    calibration = calibrate(task, known["validation"], options.out_of_scope, options.false_alarms)
    return task, calibration, {name: judge(task, calibration, given) for name, given in known.items()}


def measured(task: Task, judged: Mapping[str, Judgement]) -> dict[str, Any]:
    """Scores by split. Also by split `intervals`, 95% around the main score; `calibration`, what they tell of trust;
    `reliability`, bins of its diagram.

    The bins are those of the learned probabilities (`before`) and of the calibrated ones (`after`).
    """
    bins = {
        name: {"before": one.before.to_card(), "after": one.after.to_card()}
        for name, one in judged.items()
        if one.before is not None and one.after is not None
    }
    intervals = {
        name: {task.main_metric: {"low": one.main.low, "high": one.main.high}}
        for name, one in judged.items()
        if one.main is not None
    }
    return {
        **{name: one.scores for name, one in judged.items()},
        **({"intervals": intervals} if intervals else {}),
        "calibration": {name: one.trust for name, one in judged.items()},
        **({"reliability": bins} if bins else {}),
    }


def counted(rows: Data) -> dict[str, Any]:
    """How many rows there were: of each split and, for training, of each class."""
    splits = {"training": rows.train, "validation": rows.validation, "test": rows.test}
    counts: dict[str, Any] = {f"{name}_rows": len(found) for name, found in splits.items()}
    if rows.kind in ("classification", "multilabel"):
        labels = [row["label"] for row in rows.train]
        names = labels if rows.kind == "classification" else [name for several in labels for name in several]
        found = Counter(names)
        counts["rows_by_class"] = {name: found[name] for name in rows.labels}
    return counts


def told(calibration: Calibration, judged: Mapping[str, Judgement]) -> str:
    """One line on calibration."""
    name, last = list(judged.items())[-1]
    if last.after is None or last.before is None:
        return "calibration: this kind of task states no probabilities"
    return (
        f"calibration: temperature {calibration.temperature:.3f}, "
        f"expected calibration error on {name} {last.before.error:.4f} -> {last.after.error:.4f}"
    )


def cut_off(features: Mapping[str, Sequence[Features]], limit: int) -> str | None:
    """One line on rows that are longer than what is read of them."""
    found = [one.truncated for split in features.values() for one in split]
    if not any(found):
        return None
    return f"max_length: of {sum(found):,} of {len(found):,} rows only the first {limit:,} tokens are read"


def encode_splits(task: Task, tokenizer: PreTrainedTokenizerBase, rows: Data, limit: int) -> dict[str, list[Features]]:
    """Every split -> features; those of out-of-scope rows, without a target, as `outside validation` and `... test`."""
    splits = {"train": rows.train, "validation": rows.validation, "test": rows.test}
    outside = {
        f"outside {name}": [unlabelled(row) for row in rows.outside.get(name, [])] for name in ("validation", "test")
    }
    return {name: task.encode(tokenizer, split, limit) for name, split in {**splits, **outside}.items()}
