"""Prompts -> texts that a language head writes, in batches whose rows may have an adapter each."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from attentune.tasks.generate import Generation


class Writes(Protocol):
    """A LanguageModel, or a PeftModel on a model with a language head."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    def generate(self, **options: Any) -> Tensor:
        """input_ids [B,T] -> tokens [B,T']."""
        ...


def write(
    model: Writes,
    tokenizer: PreTrainedTokenizerBase,
    task: Generation,
    prompts: Sequence[Sequence[int]],
    adapters: Sequence[str] | None = None,
) -> list[str]:
    """Token ids of each prompt -> its text, by greedy or beam search as the task says.

    `adapters` names one for each row; without it the active one writes. Decoder-only models read prompts padded at the
    left, so that all rows are written on from the same column.
    """
    width = max(map(len, prompts))
    pad: Any = tokenizer.pad_token_id
    ids = [_padded(prompt, width, pad, task.decoder_only) for prompt in prompts]
    mask = [_padded([1] * len(prompt), width, 0, task.decoder_only) for prompt in prompts]
    with torch.inference_mode():
        tokens = model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            num_beams=task.num_beams,
            max_new_tokens=task.max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=tokenizer.eos_token_id,
            **({} if adapters is None else {"adapter_names": list(adapters)}),
        )
    written = tokens[:, width:] if task.decoder_only else tokens
    return [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]


def _padded(values: Sequence[int], width: int, value: int, left: bool) -> list[int]:
    filler = [value] * (width - len(values))
    return [*filler, *values] if left else [*values, *filler]
