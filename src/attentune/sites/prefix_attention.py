"""Keys and values in front of the text's, inside the softmax of self-attention: where prefix-tuning acts.

Through transformers' AttentionInterface: the attention module gets a copy of its config that names `attend`, which adds
what the module's KEY_VALUE sites give and calls the implementation that was there.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from attentune.method import Site
from attentune.sites.layer import SiteLayer

NAME = "attentune_prefix"


def install(attention: Any) -> None:
    """Let an attention module see KEY_VALUE sites; once, however many there are."""
    if not hasattr(attention, "attentune_config"):
        attention.attentune_config = attention.config
        attention.config = copy.copy(attention.config)
        attention.config._attn_implementation_internal = NAME


def uninstall(attention: Any) -> None:
    """Give the module its own config back."""
    if hasattr(attention, "attentune_config"):
        attention.config = attention.attentune_config
        del attention.attentune_config


def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Any:
    """The module's own attention over [prefix | text].

    query [B,H,Tq,d], key and value [B,Hkv,Tk,d], attention_mask [B,1,Tq,Tk] (0 or True: attend) -> as the module's own.
    """
    eager = sys.modules[type(module).__module__].eager_attention_forward
    base = ALL_ATTENTION_FUNCTIONS.get_interface(module.attentune_config._attn_implementation, eager)
    found = _prefixes(module, key)
    if found is None:
        return base(module, query, key, value, attention_mask, **kwargs)
    keys, values, columns, mixed = found
    mask = _widen(module, query, key, attention_mask, columns, mixed)
    output, weights = base(module, query, torch.cat([keys, key], 2), torch.cat([values, value], 2), mask, **kwargs)
    return output, None if weights is None else weights[..., columns.shape[1] :]


def _prefixes(module: nn.Module, key: Tensor) -> tuple[Tensor, Tensor, Tensor, bool] | None:
    """Keys and values [B,Hkv,P,d] in front of the text, which of them each row has, [B,P], and whether rows differ."""
    batch = len(key)
    parts: list[tuple[Tensor | None, Tensor, Tensor]] = []
    for layer in module.children():
        if not isinstance(layer, SiteLayer) or layer.site != Site.KEY_VALUE or layer.stack.frame is None:
            continue
        frame = layer.stack.frame
        for group in layer.groups(frame.groups):
            k, v = layer.edit(group, None, key, layer.stack.view(group, frame))
            parts.append((group.rows, k.to(key.dtype), v.to(key.dtype)))
    if not parts:
        return None
    length = sum(k.shape[2] for _, k, _ in parts)
    columns = torch.zeros(batch, length, dtype=torch.bool, device=key.device)
    keys = key.new_zeros(batch, key.shape[1], length, key.shape[3])
    values, start = torch.zeros_like(keys), 0
    for rows, k, v in parts:
        stop = start + k.shape[2]
        rows = torch.arange(batch, device=key.device) if rows is None else rows
        pad = (0, 0, start, length - stop)
        keys = keys.index_add(0, rows, nn.functional.pad(k.expand(len(rows), -1, -1, -1), pad))
        values = values.index_add(0, rows, nn.functional.pad(v.expand(len(rows), -1, -1, -1), pad))
        columns[rows, start:stop] = True
        start = stop
    return keys, values, columns, any(rows is not None for rows, _, _ in parts)


def _widen(module: Any, query: Tensor, key: Tensor, mask: Tensor | None, columns: Tensor, mixed: bool) -> Tensor | None:
    q, k = query.shape[2], key.shape[2]
    if mask is None:
        causal = getattr(module, "is_causal", False) and q > 1
        if not causal and not mixed:
            return None
        mask = torch.ones(q, k, dtype=torch.bool, device=key.device)
        # From the top left, as transformers means it: keys of a static cache beyond the queries are not written yet.
        mask = (mask.tril() if causal else mask)[None, None]
    front = columns[:, None, None, :].expand(len(columns), 1, mask.shape[2], -1)
    if mask.dtype != torch.bool:
        front = torch.zeros_like(front, dtype=mask.dtype).masked_fill(~front, torch.finfo(mask.dtype).min)
    return torch.cat([front, mask.expand(len(columns), -1, -1, -1)], 3)


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
