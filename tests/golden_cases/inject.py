"""The authors' tensors in our sites: through `get_peft_model`, and gradients back under the authors' names."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from attentune.anatomy import Anatomy, stacks_of
from attentune.method import MethodConfig, Site
from attentune.sites import SiteLayer
from golden_cases.case import Case

Tensors = dict[tuple[Site, int], dict[str, Tensor]]
"""(site, block) -> our tensors, made from the authors' by differentiable steps."""


def first(out: Any) -> Tensor:
    """The states of what a module returns."""
    return out[0] if isinstance(out, tuple) else out


class Watch:
    """What goes through one stack, prompt rows included: plain hooks, set before anything is injected."""

    def __init__(self, stack: Any, anatomy: Anatomy) -> None:
        self.states: dict[int, Tensor] = {}
        self.sites: dict[tuple[str, int], Tensor] = {}
        self.blocks: Any = stack.get_submodule(anatomy.blocks)
        for i, block in enumerate(self.blocks):
            block.register_forward_hook(self._keep(self.states, i + 1))
            for site in ("attention_output", "query", "value", "output"):
                place = anatomy.places[site]
                if place.part == (0, 1) and not place.time_first and not place.residual:
                    block.get_submodule(place.path).register_forward_hook(self._keep(self.sites, (site, i)))

    def _keep(self, where: dict[Any, Tensor], key: Any) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            where[key] = first(out)

        return hook

    def watch_entrance(self) -> None:
        """Also what enters the first block, before any edit: to be called after injection."""

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.states[0] = args[0] if args else kwargs["hidden_states"]

        self.blocks[0].register_forward_pre_hook(before, prepend=True, with_kwargs=True)

    def outputs(self, length: int, name: str = "hidden_states") -> dict[str, Tensor]:
        """States by the authors' names, without an architecture's own padding on the right."""
        found = {f"{name}.{i}": state[:, :length] for i, state in self.states.items()}
        blocks = {
            f"attention_block.{i}": x[:, :length] for (site, i), x in self.sites.items() if site == "attention_output"
        }
        return {**found, **blocks}


def watch(model: nn.Module) -> list[Watch]:
    """One Watch a stack."""
    return [Watch(stack, anatomy) for _, stack, anatomy in stacks_of(model)]


def inject(model: Any, cfg: MethodConfig, tensors: Tensors, watches: list[Watch] | None = None) -> PeftModel:
    """Put the method on a model by the public path and fill every one of its tensors."""
    peft_model = get_peft_model(model, cfg)
    params = sites(peft_model)
    assert params.keys() == tensors.keys(), f"our sites {sorted(params)}, the case's {sorted(tensors)}"
    for place, mine in params.items():
        theirs = tensors[place]
        shapes = {k: v.shape for k, v in mine.items()}
        assert shapes == {k: v.shape for k, v in theirs.items()}, f"{place}: our tensors are {shapes}"
        with torch.no_grad():
            for key, param in mine.items():
                assert param.requires_grad, f"{place} {key} is frozen"
                param.copy_(theirs[key])
    for one in watches or ():
        one.watch_entrance()
    return peft_model.eval()


def sites(peft_model: Any) -> Tensors:
    """The parameters of every site."""
    layers = [module for module in peft_model.modules() if isinstance(module, SiteLayer)]
    return {(layer.site, layer.index): layer.tensors("default") for layer in layers}


def pull_back(peft_model: Any, tensors: Tensors) -> None:
    """Carry our parameters' gradients back to the authors' tensors that they were made from."""
    for place, params in sites(peft_model).items():
        for key, param in params.items():
            if param.grad is not None:
                tensors[place][key].backward(param.grad, retain_graph=True)


def train_recorded(case: Case, model: Any) -> dict[str, nn.Parameter]:
    """Make trainable the backbone's tensors that the case has gradients of: {name: parameter}."""
    named = dict(model.named_parameters())
    wanted = {name: named[name] for name in case.group("grad/backbone")}
    for param in wanted.values():
        param.requires_grad_(True)
    return wanted
