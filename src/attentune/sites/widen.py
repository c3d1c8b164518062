"""Prompt rows: put in front of the text at the entrance of a stack, taken off where the stack ends.

At the entrance, so that position embeddings, norm and dropout treat prompt rows as the papers' code does. Rows of one
batch may have prompts of different length; they are packed as [masked fill | prompt | text].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

from attentune.anatomy import max_length
from attentune.errors import UnsupportedError
from attentune.method import Frame, Group

if TYPE_CHECKING:
    from attentune.sites.layer import SiteLayer
    from attentune.sites.stack import Stack

Served = list[tuple["SiteLayer", Group]]
Call = dict[str, Any]


@dataclass
class Front:
    """What stands in front of the text; kept with the cache while decoding goes on."""

    columns: Tensor
    """[B,W] True where a prompt row stands, False for fill."""
    shift: Tensor | int
    """[B,1] by how much positions of the text move (one number when it is the same for all rows)."""
    mixed: bool
    """Rows differ, so that fill must be masked even where the caller gave no mask."""
    fits: bool
    """All of the batch has positions, its padding included."""
    positions: Tensor | None = None
    """[B,W+T] the positions of this forward, where they cannot be passed as an argument."""


def widen(stack: Stack, frame: Frame, call: Call) -> bool:
    """Put prompts in front; writes width and mask into the frame and changes the call. False: nothing was to do.

    Raises:
        UnsupportedError: two prompts for one row, padding on the left where positions are counted by index, an output
            that cannot be stripped, or more positions than the backbone has.
    """
    served = stack.prompts(frame.groups)
    stack.front = _continued(frame) if frame.past else _started(stack, frame, served, call)
    embeds = _embed(stack, call) if served else None
    prompts = [] if embeds is None else [(g, _prompt(stack, frame, layer, g, embeds)) for layer, g in served]
    front = stack.front
    if front is None:
        return False
    _check(stack, frame, front, call)
    if frame.width and embeds is not None:
        _put_in_front(stack, frame, front, embeds, prompts, call)
    mask = _widen_mask(frame, front, call)
    _tell_positions(stack, frame, front, mask, call)
    if stack.anatomy.global_mask and frame.width:
        _widen_global_mask(frame, front, call)
    if stack.anatomy.sliding and frame.width:
        _see_prompts_in_windows(stack, front, call)
    stack.refresh_views(frame)
    return True


def leave(stack: Stack, frame: Frame, states: Tensor) -> Tensor:
    """[B,W+T,D] -> [B,T,D]; the first real position is the first prompt row where the method pools it."""
    text = states[:, frame.width :]
    for _, group in stack.prompts(frame.groups):
        if group.method.pools_prompt(group.cfg):
            prompt = states[:, frame.width - group.method.prompt_length(group.cfg)]
            swapped = torch.where(_first(frame, text)[..., None], prompt[:, None], text)
            text = group.put(text, group.take(swapped))
    return text


def widen_cross_attention(front: Front | None, call: Call) -> bool:
    """Let a decoder attend to the prompt rows in front of its encoder's text; False: nothing was to do."""
    states, mask = call.get("encoder_hidden_states"), call.get("encoder_attention_mask")
    if states is None or front is None or (mask is not None and mask.shape[1] == states.shape[1]):
        return False
    here = front.columns.repeat_interleave(len(states) // len(front.columns), 0)
    if mask is None:
        mask = here.new_ones(len(states), states.shape[1] - here.shape[1])
    call["encoder_attention_mask"] = torch.cat([here.to(mask.dtype), mask], 1)
    return True


def _first(frame: Frame, text: Tensor) -> Tensor:
    """[B|1,T] True at the first position of the text that is no padding."""
    place = torch.arange(text.shape[1], device=text.device)
    if frame.mask is None:
        return (place == 0)[None]
    return place == frame.mask[:, frame.width : frame.width + frame.length].int().argmax(1, keepdim=True)


def _continued(frame: Frame) -> Front | None:
    front = getattr(frame.cache, "attentune_front", None)
    return front if isinstance(front, Front) else None


def _started(stack: Stack, frame: Frame, served: Served, call: Call) -> Front | None:
    lengths = _positive([(group, group.method.prompt_length(group.cfg)) for _, group in served])
    shifts = _shifts(stack, frame)
    if not lengths and not shifts:
        return None
    if frame.groups is None and len(lengths) > 1:
        raise UnsupportedError(
            "two adapters that lengthen the sequence cannot be active on the same rows; "
            "activate one of them, or give each row its own by adapter_names"
        )
    frame.width = width = max([0, *(m for _, m in lengths)])
    tokens = call.get("input_ids")
    device = (call["inputs_embeds"] if tokens is None else tokens).device
    limit = None if stack.anatomy.rotary else max_length(stack.config)
    fits = limit is None or frame.length + width + sum(by for _, by in shifts) <= limit
    if frame.uniform:
        columns = torch.ones(frame.batch, width, dtype=torch.bool, device=device)
        return Front(columns, width + sum(by for _, by in shifts), mixed=False, fits=fits)
    prompt = _per_row(frame, lengths, device)
    columns = torch.arange(width, device=device) >= width - prompt
    return Front(columns, prompt + _per_row(frame, shifts, device), mixed=True, fits=fits)


def _shifts(stack: Stack, frame: Frame) -> list[tuple[Group, int]]:
    """By how much the text moves where nothing stands in front of it."""
    groups = frame.groups
    if groups is not None:  # Few methods do so, and to find where a group acts takes a look at many sites.
        groups = [group for group in groups if group.method.position_shift(group.cfg)]
    return _positive([(group, group.method.position_shift(group.cfg)) for group in stack.served(groups)])


def _positive(numbers: list[tuple[Group, int]]) -> list[tuple[Group, int]]:
    return [(group, number) for group, number in numbers if number]


def _per_row(frame: Frame, numbers: list[tuple[Group, int]], device: torch.device) -> Tensor:
    per_row = torch.zeros(frame.batch, 1, dtype=torch.long, device=device)
    for group, number in numbers:
        per_row = torch.full_like(per_row, number) if group.rows is None else per_row.index_fill(0, group.rows, number)
    return per_row


def _check(stack: Stack, frame: Frame, front: Front, call: Call) -> None:
    if frame.odd_mask is not None and front.columns.shape[1]:
        raise UnsupportedError(frame.odd_mask)
    if not front.fits and not frame.past:
        _check_room(stack, frame, front)
    if not frame.width:
        return
    if stack.anatomy.global_mask and call.get("output_attentions"):
        raise UnsupportedError("Longformer's attentions cannot be returned while a prompt stands in front of the text")
    mask = call.get("attention_mask")
    if mask is not None and stack.anatomy.by_index:
        frame.require(
            mask[:, 0].bool(),
            lambda _: (
                f"{stack.config.model_type} counts positions by index, so padding on the left would stand between "
                "prompt and text; set padding_side='right'"
            ),
        )


def _check_room(stack: Stack, frame: Frame, front: Front) -> None:
    """Refuse a row whose text moves beyond the positions of the backbone; padding needs none of its own."""
    limit = max_length(stack.config) or 0
    shift = (front.columns.new_zeros(frame.batch, 1, dtype=torch.long) + front.shift)[:, 0]
    end = torch.full_like(shift, frame.length)
    if frame.mask is not None:
        begin = torch.where(shift > 0, frame.mask.int().argmax(1), 0)
        end = frame.length - frame.mask.flip(1).int().argmax(1) - begin
    frame.require(
        end + shift <= limit,
        lambda row: (
            f"{end[row]} tokens and {shift[row]} prompt rows need {end[row] + shift[row]} positions; "
            f"{stack.config.model_type} has {limit}, so the longest text is {limit - shift[row]}"
        ),
    )


def _embed(stack: Stack, call: Call) -> Tensor:
    embeds = call.get("inputs_embeds")
    # By calling the module, so that enable_input_require_grads works.
    return stack.embed(call["input_ids"]) if embeds is None else embeds


def _prompt(stack: Stack, frame: Frame, layer: SiteLayer, group: Group, embeds: Tensor) -> Tensor:
    """What one PROMPT site puts in front, [R,m,E]; while decoding from a cache m is 0, but a site may still derive
    what later sites of its method read.
    """
    view = stack.view(group, frame)
    return layer.edit(group, view.tokens, group.take(embeds), view).to(embeds.dtype)


def _put_in_front(
    stack: Stack, frame: Frame, front: Front, embeds: Tensor, prompts: list[tuple[Group, Tensor]], call: Call
) -> None:
    if frame.uniform:
        block = next(rows for _, rows in prompts if rows.shape[1])
    else:
        block = embeds.new_zeros(frame.batch, frame.width, embeds.shape[-1])
        for group, rows in prompts:
            rows = torch.nn.functional.pad(rows, (0, 0, frame.width - rows.shape[1], 0))
            block = group.put(block, rows)
    call["input_ids"], call["inputs_embeds"] = None, torch.cat([block.expand(frame.batch, -1, -1), embeds], 1)
    types = call.get("token_type_ids")
    if types is None and stack.has_types and not front.fits:
        types = front.columns.new_zeros(embeds.shape[:2], dtype=torch.long)
    if types is not None:
        call["token_type_ids"] = torch.cat([front.columns.new_zeros(front.columns.shape, dtype=types.dtype), types], 1)
    if frame.cache is not None:
        frame.cache.attentune_front = front


def _widen_mask(frame: Frame, front: Front, call: Call) -> Tensor | None:
    """Returns the mask of the text alone, [B,T so far]."""
    mask, width = call.get("attention_mask"), front.columns.shape[1]
    if mask is None and front.mixed:
        so_far = frame.length + max(frame.past - width, 0)
        mask = front.columns.new_ones(frame.batch, so_far, dtype=torch.long)
    if mask is not None and width:
        times = len(mask) // len(front.columns)
        columns = front.columns if times == 1 else front.columns.repeat_interleave(times, 0)
        call["attention_mask"] = torch.cat([columns.to(mask.dtype), mask], 1)
        frame.mask = call["attention_mask"].bool()
    return mask


def _tell_positions(stack: Stack, frame: Frame, front: Front, mask: Tensor | None, call: Call) -> None:
    if call.get("cache_position") is not None:
        call["cache_position"] = None
    kind = stack.anatomy.positions
    uniform = isinstance(front.shift, int) and front.shift == frame.width and (front.fits or frame.past > 0)
    if kind == "relative" or (kind == "table" and uniform):
        return
    text = _text_positions(stack, frame, front, mask, call)
    if frame.width:
        before = torch.arange(frame.width, device=text.device)[None]
        if front.mixed:
            before = (before - (~front.columns).sum(1, keepdim=True)).clamp(min=0)
        text = torch.cat([before.expand(frame.batch, -1), text.expand(frame.batch, -1)], 1)
    if kind == "table":
        front.positions = text
    else:
        call["position_ids"] = text


def _text_positions(stack: Stack, frame: Frame, front: Front, mask: Tensor | None, call: Call) -> Tensor:
    """[B|1,T] where the text stands, moved by the front."""
    given, length, device = call.get("position_ids"), frame.length, front.columns.device
    if given is not None:
        return given + front.shift
    past = max(frame.past - front.columns.shape[1], 0)
    if stack.anatomy.positions == "padding":
        pad = stack.anatomy.pad(stack.config)
        if frame.tokens is None:
            return torch.arange(past, past + length, device=device)[None] + pad + 1 + front.shift
        real = frame.tokens != pad
        return torch.where(real, real.cumsum(1) + past + pad + front.shift, pad)
    index = torch.arange(past, past + length, device=device)[None]
    if mask is not None:
        # Counted from the first real token, so that padding on the left is exact; a row that nothing stands in front of
        # keeps the backbone's own count.
        counted = (index - mask.bool().int().argmax(1, keepdim=True)).clamp(min=0)
        index = torch.where(front.shift > 0, counted, index) if torch.is_tensor(front.shift) else counted
    index = index + front.shift
    if front.fits or frame.past:
        return index
    # Padding may stand where there is no position any more.
    return index.clamp(max=(max_length(stack.config) or 0) - 1)


def _widen_global_mask(frame: Frame, front: Front, call: Call) -> None:
    given = call.get("global_attention_mask")
    if given is None:
        given = front.columns.new_zeros(frame.batch, frame.length, dtype=torch.long)
    # Local attention reaches half a window: only as global rows can prompts be seen by the whole text.
    call["global_attention_mask"] = torch.cat([front.columns.to(given.dtype), given], 1)


def _see_prompts_in_windows(stack: Stack, front: Front, call: Call) -> None:
    width = front.columns.shape[1]

    def touches_prompt(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k < width) | (q < width)

    common: dict[str, Any] = {
        "config": stack.config,
        "inputs_embeds": call["inputs_embeds"],
        "attention_mask": call.get("attention_mask"),
    }
    call["attention_mask"] = {
        "full_attention": create_bidirectional_mask(**common),
        "sliding_attention": create_bidirectional_sliding_window_mask(**common, or_mask_function=touches_prompt),
    }
