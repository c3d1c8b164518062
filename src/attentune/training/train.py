"""Data in, adapter folder out: the one training loop, `transformers.Trainer`, read from top to bottom.

While it runs, checkpoints lie in `<output>.training`; `resume` goes on from the last one and ends in the same tensors
as a run that was never killed. The folder goes when the adapter is written.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from attentune import store
from attentune.anatomy import max_length
from attentune.backbones import MINILM, fingerprint, hub_id, load_backbone, load_tokenizer, revision
from attentune.card import Backbone, TaskCard
from attentune.confidence import Calibration, Judgement, Labelled, calibrate, check_scope, judge
from attentune.errors import ConfigError, DataError, UnsupportedError
from attentune.evaluation.metrics import check_name
from attentune.heads import HeadConfig
from attentune.method import MethodConfig
from attentune.methods import METHODS
from attentune.model import TaskModel
from attentune.predict import unlabelled
from attentune.tasks import Data, Features, Task, load_data, task_of
from attentune.tasks.classify import Classification
from attentune.tasks.draw import few
from attentune.tasks.generate import Generation
from attentune.tasks.sources import Source
from attentune.tasks.verbalise import Cloze, cloze_of
from attentune.training import trackers
from attentune.training.baseline import baseline
from attentune.training.checkpoints import Checkpoints
from attentune.training.loop import arguments, build_trainer, logits_of
from attentune.training.recipe import Recipe, TaskOptions, method_options, read_recipe, recipe_of, shipped_recipe
from attentune.training.sources.mixture import mean_attention, name_sources, put_sources, take_sources
from attentune.training.trackers import Watch, Watcher
from attentune.vocabulary import VocabularyHead, vocabulary_head

Report = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What a training run made."""

    folder: Path
    card: TaskCard
    metrics: dict[str, Any]
    """Scores of `validation`, `test` (if there is one) and the bag-of-words `baseline`; `calibration`: of the same
    splits what `confidence.Judgement.trust` lists; `attention`: the mean weight of each prompt on validation rows,
    where prompts are mixed; `run`: rows, steps, seconds."""
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
    rows, chosen = choose(data, method, recipe, changes_of(task, text, label, overrides), library)
    backbone, chosen = backbone_of(chosen, backbone)
    if chosen.task.shots is not None:
        rows = few(rows, chosen.task.shots, chosen.training.seed)
    for note in rows.notes:
        report(note)
    seed = chosen.training.seed
    set_seed(seed)
    base = load_backbone(backbone, writes=rows.kind == "generation")
    tokenizer = load_tokenizer(backbone, base)
    origin = Backbone(hub_id(backbone), fingerprint(base), revision(base))
    sources = take_sources(chosen, library, origin)
    made = learned_task(rows, chosen.task, base)
    learned, vocabulary, note = phrased(made, chosen.task, backbone, base, tokenizer)
    if note:
        report(note)
    check_scope(learned, chosen.task.false_alarms)
    metric = check_name(rows.kind, chosen.task.metric or learned.checkpoint_metric, rows.labels)
    model = adapt(base, tokenizer, learned, chosen, vocabulary, sources)
    limit = longest(model, learned, chosen, tokenizer)
    begin = time.perf_counter()
    features = encode_splits(learned, tokenizer, rows, limit)
    checkpoints = Checkpoints(target, identity=[chosen.to_toml(), origin.fingerprint, rows.train])
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
    )
    trackers.attach(trainer, target)
    if watch is not None:
        trainer.add_callback(Watcher(watch, metric))
    done = trainer.train(resume_from_checkpoint=checkpoints.start(trainer.is_world_process_zero(), resume))
    logits = {name: logits_of(trainer, learned, found) for name, found in features.items() if name != "train"}
    learned, calibration, judged = certified(learned, rows, features, logits, chosen.task)
    metrics = measured(judged)
    card = TaskCard(target.name, chosen.method, learned, rows.columns, origin, limit, chosen.task.pooling, calibration)
    if trainer.is_world_process_zero():
        report(told(calibration, judged))
        last = rows.test or rows.validation
        metrics["baseline"] = baseline(rows.kind, rows.train, last, rows.labels)
        metrics["run"] = {
            "training_rows": len(rows.train),
            "steps": done.global_step,
            "seconds": round(time.perf_counter() - begin, 1),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
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
    return Result(target, card, metrics, (*rows.notes, *([note] if note else [])))


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


def measured(judged: Mapping[str, Judgement]) -> dict[str, Any]:
    """Scores by split, and `calibration`: what they tell of trust."""
    return {
        **{name: one.scores for name, one in judged.items()},
        "calibration": {name: one.trust for name, one in judged.items()},
    }


def changes_of(
    task: str | None, text: Sequence[str], label: str | None, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of `train` as keys of a recipe."""
    named = {"task.kind": task, "task.text": list(text) or None, "task.label": label}
    return {**{key: value for key, value in named.items() if value is not None}, **overrides}


def told(calibration: Calibration, judged: Mapping[str, Judgement]) -> str:
    """One line on calibration."""
    name, last = list(judged.items())[-1]
    if last.after is None or last.before is None:
        return "calibration: this kind of task states no probabilities"
    return (
        f"calibration: temperature {calibration.temperature:.3f}, "
        f"expected error on {name} {last.before.error:.4f} -> {last.after.error:.4f}"
    )


def backbone_of(recipe: Recipe, named: str | None) -> tuple[str, Recipe]:
    """The backbone that is named, else the recipe's, else minilm; and a recipe that tells no other."""
    if named is not None and recipe.training.backbone not in (None, named):
        recipe = recipe.override({"training.backbone": hub_id(named)})
    return named or recipe.training.backbone or MINILM, recipe


def choose(
    data: Source | Data | None,
    method: str | None,
    recipe: str | Path | Recipe | None,
    changes: Mapping[str, Any],
    library: str | Path | None = None,
) -> tuple[Data, Recipe]:
    """Read the data as the recipe says; without a recipe take the one for the kind of task that they make."""
    if isinstance(recipe, Recipe | None):
        first = recipe or recipe_of({"method": {"name": method or "pasta"}})
    else:
        first = read_recipe(recipe)
    if method not in (None, first.method):
        raise ConfigError(f"the recipe is for {first.method}, and the method asked for is {method}; drop one of them")
    wanted = first.override(changes)
    options = wanted.task
    data = options.data if data is None else data
    if data is None:
        raise DataError("no data: name a file, a folder or a hub id, or a recipe that does")
    rows = load_data(
        data,
        options.kind,
        options.text,
        options.label,
        options.validation,
        out_of_scope=options.out_of_scope,
        choices=options.choices,
    )
    if recipe is None:
        wanted = shipped_recipe(rows.kind, first.method, rows.pair).override(changes)
    if options.shots is not None and options.template is None and rows.kind == "classification":
        wanted = wanted.override({"task.template": "auto"})
    fixed = {*(first.options if recipe is not None else ()), *(key.removeprefix("method.") for key in changes)}
    return rows, name_sources(wanted, library, fixed)


def learned_task(rows: Data, options: TaskOptions, base: PreTrainedModel) -> Task:
    """The task of the data, with what the recipe says about it."""
    task = task_of(rows, options.stride, options.answer_length)
    if not isinstance(task, Generation):
        return task
    alone = not base.config.is_encoder_decoder
    return replace(
        task,
        decoder_only=alone,
        prompt=options.prompt or (f"{task.prompt}\n" if alone else task.prompt),
        num_beams=options.num_beams,
        max_new_tokens=options.max_new_tokens,
    )


def phrased(
    task: Task, options: TaskOptions, backbone: str, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[Task, VocabularyHead | None, str | None]:
    """The task with words for its classes, where the recipe asks for that, and the head that scores them.

    A backbone that cannot (and, with template = "auto", classes that cannot) keeps the linear head; a note says why.
    """
    if options.template == "none" or (options.template is None and not options.words):
        return task, None, None
    if not isinstance(task, Classification):
        raise ConfigError(f"a template is for classification, one class a row; this task is {task.kind}")
    auto = options.template in (None, "auto")
    try:
        cloze = cloze_of(task, tokenizer, None if auto else options.template, options.words)
    except UnsupportedError as error:
        return task, None, f"linear head: {error}"
    except ConfigError as error:
        if not auto or options.words:
            raise
        return task, None, f"linear head: {error}"
    vocabulary = vocabulary_head(backbone, base)
    if vocabulary is None:
        return task, None, f"linear head: the files of {backbone} hold no masked-LM head, which a template needs"
    words = ", ".join(f"{label} = {word}" for label, word in zip(cloze.labels, cloze.words, strict=True))
    return cloze, vocabulary, f"template: {cloze.template!r} with {words}"


def adapt(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    recipe: Recipe,
    vocabulary: VocabularyHead | None = None,
    sources: Tensor | None = None,
) -> PeftModel:
    """A frozen backbone -> with the method's fresh tensors, source prompts, and the task's head."""
    host = base if isinstance(task, Generation) else TaskModel(base, vocabulary)
    model = get_peft_model(cast("Any", host), config_of(tokenizer, task, recipe))
    # peft would ask the hub about the named backbone at every checkpoint; `finish` names it.
    model.peft_config["default"].base_model_name_or_path = ""
    if sources is not None:
        put_sources(model, "default", sources, paper=recipe.options.get("init_weights") == "paper")
    return cast("PeftModel", model)


def config_of(tokenizer: PreTrainedTokenizerBase, task: Task, recipe: Recipe) -> MethodConfig:
    """The method's config, with the task's head unless the backbone itself writes."""
    given = recipe.options
    if "special_ids" in method_options(recipe.method):
        given = {"special_ids": special_ids(tokenizer), **given}
    kind = METHODS[recipe.method].config
    if isinstance(task, Generation):
        return kind(task_type="CAUSAL_LM" if task.decoder_only else "SEQ_2_SEQ_LM", **given)
    return kind(head=head_of(task, tokenizer, recipe.task), **given)


def head_of(task: Task, tokenizer: PreTrainedTokenizerBase, options: TaskOptions) -> HeadConfig:
    """The head that the task needs."""
    masked = isinstance(task, Cloze)
    return HeadConfig(
        kind="masked" if masked else cast("Any", task.head),
        num_labels=task.num_outputs,
        pooling=cast("Any", options.pooling),
        dropout=options.dropout,
        words=task.word_ids(tokenizer) if masked else [],
        mask=cast("int", tokenizer.mask_token_id) if masked else None,
    )


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """The special tokens that the tokenizer puts around texts; None where it puts none."""
    around = set(cast("list[int]", tokenizer("a", "a")["input_ids"])) & set(tokenizer.all_special_ids)
    return sorted(around - {cast("int", tokenizer.unk_token_id)}) or None


def longest(model: PeftModel, task: Task, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens of a text: what the recipe asks for, if the position table has room for it beside the prompt.

    What a decoder-only model writes needs room in the same table, what a decoder writes in its own.
    """
    config = model.peft_config["default"]
    prompt = METHODS[recipe.method].prompt_length(config)
    answer = task.max_new_tokens if isinstance(task, Generation) else 0
    backbone = cast("Any", model.get_base_model()).config
    room = max_length(backbone)
    if room is not None and answer >= room:
        raise ConfigError(f"max_new_tokens={answer} leaves no room; the backbone has {room} positions")
    taken = prompt + (answer if isinstance(task, Generation) and task.decoder_only else 0)
    return beside(taken, recipe.task.max_length, backbone, tokenizer)


def beside(taken: int, wanted: int, config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens of a text, `wanted` or what a position table leaves beside so many prompt rows (and answers)."""
    room = max_length(config)
    limit = wanted if room is None else min(wanted, room - taken)
    least = tokenizer.num_special_tokens_to_add(pair=True) + 2
    if limit < least:
        raise ConfigError(f"max_length leaves {limit} tokens beside {taken} prompt rows; at least {least} are needed")
    return limit


def encode_splits(task: Task, tokenizer: PreTrainedTokenizerBase, rows: Data, limit: int) -> dict[str, list[Features]]:
    """Every split -> features; those of out-of-scope rows, without a target, as `outside validation` and `... test`."""
    splits = {"train": rows.train, "validation": rows.validation, "test": rows.test}
    outside = {
        f"outside {name}": [unlabelled(row) for row in rows.outside.get(name, [])] for name in ("validation", "test")
    }
    return {name: task.encode(tokenizer, split, limit) for name, split in {**splits, **outside}.items()}


def finish(model: PeftModel, backbone: str) -> None:
    """Leave out what served training only, and name the backbone."""
    cast("Any", model.base_model).fold_adapter("default")
    model.peft_config["default"].base_model_name_or_path = backbone
