"""Tasks of one method and shape: a task's tensors as one flat row, and rows of a batch as parameters of the sites."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attentune.errors import StoreError
from attentune.method import Group, MethodConfig, Params, Site
from attentune.model import TaskModel
from attentune.sites import SiteLayer

PREFIX = "base_model.model."
"""What peft puts before the path of a module in adapter_model.safetensors."""


@dataclass(frozen=True)
class Part:
    """One tensor of one site, by its name in the file; in the flat row they lie one after the other."""

    layer: SiteLayer
    key: str
    name: str
    shape: tuple[int, ...]


class Shelf:
    """The place of one method and shape on a model: hooks are installed once, however many tasks there are.

    A task is a flat row [N] of all its tensors. The rows of a batch are stacked to [R,N] in one copy, and every site
    reads its slice as [R, ...]: adding, replacing and removing a task touches nothing but its own row. Tensors that the
    method freezes (ATTEMPT's source prompts) are equal for many tasks: they are kept once, with R = 1, as `shared`.
    """

    def __init__(self, model: TaskModel, name: str, config: MethodConfig, shared: Mapping[str, Tensor]) -> None:
        self.name, self.config = name, replace_head(config)
        model.add_adapter(name, self.config)
        sites = {p: m for p, m in model.named_modules() if isinstance(m, SiteLayer) and name in m.configs}
        found = [
            (f"{PREFIX}{path}.{key}", layer, key, tuple(value.shape))
            for path, layer in sites.items()
            for key, value in layer.tensors(name).items()
        ]
        self.parts: list[Part] = []
        # Sites without tensors (a prefix whose embeddings are zero) are there, too.
        self.shared: dict[SiteLayer, dict[str, Tensor]] = {layer: {} for layer in sites.values()}
        for file_key, layer, key, shape in sorted(found, key=lambda entry: entry[0]):
            if file_key in shared:
                self.shared[layer][key] = _fitting(shared, file_key, shape)[None].to(model.device)
                continue
            self.parts.append(Part(layer, key, file_key, shape))
        self.sizes = [torch.Size(part.shape).numel() for part in self.parts]
        self.size = sum(self.sizes)
        for layer in sites.values():
            layer.hollow(name)
        inside = [layer.index if layer.site != Site.PROMPT else 0 for layer in sites.values()]
        self.first = min(inside, default=0)
        """The first block that it changes something in; 0 where it puts prompts in front."""
        method = type(self.config).method
        assert method is not None
        self.method = method
        self.taken = method.prompt_length(self.config) + method.position_shift(self.config)
        """Positions of the backbone that its texts cannot have."""
        self.widens = bool(self.taken)
        """Rows stand in front of its texts, or make place for some: the whole batch is another then."""

    def row(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensors of a file -> [N], float32.

        Raises:
            StoreError: one is missing, has another shape, or holds a number that is not finite.
        """
        parts = [_fitting(tensors, part.name, part.shape).flatten() for part in self.parts]
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
        return Group(self.method, self.config, (self.name,) * len(members), which, at, start, self.tensors(flat))

    def tensors(self, flat: Tensor) -> Mapping[SiteLayer, Params]:
        """Tasks [R,N] -> the parameters of every site, [R, ...] each, or [1, ...] what is shared."""
        tensors: dict[SiteLayer, dict[str, Tensor]] = {layer: dict(p) for layer, p in self.shared.items()}
        for part, piece in zip(self.parts, flat.split(self.sizes, 1), strict=True):
            tensors[part.layer][part.key] = piece.view(len(flat), *part.shape)
        return tensors


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
