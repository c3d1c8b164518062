"""A text -> a text that the backbone's own language head writes.

Encoder-decoders (T5, BART) read the prompt and write the answer. Decoder-only models (GPT-2, Llama) write on from it:
their rows are prompt and answer in one sequence, and the loss sees the answer alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from attentune.errors import ConfigError, DataError, UnsupportedError
from attentune.evaluation import metrics
from attentune.evaluation.metrics import Scores
from attentune.tasks.sources import Row
from attentune.tasks.task import IGNORED, Answer, Features, Head, Inputs, Task, full, padded

TEXT = "{text}"


@dataclass(frozen=True)
class Generation(Task):
    """A text a row; a row of the data may have several references. Answers: `text`."""

    kind: ClassVar[str] = "generation"
    head: ClassVar[Head] = "language"
    labels: tuple[str, ...] = ()
    pair: bool = False
    decoder_only: bool = False
    prompt: str = TEXT
    """What the model reads, with {text} for the text of the row."""
    num_beams: int = 4
    max_new_tokens: int = 64
    """The longest answer; a longer reference is cut there in training."""

    def __post_init__(self) -> None:
        if TEXT not in self.prompt:
            raise ConfigError(f"a prompt holds {TEXT} where the text belongs, found {self.prompt!r}")
        for name in ("num_beams", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is at least 1, found {getattr(self, name)}")

    @property
    def checkpoint_metric(self) -> str:
        """The loss, for writing the whole validation split at every evaluation can take longer than training."""
        return "loss"

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> list[Features]:
        """Rows -> prompts of at most `max_length` tokens; a labelled row brings its first reference."""
        return [self._features(tokenizer, row, max_length) for row in rows]

    def with_answer(self, features: Features) -> Features:
        """Prompt and answer in one sequence, for decoder-only models; the target ignores the prompt."""
        if not self.decoder_only or features.target is None:
            return features
        (sequence,), answer = features.sequences, features.target
        ids = [*sequence["input_ids"], *answer]
        target = [IGNORED] * len(sequence["input_ids"]) + answer
        return replace(features, sequences=(_sequence(ids),), target=target)

    def _features(self, tokenizer: PreTrainedTokenizerBase, row: Row, max_length: int) -> Features:
        ids, cut = self._fitting(tokenizer, row["text"], max_length)
        target = self._answer_ids(tokenizer, row["label"][0]) if "label" in row else None
        return Features((_sequence(ids),), target, truncated=cut)

    def _fitting(self, tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> tuple[list[int], bool]:
        """The prompt's ids, and whether the end of the text was cut off so that the whole prompt fits."""
        ids = self._prompt_ids(tokenizer, text)
        if len(ids) <= limit:
            return ids, False
        if not tokenizer.is_fast:
            raise UnsupportedError(
                "a text that has to be cut needs a fast tokenizer, which knows where its tokens stand"
            )
        plain = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = [end for _, end in plain["offset_mapping"]]
        while len(ids) > limit:
            ends = ends[: limit - len(ids)]
            if not ends:
                raise DataError(f"the prompt {self.prompt!r} leaves no room for a text in {limit} tokens")
            ids = self._prompt_ids(tokenizer, text[: ends[-1]])
        return ids, True

    def _prompt_ids(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        ids = cast("list[int]", tokenizer(self.prompt.replace(TEXT, text), verbose=False)["input_ids"])
        # What is written on has not ended.
        return ids[:-1] if self.decoder_only and ids and ids[-1] == tokenizer.eos_token_id else ids

    def _answer_ids(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        """The reference and the sign that it ends; of one that is too long the beginning, which has no end."""
        encoded = tokenizer(text_target=text, add_special_tokens=not self.decoder_only, verbose=False)
        ids = cast("list[int]", encoded["input_ids"])
        end = tokenizer.eos_token_id
        if not isinstance(end, int):
            raise ConfigError("the tokenizer has no token that ends a text, which generation needs")
        return (ids if ids and ids[-1] == end else [*ids, end])[: self.max_new_tokens]

    def target_tensor(self, targets: Sequence[list[int]], length: int) -> Tensor:
        """-> [B,T] for decoder-only models, else [B,U], U the longest answer; -100 where there is no answer."""
        width = length if self.decoder_only else max(map(len, targets))
        return torch.tensor([padded(t, width, IGNORED) for t in targets])

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy: logits [B,T,V], targets [B,T] -> [B], the mean over the tokens of a row's answer."""
        if self.decoder_only:
            logits, targets = logits[:, :-1], targets[:, 1:]
        each = F.cross_entropy(full(logits).transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)
        return each.sum(-1) / (targets != IGNORED).sum(-1).clamp(min=1)

    def decode(self, logits: Sequence[Any], features: Sequence[Features], temperature: float = 1.0) -> list[Answer]:
        """The texts that the model wrote, and their features -> answers."""
        return [{"text": text, "truncated": f.truncated} for text, f in zip(logits, features, strict=True)]

    def score(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scores:
        """BLEU, chrF, ROUGE."""
        return metrics.score(self.kind, [a["text"] for a in answers], [row["label"] for row in rows])

    def to_card(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "kind": self.kind,
            "decoder_only": self.decoder_only,
            "prompt": self.prompt,
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
        }

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Self:
        """The task of a card."""
        return cls(
            decoder_only=bool(card["decoder_only"]),
            prompt=str(card["prompt"]),
            num_beams=int(card["num_beams"]),
            max_new_tokens=int(card["max_new_tokens"]),
        )


def _sequence(ids: list[int]) -> Inputs:
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}
