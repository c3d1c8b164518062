"""What adapters stand on: a frozen backbone with its tokenizer, under the name and the fingerprint that cards carry."""

from dataclasses import dataclass, field, replace
from typing import cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attentune.backbones import fingerprint, hub_id, load_backbone, load_tokenizer, revision
from attentune.card import Backbone
from attentune.model import twin
from attentune.quantised import quantise
from attentune.training.frozen import Room
from attentune.training.recipe import TrainingOptions

PLAIN = TrainingOptions()


@dataclass(frozen=True)
class Ground:
    """A loaded backbone."""

    name: str
    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    origin: Backbone
    room: Room = field(default_factory=Room)
    """For what frozen blocks make of rows; all twins share it."""

    def twin(self) -> "Ground":
        """The same weights, for one more adapted model."""
        return replace(self, base=cast("PreTrainedModel", twin(self.base)))


def ground_of(backbone: str, writes: bool = False, training: TrainingOptions = PLAIN) -> Ground:
    """Load a backbone as `training` wants it; with `writes` its language head too.

    The fingerprint is that of the file, so that an adapter fits the same backbone in other numbers.
    """
    base = load_backbone(backbone, writes=writes, attention_dropout=training.attention_dropout)
    origin = Backbone(hub_id(backbone), fingerprint(base), revision(base))
    if training.dtype is not None:
        base.to(getattr(torch, training.dtype))
    if training.quantise is not None:
        quantise(base, training.quantise)
    return Ground(backbone, base, load_tokenizer(backbone, base), origin)
