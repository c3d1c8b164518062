"""One stack of blocks: the frame of the batch in flight, written once per forward and read by every site."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attentune.anatomy import Anatomy
from attentune.errors import UnsupportedError
from attentune.method import Dims, Frame, Group, Site
from attentune.sites import memory, merge, replay
from attentune.sites.fan import Fan, Joint
from attentune.sites.layer import SiteLayer
from attentune.sites.packed import check_packed
from attentune.sites.rows import RowRequest
from attentune.sites.tap import SeenByRows, Tap
from attentune.sites.widen import Front, leave, widen, widen_cross_attention

STACK_CHILD = "attentune_stack"
"""The name of a Stack among the children of the module that owns the blocks."""


class Stack(nn.Module):
    """Shared by all adapters of one stack, whatever their method; a child of the module that owns the blocks."""

    def __init__(self, host: nn.Module, anatomy: Anatomy, config: Any, encoder: Stack | None) -> None:
        super().__init__()
        self._host, self._encoder = (host,), (encoder,)
        self.anatomy, self.config = anatomy, config
        self.keeps_prompt = False
        """A decoder attends to the prompt rows: they are not stripped."""
        self.frame: Frame | None = None
        self.front: Front | None = None
        self.request: RowRequest | None = None
        self.source: Tensor | int | None = None
        """[B,T] which tokens are no answer, or how many at the start of every row."""
        self.fan: Fan | None = None
        """How the batch in flight widens on its way through the blocks."""
        self.layers: list[SiteLayer] = []
        self._fronts: list[SiteLayer] = []
        self._names = [n for n in inspect.signature(host.forward).parameters if n not in ("args", "kwargs")]
        self.cache_name = memory.name_of(self._names)
        self._model_names: list[str] = []
        self._tapped: set[tuple[Site, int]] = set()
        self._joined = False
        last = self._module(anatomy.block_path(anatomy.layers(config) - 1))
        self._handles: list[Any] = [
            host.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True),
            host.register_forward_hook(self._leave, prepend=True, with_kwargs=True),
            last.register_forward_hook(self._last, prepend=False),
        ]
        if anatomy.positions == "table":
            table = self._module("embed_positions")
            self._handles.append(table.register_forward_pre_hook(self._positions, with_kwargs=True))
            self._handles.append(table.register_forward_hook(self._in_rows))
        if encoder is not None:
            encoder.keeps_prompt = True

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a model is a copy of its weights: the batch last in flight holds tensors that cannot be copied.
        return {**super().__getstate__(), "frame": None, "front": None, "request": None, "fan": None, "source": None}

    @property
    def host(self) -> nn.Module:
        """The module that owns the blocks."""
        return self._host[0]

    @property
    def encoder(self) -> Stack | None:
        """The encoder's, of a decoder that attends to one."""
        return self._encoder[0]

    def _module(self, path: str) -> nn.Module:
        return self._host[0].get_submodule(path)

    @property
    def embed(self) -> nn.Module:
        """The word embeddings."""
        return self._module(self.anatomy.embed)

    @property
    def has_types(self) -> bool:
        """Token types that nobody gives are zeros from a table, as long as that of the positions."""
        return hasattr(self._module(self.anatomy.embed.rpartition(".")[0]), "token_type_ids")

    def dims(self) -> Dims:
        """Sizes of this stack."""
        config, anatomy = self.config, self.anatomy
        words = self.embed.weight
        assert isinstance(words, Tensor)
        hidden, heads = int(config.hidden_size), anatomy.heads(config)
        head = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or hidden // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return Dims(hidden, heads, int(kv_heads), int(head), anatomy.layers(config), words, config, anatomy.specials)

    def listen(self, model: nn.Module) -> None:
        """Learn from a language model's labels which tokens are the answer, whoever calls the model."""
        outputs: Any = getattr(model, "get_output_embeddings", None)
        if self.anatomy.causal and self.anatomy.prompts and outputs is not None and outputs() is not None:
            self._model_names = list(inspect.signature(model.forward).parameters)
            self._handles.append(model.register_forward_pre_hook(self._read_labels, with_kwargs=True))

    def _read_labels(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        labels = {**dict(zip(self._model_names, args, strict=False)), **kwargs}.get("labels")
        if labels is not None:
            self.source = labels == -100
        elif torch.is_tensor(self.source):
            self.source = None

    def adopt(self, layer: SiteLayer) -> None:
        """Take a site in, with the taps that it needs."""
        self.layers.append(layer)
        if layer.site == Site.PROMPT:
            self._fronts.append(layer)
        if layer.place.residual:
            self.tap(Site(layer.place.residual), [layer.index])
        if self.repeats(layer.site):
            attention = self._module(self.anatomy.block_path(layer.index, self.anatomy.attention))
            if getattr(attention, "share_att_key", False):
                self._handles.append(attention.register_forward_hook(self._group_by_group, with_kwargs=True))

    def release(self, layer: SiteLayer) -> None:
        """Forget a site."""
        self.layers.remove(layer)
        if layer in self._fronts:
            self._fronts.remove(layer)

    def tap(self, site: Site, blocks: Iterable[int]) -> None:
        """Remember what leaves a site (for BLOCK_INPUT: what enters the block) in the blocks that ask for it."""
        place = self.anatomy.places[site]
        path = self.anatomy.entry if site == Site.BLOCK_INPUT else place.path
        for index in blocks:
            if (site, index) in self._tapped:
                continue
            self._tapped.add((site, index))
            if place.residual:
                self.tap(Site(place.residual), [index])
            host, tap = self._module(self.anatomy.block_path(index, path)), Tap(self, site, index)
            if site == Site.BLOCK_INPUT:
                self._handles.append(host.register_forward_pre_hook(tap.before, with_kwargs=True))
            else:
                self._handles.append(host.register_forward_hook(tap.after))
            if self.repeats(site):
                # These projections run again, on relative embeddings: the first call of a block is the text's.
                attention = self._module(self.anatomy.block_path(index, self.anatomy.attention))
                self._handles.append(attention.register_forward_pre_hook(tap.fresh))

    @property
    def joints(self) -> range:
        """The blocks before which a batch may fan out; DeBERTa's convolution reads what entered and left the first."""
        first = 2 if getattr(self.config, "conv_kernel_size", 0) else 1
        return range(first, self.anatomy.layers(self.config))

    def joint(self) -> None:
        """Make fanning out possible between the blocks; once, by the first who wants to."""
        if self._joined:
            return
        self._joined = True
        for index in range(1, self.anatomy.layers(self.config)):
            before, block = (self._module(self.anatomy.block_path(i)) for i in (index - 1, index))
            joint = Joint(self, index)
            # After the sites of the block before, which know the narrow batch; before those of the next.
            self._handles.append(before.register_forward_hook(joint.leaves))
            self._handles.append(block.register_forward_pre_hook(joint.enters, with_kwargs=True))

    def repeats(self, site: Site) -> bool:
        """A projection that a block calls again, on relative embeddings."""
        return self.anatomy.shared_position_projections and site in (Site.QUERY, Site.KEY)

    def see_parts(self, out: Tensor, frame: Frame, index: int) -> None:
        """Show tapped parts of a fused projection [B,T,n*width] to the edits of its other parts, before they act."""
        for site in (Site.QUERY, Site.KEY, Site.VALUE):
            if (site, index) in self._tapped:
                i, n = self.anatomy.places[site].part
                frame.seen[site] = out.chunk(n, -1)[i]

    def remove(self) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()
        replay.remove(self.host)
        self.frame = None

    def key_projection(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Weight [out,D] and bias [out] of a block's key projection."""
        place = self.anatomy.places[Site.KEY]
        return merge.weight_of(self._module(self.anatomy.block_path(index, place.path)), place.part)

    def prompts(self, groups: tuple[Group, ...] | None) -> list[tuple[SiteLayer, Group]]:
        """The PROMPT sites with the groups that they serve."""
        return [(layer, group) for layer in self._fronts for group in layer.groups(groups)]

    def served(self, groups: Sequence[Group] | None) -> list[Group]:
        """The groups of a batch that act anywhere in this stack, each once."""
        if groups is not None:
            return [group for group in groups if any(layer.groups((group,)) for layer in self.layers)]
        active = (group for layer in self.layers for group in layer.groups(None))
        return list({(group.method.name, group.names): group for group in active}.values())

    def refresh_views(self, frame: Frame) -> None:
        """Show the widened mask to the views that were made before there was one."""
        for view in frame.views.values():
            mask = frame.mask
            view.mask = mask if mask is None or view.rows is None else mask.index_select(0, view.rows)

    def view(self, group: Group, frame: Frame) -> Frame:
        """The frame as the rows of one group see it."""
        key = (group.method.name, group.names)
        if key not in frame.views:
            prompt, rows = min(group.method.prompt_length(group.cfg), frame.width), group.rows
            if rows is None:
                frame.views[key] = replace(frame, prompt=prompt, memo={}, views={})
            else:
                picked: dict[str, Any] = {
                    name: None if value is None else group.take(value)
                    for name in ("tokens", "mask", "task_ids", "source")
                    for value in (getattr(frame, name),)
                }
                seen: Any = SeenByRows(frame.seen, group)
                frame.views[key] = replace(frame, prompt=prompt, rows=rows, seen=seen, memo={}, views={}, **picked)
        return frame.views[key]

    def _enter(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = {**dict(zip(self._names, args, strict=False)), **kwargs}
        given = memory.given_in(call, self.cache_name)
        if "adapter_names" in call:
            raise UnsupportedError(
                "adapter_names reached the backbone, which would ignore it; "
                "pass it to a PeftModel or to an attentune.TaskModel"
            )
        tokens, embeds = call.get("input_ids"), call.get("inputs_embeds")
        lead = tokens if tokens is not None else embeds
        if lead is None:
            return None
        batch, length = lead.shape[:2]
        groups = None if self.request is None else self.request.groups(batch, lead.device)
        cache = memory.cache_of(self, call, groups)
        mask: Any = call.get("attention_mask")
        odd = torch.is_tensor(mask) and mask.dim() != 2
        self.frame = Frame(
            tokens=tokens,
            mask=mask.bool() if torch.is_tensor(mask) and not odd else None,
            length=length,
            odd_mask=f"attention_mask is [B,T], one number a token, not {list(mask.shape)}" if odd else None,
            past=int(cache.get_seq_length()) if cache is not None else 0,
            causal=self.anatomy.causal,
            training=host.training,
            groups=groups,
            task_ids=call.pop("task_ids", None),
            source=self._source(batch, length, lead.device),
            writes=bool(self._model_names),
            cache=cache,
            batch=batch,
            device=lead.device,
        )
        if host.training and torch.is_grad_enabled():
            replay.install(self)
        check_packed(self, self.frame, call)
        changed = widen(self, self.frame, call)
        if self.encoder is not None:
            changed = widen_cross_attention(self.encoder.front, call) or changed
        changed = changed or self.frame.task_ids is not None or memory.given_in(call, self.cache_name) is not given
        return ((), call) if changed else None

    def _source(self, batch: int, length: int, device: torch.device) -> Tensor | None:
        """[B,T] False for the answer's tokens: those with a label, or generated ones when there is no cache."""
        if not self.anatomy.causal or self.source is None:
            return None
        if isinstance(self.source, int):
            first = torch.arange(length, device=device) < self.source
            return None if length <= self.source else first[None].expand(batch, -1)
        return self.source if self.source.shape == (batch, length) else None

    def _positions(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        front = self.front
        if front is None or front.positions is None:
            return None
        return args, {**kwargs, "position_ids": front.positions.flatten()}  # It takes one row only.

    def _in_rows(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        front = self.front
        return out if front is None or front.positions is None else out.view(*front.positions.shape, -1)

    def _last(self, block: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        frame = self.frame
        if frame is None:
            return None
        states = out[0] if isinstance(out, tuple) else out
        if frame.width:
            frame.states = states
        if not frame.width or self.keeps_prompt or self.anatomy.strip != "block":
            return None
        return (leave(self, frame, states), *out[1:]) if isinstance(out, tuple) else leave(self, frame, states)

    def _leave(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        frame = self.frame
        if frame is None or self.front is None:
            return None
        cache = getattr(out, self.cache_name, None) if self.anatomy.causal else None
        if cache is not None:
            cache.attentune_front = self.front
        if not frame.width or self.keeps_prompt:
            return None
        if self.anatomy.strip == "output":
            frame.states = out[0]  # Past the norm of the stack, as what every pooling reads.
        wide = frame.width + frame.length

        def strip(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(strip(v) for v in value)
            if not torch.is_tensor(value) or value.dim() < 3:
                return value
            if value.dim() == 4 and value.shape[-1] == wide:
                return value[..., frame.width :, frame.width :]
            return leave(self, frame, value) if value.dim() == 3 and value.shape[1] == wide else value

        if isinstance(out, tuple):
            return strip(out)
        for key, value in list(out.items()):
            out[key] = strip(value)
        return out

    def _group_by_group(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        frame = self.frame
        if frame is None or not frame.groups or frame.uniform:
            return None
        call = {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
        whole = list(out)
        try:
            for group in frame.groups:
                rows = group.rows if group.rows is not None else torch.arange(frame.batch, device=frame.device)
                for _, alone, at in group.members():
                    mine = rows if at is None else rows[at]
                    part = {
                        key: value.index_select(0, mine)
                        if key in ("hidden_states", "attention_mask", "query_states") and value is not None
                        else value
                        for key, value in call.items()
                    }
                    self.frame = replace(frame, groups=(alone,), batch=len(mine), memo={}, seen={}, views={})
                    found = zip(whole, module.forward(**part), strict=True)
                    whole = [all_ if all_ is None else all_.index_copy(0, mine, some) for all_, some in found]
        finally:
            self.frame = frame
        return tuple(whole)
