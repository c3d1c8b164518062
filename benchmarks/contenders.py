"""Who is measured: the five methods as their recipes ship, LoRA, full fine-tuning; all with the same linear head."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
from loop import Plan
from safetensors.torch import save_model
from sets import Set
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attentune.heads import States, TaskOutput
from attentune.training.adapted import adapt, finish
from attentune.training.recipe import Recipe, shipped_recipe

FIVE = ("tiny_attention", "pasta", "prefix_propagation", "attempt", "kernel_mix")
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["query", "value"]}

RATES = {
    "lora": (2e-3, 1e-3, 4e-3),
    "kernel_mix": (3e-3, 1e-3, 1e-2),
    "pasta": (1e-2, 3e-2, 3e-3),
    "tiny_attention": (3e-3, 1e-2, 1e-3),
    "prefix_propagation": (1e-2, 3e-2, 3e-3),
    "attempt": (1e-2, 3e-2, 3e-3),
    "full": (1e-4, 2e-4, 5e-5),
}
"""Contender -> its grid of learning rates, the most likely first."""


class Plain(nn.Module):
    """A backbone with a linear head like that of `attentune.heads`, for those that attentune does not adapt."""

    def __init__(self, backbone: PreTrainedModel, recipe: Recipe, kind: str, outputs: int) -> None:
        super().__init__()
        self.backbone, self.kind = backbone, kind
        self.pooling, self.dropout = recipe.task.pooling, nn.Dropout(recipe.task.dropout)
        self.config = backbone.config
        self.heads = nn.Linear(backbone.config.hidden_size, outputs)
        nn.init.normal_(self.heads.weight, std=0.02)
        nn.init.zeros_(self.heads.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> TaskOutput:
        out: Any = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        states = States(out.last_hidden_state, attention_mask, None)
        read = states.last if self.kind == "token" else states.pooled(self.pooling, None)
        return TaskOutput(logits=self.heads(self.dropout(read)))


@dataclass(frozen=True)
class Contender:
    """A model to train, and how many bytes of it are kept."""

    model: nn.Module
    save: Callable[[Path], None]

    @property
    def parameters(self) -> int:
        """Trained numbers, the head's among them."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def bytes(self) -> int:
        """Size of the saved tensors: those of the adapter and the head; of full fine-tuning, the whole model."""
        with TemporaryDirectory() as folder:
            self.save(Path(folder))
            return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def options(name: str, chosen: Set) -> dict[str, Any]:
    """The settings of a contender beside its learning rate."""
    if name in FIVE:
        return _recipe(name, chosen).options
    return dict(LORA) if name == "lora" else {}


def head_rate(chosen: Set) -> float:
    """The learning rate of the head, which the recipes of a kind of task share, for every contender alike."""
    return _recipe("pasta", chosen).training.head_learning_rate or Plan.head_rate


def build(name: str, chosen: Set, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> Contender:
    """A fresh contender on its own copy of the backbone."""
    torch.manual_seed(seed)
    backbone = copy.deepcopy(base)
    if name in FIVE:
        adapted = adapt(backbone, tokenizer, chosen.task, _recipe(name, chosen))

        def save(folder: Path) -> None:
            finish(adapted, "")
            adapted.save_pretrained(str(folder))

        return Contender(adapted, save)
    plain = Plain(backbone, _recipe("pasta", chosen), chosen.task.head, chosen.task.num_outputs)
    if name == "full":
        return Contender(plain, lambda folder: save_model(plain, str(folder / "model.safetensors")))
    config = peft.LoraConfig(**LORA, modules_to_save=["heads"])
    tuned: Any = peft.get_peft_model(plain, config)  # pyright: ignore[reportArgumentType]
    return Contender(tuned, lambda folder: tuned.save_pretrained(str(folder)))


def _recipe(method: str, chosen: Set) -> Recipe:
    return shipped_recipe(chosen.data.kind, method, chosen.data.pair)
