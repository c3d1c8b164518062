"""What an adapter costs before it is trained: the bytes of its file, and the time of a forward pass.

Both follow from the settings alone: an untrained adapter is as large and as slow as a trained one.
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attentune.model import TaskModel
from attentune.tasks import Task
from attentune.tasks.task import pad_inputs
from attentune.training.adapted import adapt, finish
from attentune.training.recipe import Recipe
from attentune.vocabulary import VocabularyHead

ROUNDS, CALLS = 3, 4
"""Bare and adapted passes take turns ROUNDS times, CALLS of each, so that what slows the machine slows both."""


@dataclass(frozen=True)
class Cost:
    """What an adapter costs."""

    size: int
    """Bytes of `adapter_model.safetensors`."""
    latency: float | None
    """Median time of a forward pass / that of the bare backbone; None: not measured."""


class Meter:
    """One backbone, on which adapters are put, weighed, timed and taken off again; equal settings are weighed once."""

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        vocabulary: VocabularyHead | None = None,
    ) -> None:
        self.base, self.tokenizer, self.task, self.vocabulary = base, tokenizer, task, vocabulary
        self._known: dict[str, Cost] = {}

    def cost(self, recipe: Recipe, texts: Sequence[Any] | None = None, max_length: int = 128) -> Cost:
        """The cost of a recipe's adapter; of its latency on the rows `texts`, where they are given."""
        key = repr((recipe.method, sorted(recipe.options.items()), recipe.task.pooling, texts is None))
        if key not in self._known:
            latency = None if texts is None else self._latency(recipe, texts, max_length)
            self._known[key] = Cost(self._size(recipe), latency)
        return self._known[key]

    def _size(self, recipe: Recipe) -> int:
        model = self._adapted(recipe)
        finish(model, "")
        tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
        size = len(save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"}))
        _take_off(model)
        return size

    def _latency(self, recipe: Recipe, texts: Sequence[Any], max_length: int) -> float:
        features = self.task.encode(self.tokenizer, texts, max_length)
        inputs = pad_inputs([sequence for f in features for sequence in f.sequences], self.tokenizer)
        inputs = {name: value.to(self.base.device) for name, value in inputs.items()}
        plain = TaskModel(self.base).backbone
        bare: list[float] = []
        adapted: list[float] = []
        with one_thread():
            for _ in range(ROUNDS):
                bare += timed(lambda: plain(**inputs))
                model = self._adapted(recipe).eval()
                adapted += timed(lambda model=model: model(**inputs))
                _take_off(model)
        return median(adapted) / median(bare)

    def _adapted(self, recipe: Recipe) -> PeftModel:
        return adapt(self.base, self.tokenizer, self.task, recipe, self.vocabulary)


def timed(run: Callable[[], Any]) -> list[float]:
    """Seconds of CALLS calls, after one that warms up."""
    seconds: list[float] = []
    with torch.inference_mode():
        for _ in range(CALLS + 1):
            begin = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
    return seconds[1:]


@contextmanager
def one_thread() -> Generator[None]:
    """Torch on one thread, whose times vary least."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _take_off(model: PeftModel) -> None:
    cast("Any", model.base_model).unload()


def rows_to_time(validation: Sequence[dict[str, Any]], count: int = 8) -> list[dict[str, Any]]:
    """Rows of middle length, on which the latency is measured."""
    ordered = sorted(validation, key=lambda row: sum(len(str(value)) for value in row.values()))
    begin = max((len(ordered) - count) // 2, 0)
    return list(ordered[begin : begin + count])
