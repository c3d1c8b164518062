"""The frozen head with which a masked language model scores every word of its vocabulary, taken off its model.

What stands between the last hidden state and the logits has another name in every architecture: a row of HEADS names
the parts, relative to transformers' masked-LM class, in the order in which they act.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.utils import logging

from attentune.backbones import quiet, resolve

HEADS: dict[str, tuple[str, ...]] = {
    "bert": ("cls",),
    "roberta": ("lm_head",),
    "xlm-roberta": ("lm_head",),
    "electra": ("generator_predictions", "generator_lm_head"),
    "distilbert": ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
    "mpnet": ("lm_head",),
    "deberta-v2": ("cls",),
    "modernbert": ("head", "decoder"),
    "longformer": ("lm_head",),
    "big_bird": ("cls",),
}


class VocabularyHead(nn.Module):
    """States [R,D] -> scores of every word [R,V]; frozen, and part of no adapter."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        config: Any = model.config
        self.parts = nn.ModuleList(getattr(model, name) for name in HEADS[config.model_type])
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "VocabularyHead":
        """It has nothing to train, and stays as it is."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """The parts, one after the other."""
        for part in self.parts:
            x = part(x)
        return x


def vocabulary_head(name: str, base: PreTrainedModel) -> VocabularyHead | None:
    """The head that the files of backbone `name` hold, sharing its word embeddings with `base`; None: they hold none.

    Sentence encoders such as minilm come without one.
    """
    if base.config.model_type not in HEADS:
        return None
    shown = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with quiet():
            model, info = AutoModelForMaskedLM.from_pretrained(
                resolve(name), dtype=base.dtype, output_loading_info=True
            )
    finally:
        logging.set_verbosity(shown)
    own = f"{model.base_model_prefix}."
    parts = HEADS[base.config.model_type]
    if any(not key.startswith(own) for key in info["missing_keys"]) or not all(hasattr(model, part) for part in parts):
        return None
    words = model.get_input_embeddings().weight
    for part in (getattr(model, name) for name in parts):
        for module in part.modules():
            if getattr(module, "weight", None) is words:
                module.weight = base.get_input_embeddings().weight
    return VocabularyHead(model).to(base.device)
