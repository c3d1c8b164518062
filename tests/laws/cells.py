"""The cells: every registered method (in every form that has laws of its own) x every architecture."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from attentune import METHODS
from laws import loreft
from laws.zoo import ZOO, model_of

assert loreft.LOREFT.name in METHODS


@dataclass(frozen=True)
class Form:
    """A method with the options that make it another function."""

    method: str
    options: tuple[tuple[str, Any], ...] = ()

    def config(self, **more: Any) -> Any:
        """A config; `init_weights=False` is the random start."""
        return METHODS[self.method].config(**{**dict(self.options), **more})

    @property
    def label(self) -> str:
        """For test ids."""
        return "-".join([self.method, *(f"{k}={v}" for k, v in self.options if k != "length")])

    def widens(self, **more: Any) -> bool:
        """Rows stand in front of the text."""
        return METHODS[self.method].prompt_length(self.config(**more)) > 0


FORMS = [
    Form("tiny_attention", (("width", 2), ("heads", 2))),
    Form("tiny_attention", (("structure", "double_seq"), ("experts", 2))),
    Form("tiny_attention", (("structure", "m1"),)),
    Form("tiny_attention", (("structure", "s0"),)),
    Form("pasta"),
    Form("prefix_propagation", (("length", 3),)),
    Form("prefix_propagation", (("length", 3), ("mode", "combine"), ("mlp", 5))),
    Form("prefix_propagation", (("length", 3), ("mode", "kernel"))),
    Form("attempt", (("length", 3), ("sources", 2), ("bottleneck", 5))),
    Form("kernel_mix"),
    Form("kernel_mix", (("v_base", "X"), ("parts", "qv"), ("biases", False))),
]
FORMS += [Form(name) for name in METHODS if name not in {form.method for form in FORMS}]
"""A method that is registered and has no form above joins with its defaults."""
ONE_A_METHOD = [f for i, f in enumerate(FORMS) if f.method not in {g.method for g in FORMS[:i]}]
"""The first form of each method."""

REFUSED = {("pasta", kind) for kind in ("t5",)}
"""(method, architecture) that is refused in one sentence."""

NO_INTERFACE = ("mpnet", "deberta-v2", "longformer", "big_bird", "t5")
"""Architectures that offer no way into the softmax of their attention."""


def refused(form: Form, kind: str) -> bool:
    """Whether the cell is one of the refusals."""
    return (form.method, kind) in REFUSED or (dict(form.options).get("mode") == "combine" and kind in NO_INTERFACE)


CELLS = [
    pytest.param(form, kind, id=f"{form.label}-{kind}") for form in FORMS for kind in ZOO if not refused(form, kind)
]
REFUSALS = [
    pytest.param(form, kind, id=f"{form.label}-{kind}") for form in FORMS for kind in ZOO if refused(form, kind)
]
GENERATING = [cell for cell in CELLS if ZOO[str(cell.values[1])].generates]
cells: Callable[..., Any] = pytest.mark.parametrize(("form", "kind"), CELLS)
generating: Callable[..., Any] = pytest.mark.parametrize(("form", "kind"), GENERATING)


def adapted(form: Form, kind: str, seed: int = 1, model: Any = None, **config: Any) -> PeftModel:
    """A tiny model with one adapter "default", by default at a random start, in eval mode."""
    base = model_of(kind) if model is None else model
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        # peft asks transformers for an attribute that transformers has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(base, form.config(**{"init_weights": False, **config})).eval()


def add(model: PeftModel, name: str, form: Form, seed: int, **config: Any) -> None:
    """Another adapter at another random start."""
    torch.manual_seed(seed)
    model.add_adapter(name, form.config(**{"init_weights": False, **config}))
    model.eval()
