"""AdamW, with a rate for each part of an adapter."""

from collections.abc import Sequence

import torch
from torch import nn

from attentune.errors import ConfigError
from attentune.training.recipe import TrainingOptions


def optimiser(model: nn.Module, training: TrainingOptions, attention: Sequence[str] = ()) -> torch.optim.Optimizer:
    """AdamW with a rate for the method's tensors, one for the head, and one for the tensors named in `attention`.

    Raises:
        ConfigError: a rate for the attention of a method that has none.
    """
    if training.attention_learning_rate is not None and not attention:
        raise ConfigError("attention_learning_rate was given, and this method has no attention over prompts")
    rate = training.learning_rate
    own = {"head": training.head_learning_rate, "attention": training.attention_learning_rate}
    rates = {"method": rate} | {part: rate if given is None else given for part, given in own.items()}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts = set(name.split("."))
            group = "head" if "heads" in parts else "method" if parts.isdisjoint(attention) else "attention"
            groups[group].append(parameter)
    listed = [{"params": groups[name], "lr": rates[name]} for name in rates if groups[name]]
    return torch.optim.AdamW(listed, weight_decay=training.weight_decay, fused=True)
