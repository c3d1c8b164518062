"""The weights of the prompts that an adapter mixes, for each row."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from attentune.batches import in_batches
from attentune.card import TaskCard
from attentune.errors import UnsupportedError
from attentune.forward import memo
from attentune.tasks import Features, Task
from attentune.tasks.generate import Generation
from attentune.tasks.task import Inputs, Logits, pad_inputs
from attentune.writing import write


def mixes_nothing(task: str, card: TaskCard) -> UnsupportedError:
    """What is said where there are no weights of prompts."""
    return UnsupportedError(f"task {task!r} ({card.method}) mixes no prompts, so that there are no weights to show")


def prompt_weights(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    features: Sequence[Features],
    batch_size: int,
    adapter: str | None = None,
) -> list[Logits]:
    """The weights [J] of the prompts that are mixed for each row, the mean over its sequences.

    `adapter` names the one that serves; without it the active one does.
    """

    def run(batch: Sequence[Inputs]) -> list[Logits]:
        names = None if adapter is None else [adapter] * len(batch)
        if isinstance(task, Generation):
            # Prompts are mixed once, before the first token is written.
            shortest = replace(task, num_beams=1, max_new_tokens=1)
            write(model, tokenizer, shortest, [sequence["input_ids"] for sequence in batch], names)
        else:
            inputs = {k: v.to(model.device) for k, v in pad_inputs(batch, tokenizer).items()}
            with torch.inference_mode():
                model(**inputs, **({} if names is None else {"adapter_names": names}))
        found = cast("Sequence[Tensor]", memo(model, "prompt_attention"))
        return [weights.float().cpu().numpy() for weights in found]

    pieces = [sequence for row in features for sequence in row.sequences]
    weights = iter(in_batches(pieces, lambda sequence: len(sequence["input_ids"]), run, batch_size))
    return [np.mean(list(islice(weights, len(row.sequences))), axis=0) for row in features]
