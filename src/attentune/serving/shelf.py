"""Tasks of one method and shape: a task's tensors as one flat row, and rows of a batch as parameters of the sites."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attentune.errors import StoreError
from attentune.method import Group, MethodConfig, Params, Site
from attentune.model import TaskModel
from attentune.sites import SiteLayer

PREFIX = "base_model.model."
"""What peft puts before the path of a module in adapter_model.safetensors."""


@dataclass(eq=False)
class Stretch:
    """A site in all blocks that have it alike; in the flat row each of its tensors lies block after block."""

    site: Site
    shapes: Mapping[str, tuple[int, ...]]
    """Of its tensors by name."""
    layers: list[SiteLayer]
    paths: list[str]
    """Of the layers, in the names of a file's tensors."""

    @property
    def sizes(self) -> list[int]:
        """Numbers of each tensor, in all blocks together."""
        return [len(self.layers) * torch.Size(shape).numel() for shape in self.shapes.values()]

    @property
    def wanted(self) -> dict[str, tuple[int, ...]]:
        """The shapes of its tensors by their names in a file, in the order of the flat row."""
        return {f"{path}.{key}": shape for key, shape in self.shapes.items() for path in self.paths}


class Shelf:
    """The place of one method and shape on a model: hooks are installed once, however many tasks there are.

    A task is a flat row [N] of all its tensors. The rows of a batch are stacked to [R,N] in one copy, of which every
    site reads its part as [R, ...]: adding, replacing and removing a task touches nothing but its own row. Tensors that
    the method freezes (ATTEMPT's source prompts) are equal for many tasks: they are kept once, with R = 1, as `shared`.
    """

    def __init__(self, model: TaskModel, name: str, config: MethodConfig, shared: Mapping[str, Tensor]) -> None:
        """Raises:
        StoreError: a shared tensor does not fit; nothing is left on the model.
        """
        self.name, self.config = name, replace_head(config)
        model.add_adapter(name, self.config)
        try:
            self._lay_out(model, shared)
        except Exception:
            model.delete_adapter(name)
            raise
        method = type(self.config).method
        assert method is not None
        self.method = method
        self.taken = method.prompt_length(self.config) + method.position_shift(self.config)
        """Positions of the backbone that its texts cannot have."""
        self.widens = bool(self.taken)
        """Rows stand in front of its texts, or make place for some: the whole batch is another then."""

    def _lay_out(self, model: TaskModel, shared: Mapping[str, Tensor]) -> None:
        name = self.name
        sites = {f"{PREFIX}{p}": m for p, m in model.named_modules() if isinstance(m, SiteLayer) and name in m.configs}
        self.shared: dict[SiteLayer, dict[str, Tensor]] = {layer: {} for layer in sites.values()}
        stretches: dict[Hashable, Stretch] = {}
        for path, layer in sorted(sites.items(), key=lambda site: site[1].index):
            own = {key: tuple(value.shape) for key, value in sorted(layer.tensors(name).items())}
            for key in [key for key in own if f"{path}.{key}" in shared]:
                value = _fitting(shared, f"{path}.{key}", own.pop(key))
                self.shared[layer][key] = value[None].to(model.device)
            # What is shared may be another in every block.
            alike = (layer.site, tuple(own.items()), layer if self.shared[layer] else None)
            stretch = stretches.setdefault(alike, Stretch(layer.site, own, [], []))
            stretch.layers.append(layer)
            stretch.paths.append(path)
        self.stretches = list(stretches.values())
        self.sizes = [size for stretch in self.stretches for size in stretch.sizes]
        self.size = sum(self.sizes)
        self.wanted = {name: shape for stretch in self.stretches for name, shape in stretch.wanted.items()}
        """The shapes of the tensors that make a row, by their names in a file, in its order."""
        for layer in sites.values():
            layer.hollow(name)
        inside = [layer.index if layer.site != Site.PROMPT else 0 for layer in sites.values()]
        self.first = min(inside, default=0)
        """The first block that it changes something in; 0 where it puts prompts in front."""

    def row(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensors of a file -> [N], float32.

        Raises:
            StoreError: one is missing, has another shape, or holds a number that is not finite.
        """
        parts = [_fitting(tensors, name, shape).flatten() for name, shape in self.wanted.items()]
        return torch.cat(parts) if parts else torch.zeros(0)

    def group(self, rows: Sequence[Tensor], at: Tensor | None, start: int | None = None) -> Group:
        """Flat rows [N] of tasks, one for each row of the batch, the same one for the same task -> the group.

        `at` [R] says which rows of the batch they are, None: all of them; `start` the first of those that follow one
        another.
        """
        members = list({id(row): row for row in rows}.values())
        alone = len(members) == 1
        flat = members[0][None] if alone else torch.stack(list(rows))
        which = None
        if not alone:
            order = {id(row): i for i, row in enumerate(members)}
            which = torch.tensor([order[id(row)] for row in rows], device=flat.device)
        return replace(self.stacked(flat), names=(self.name,) * len(members), which=which, rows=at, start=start)

    def stacked(self, flat: Tensor) -> Group:
        """Tasks [R,N] as the parameters of every site, [R, ...] each, or [1, ...] what is shared.

        Those of one task are prepared for all blocks at once, in few operations. Those of many would take R times the
        memory, through the whole forward: every site prepares its own when it comes.
        """
        alone, tensors = len(flat) == 1, dict[SiteLayer, Params]()
        pieces = iter(flat.split(self.sizes, 1))
        for stretch in self.stretches:
            p = {
                key: next(pieces).view(len(flat), len(stretch.layers), *shape) for key, shape in stretch.shapes.items()
            }
            p |= {key: value[:, None] for key, value in self.shared[stretch.layers[0]].items()}
            of_all = self.method.prepare(self.config, stretch.site, p) if alone else p
            by_block = {key: value.unbind(1) for key, value in of_all.items()}
            for i, layer in enumerate(stretch.layers):
                tensors[layer] = {key: values[i] for key, values in by_block.items()}
        return Group(self.method, self.config, (self.name,), tensors=tensors, prepared=alone)


def replace_head(config: MethodConfig) -> MethodConfig:
    """The config for serving without a head: heads are rows of their own."""
    return replace(config, head=None, modules_to_save=None, inference_mode=True)


def frozen_tensors(config: MethodConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file that its method does not train."""
    method = type(config).method
    assert method is not None
    frozen = method.frozen(config)
    return {name: value for name, value in tensors.items() if name.rsplit(".", 1)[-1] in frozen}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of names, shapes and every number; "" for no tensors."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16] if tensors else ""


def _fitting(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in tensors:
        raise StoreError(f"the adapter does not fit this backbone: it has no tensor {name}")
    value = tensors[name].float()
    if tuple(value.shape) != shape:
        raise StoreError(f"the adapter does not fit this backbone: {name} is {list(value.shape)}, wanted {list(shape)}")
    if not bool(value.isfinite().all()):
        raise StoreError(f"{name} of the adapter holds numbers that are not finite")
    return value
