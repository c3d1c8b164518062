"""What adapters stand on: a frozen backbone with its tokenizer, under the name and the fingerprint that cards carry."""

from dataclasses import dataclass, replace
from typing import cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attentune.backbones import fingerprint, hub_id, load_backbone, load_tokenizer, revision
from attentune.card import Backbone
from attentune.model import twin


@dataclass(frozen=True)
class Ground:
    """A loaded backbone."""

    name: str
    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    origin: Backbone

    def twin(self) -> "Ground":
        """The same weights, for one more adapted model."""
        return replace(self, base=cast("PreTrainedModel", twin(self.base)))


def ground_of(backbone: str, writes: bool = False, attention_dropout: float | None = None) -> Ground:
    """Load a backbone; with `writes` its language head too, with `attention_dropout` in place of its own."""
    base = load_backbone(backbone, writes=writes, attention_dropout=attention_dropout)
    origin = Backbone(hub_id(backbone), fingerprint(base), revision(base))
    return Ground(backbone, base, load_tokenizer(backbone, base), origin)
