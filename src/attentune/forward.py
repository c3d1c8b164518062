"""One forward: which adapter serves which row, where the source ends, and what an edit left behind."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from attentune.errors import UnsupportedError
from attentune.heads import Heads
from attentune.sites import AdapterLayer, Stack, stacks_in
from attentune.sites.rows import RowRequest


@contextmanager
def source_tokens(model: nn.Module, count: int | None) -> Generator[None]:
    """Say that the first `count` tokens are the source; without labels nothing else tells them from generated ones."""
    stacks = stacks_in(model)
    for stack in stacks:
        stack.source = count
    try:
        yield
    finally:
        for stack in stacks:
            stack.source = None


@contextmanager
def rows(model: nn.Module, names: list[str], configs: dict[str, Any], batch: Tensor | None) -> Generator[None]:
    """Give each row of a batch [B,...] its own adapter; "__base__" is the backbone alone. What runs inside may have a
    multiple of the rows (beam search).

    Raises:
        UnsupportedError: an unknown name, more or fewer names than rows, a merged adapter, or a native head that not
            all named adapters have.
    """
    _check_count(names, batch)
    request = RowRequest.of(names, configs)
    modules = list(model.modules())
    merged = {n for m in modules if isinstance(m, AdapterLayer) for n in m.merged_adapters}
    if merged:
        raise UnsupportedError(
            f"{sorted(merged)} are merged into the base weights, so no row can be without them; unmerge"
        )
    wrappers = [m for m in modules if isinstance(m, AuxiliaryTrainingWrapper)]
    handles = [w.register_forward_hook(_HeadsByRow(request).after, with_kwargs=True) for w in wrappers]
    try:
        with requested([m for m in modules if isinstance(m, (Stack, Heads))], request):
            yield
    finally:
        for handle in handles:
            handle.remove()


def check_rows(model: nn.Module, batch: Tensor | None) -> None:
    """As `rows` does, of a forward that runs inside it: peft's models of a task keep the batch back until then.

    Raises:
        UnsupportedError: more or fewer names than rows.
    """
    for stack in stacks_in(model):
        if stack.request is not None:
            _check_count(stack.request.names, batch)


def _check_count(names: Sequence[str], batch: Tensor | None) -> None:
    if batch is not None and len(names) != len(batch):
        raise UnsupportedError(f"adapter_names has one name a row: {len(names)} names were given for {len(batch)} rows")


@contextmanager
def requested(places: Sequence[Stack | Heads], request: RowRequest) -> Generator[None]:
    """Let stacks and heads serve the batches run inside by row, as the request says."""
    for place in places:
        place.request = request
    try:
        yield
    finally:
        for place in places:
            place.request = None


def memo(model: nn.Module, key: str) -> Tensor | list[Tensor | None] | None:
    """What an edit left behind in the last forward: [B, ...], or one entry a row in a mixed batch.

    ATTEMPT leaves "prompt_attention" [B,J], the weights of the prompts that `Method.mixes` names.
    """
    for frame in (stack.frame for stack in stacks_in(model)):
        views = [] if frame is None else [view for view in frame.views.values() if key in view.memo]
        if frame is None or not views:
            continue
        if frame.groups is None:
            return views[0].memo[key]
        rows: list[Tensor | None] = [None] * frame.batch
        for view in views:
            index = range(frame.batch) if view.rows is None else view.rows.tolist()
            for row, value in zip(index, view.memo[key], strict=True):
                rows[row] = value
        return rows
    return None


class _HeadsByRow:
    """Native heads in `modules_to_save`, a head a row: few and small, so a loop over the adapters present is enough."""

    def __init__(self, request: RowRequest) -> None:
        self.request = request

    def after(self, wrapper: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
        """Run each row through its own copy."""
        lead: Tensor = args[0] if args else next(iter(kwargs.values()))
        names = self.request.per_row(len(lead))
        for name in dict.fromkeys(names):
            saved = name in wrapper.modules_to_save  # One without the module has the model's own, as it has alone.
            head = wrapper.modules_to_save[name] if saved else wrapper.original_module
            index = torch.tensor([i for i, n in enumerate(names) if n == name], device=lead.device)
            part = head(
                *(a.index_select(0, index) for a in args), **{k: v.index_select(0, index) for k, v in kwargs.items()}
            )
            if part.shape[1:] != out.shape[1:]:
                raise UnsupportedError(
                    f"native heads of one batch have equal shapes: {name!r} gives {list(part.shape[1:])}, the active "
                    f"adapter {list(out.shape[1:])}; a TaskModel's heads may differ"
                )
            out = out.index_copy(0, index, part)
        return out
