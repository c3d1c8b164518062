"""Before training: which data, recipe, backbone and task are meant."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attentune.backbones import MINILM, hub_id
from attentune.errors import ConfigError, DataError, UnsupportedError
from attentune.evaluation.generation import check_installed
from attentune.methods import METHODS
from attentune.tasks import Data, Task, load_data, task_of
from attentune.tasks.classify import Classification
from attentune.tasks.data import ALIASES
from attentune.tasks.draw import few
from attentune.tasks.generate import Generation
from attentune.tasks.sources import Source
from attentune.tasks.verbalise import cloze_of
from attentune.training.recipe import Recipe, TaskOptions, read_recipe, recipe_of, shipped_recipe
from attentune.training.sources.mixture import name_sources
from attentune.vocabulary import VocabularyHead, vocabulary_head


def changes_of(
    task: str | None, text: Sequence[str], label: str | None, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of `train` as keys of a recipe."""
    named = {"task.kind": task, "task.text": list(text) or None, "task.label": label}
    return {**{key: value for key, value in named.items() if value is not None}, **overrides}


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
    if method is not None and method not in METHODS:
        raise ConfigError(f"no method {method!r}; the methods are {', '.join(METHODS)}")
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
    if isinstance(data, Data):
        check_as_read(data, options)
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


def check_as_read(rows: Data, options: TaskOptions) -> None:
    """Rows are as the recipe wants them read; the share of a validation split is none of it, as they have theirs.

    Raises:
        ConfigError: they were read otherwise.
    """
    apart = {row["label"] for found in rows.outside.values() for row in found}
    single = options.kind == "pair" and not rows.pair
    read: dict[str, tuple[Any, Any]] = {
        "kind": (options.kind if single else ALIASES.get(options.kind or "", options.kind), rows.kind),
        "text": (options.text, list(rows.columns.inputs)),
        "label": (options.label, rows.columns.label),
        "choices": (options.choices, list(rows.columns.choices)),
        "out_of_scope": (options.out_of_scope, next(iter(apart), None)),
    }
    for key, (wanted, found) in read.items():
        if wanted and wanted != found:
            raise ConfigError(
                f"{key}={wanted!r} is asked of data that were read with {key}={found!r}; give it to load_data, or drop "
                "it here"
            )


def drawn(rows: Data, shots: int | None, seed: int) -> Data:
    """The few rows that the recipe asks for, or all."""
    return rows if shots is None else few(rows, shots, seed)


def learned_task(rows: Data, options: TaskOptions, base: PreTrainedModel) -> Task:
    """The task of the data, with what the recipe says about it.

    Raises:
        ConfigError: texts are to be written, and what scores them is not installed.
    """
    task = task_of(rows, options.stride, options.answer_length)
    if not isinstance(task, Generation):
        return task
    check_installed()
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
