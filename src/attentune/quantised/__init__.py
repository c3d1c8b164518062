"""A frozen backbone in fewer bits: its blocks multiply in int8, or keep their weights in 4 bits."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from attentune.anatomy import stacks_of
from attentune.errors import ConfigError
from attentune.quantised.int8 import Int8Linear, check
from attentune.quantised.nf4 import NF4Linear

FORMS = {"int8": Int8Linear, "nf4": NF4Linear}


def quantise(model: nn.Module, how: str) -> None:
    """Replace every linear map inside the blocks of a backbone; embeddings, norms, poolers and heads stay as they are.

    To be done before adapters are put in, and after `fingerprint`. Adapters can be trained on it.

    Raises:
        ConfigError: there is no such quantisation.
        UnsupportedError: int8 is asked for on another device than a CPU, or on one whose int8 products are not exact.
    """
    if how not in FORMS:
        raise ConfigError(f"no quantisation {how!r}; there is {', '.join(FORMS)}")
    if on_cpu_only(how):
        check(model)
    for _, stack, anatomy in stacks_of(model):
        for parent in list(stack.get_submodule(anatomy.blocks).modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, (nn.Linear, Conv1D)):
                    weight = child.weight.T if isinstance(child, Conv1D) else child.weight
                    setattr(parent, name, FORMS[how](weight, child.bias).train(child.training))


def device_for(how: str | None, wanted: str | torch.device | None = None) -> str | torch.device:
    """Where a backbone goes: as wanted, else to the GPU where there is one and its quantisation may be there."""
    return wanted or ("cuda" if torch.cuda.is_available() and not on_cpu_only(how) else "cpu")


def on_cpu_only(how: str | None) -> bool:
    """Whether a backbone in this quantisation has to stay on a CPU."""
    return how == "int8"
