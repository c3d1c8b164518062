"""A frozen backbone with the fresh tensors of a method and the head of a task, and how long its texts may be."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attentune.anatomy import max_length
from attentune.errors import ConfigError
from attentune.heads import HeadConfig
from attentune.method import MethodConfig
from attentune.methods import METHODS
from attentune.model import TaskModel
from attentune.tasks import Task
from attentune.tasks.generate import Generation
from attentune.tasks.verbalise import Cloze
from attentune.training.recipe import Recipe, TaskOptions, TrainingOptions, method_options
from attentune.training.sources.mixture import put_sources
from attentune.vocabulary import VocabularyHead


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


def longest(
    method: MethodConfig, config: Any, task: Task, options: TaskOptions, tokenizer: PreTrainedTokenizerBase
) -> int:
    """The most tokens of a text: what is asked for, if the backbone's config has room for it beside the prompt.

    What a decoder-only model writes needs room in the same table, what a decoder writes in its own.
    """
    kind = type(method).method
    assert kind is not None
    prompt = kind.prompt_length(method) + kind.position_shift(method)
    answer = task.max_new_tokens if isinstance(task, Generation) else 0
    room = max_length(config)
    if room is not None and answer >= room:
        raise ConfigError(f"max_new_tokens={answer} leaves no room; the backbone has {room} positions")
    taken = prompt + (answer if isinstance(task, Generation) and task.decoder_only else 0)
    return beside(taken, options.max_length, config, tokenizer)


def beside(taken: int, wanted: int, config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens of a text, `wanted` or what a position table leaves beside so many prompt rows (and answers)."""
    room = max_length(config)
    limit = wanted if room is None else min(wanted, room - taken)
    least = tokenizer.num_special_tokens_to_add(pair=True) + 2
    if limit < least:
        raise ConfigError(f"max_length leaves {limit} tokens beside {taken} prompt rows; at least {least} are needed")
    return limit


def check_finite(values: Iterable[Any], training: TrainingOptions) -> None:
    """Tensors that were trained, or arrays of what they answer.

    Raises:
        ConfigError: one of them is not finite, so training diverged.
    """
    if not all(torch.as_tensor(value).isfinite().all() for value in values):
        raise ConfigError(
            "training diverged: what it learned is not finite, so that no adapter was written; learning_rate="
            f"{training.learning_rate:g} is probably too high"
        )


def finish(model: PeftModel, backbone: str) -> None:
    """Leave out what served training only, and name the backbone."""
    cast("Any", model.base_model).fold_adapter("default")
    model.peft_config["default"].base_model_name_or_path = backbone
