"""Several texts packed into one row: transformers keeps them apart where position_ids start again; few methods do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from attentune.method import Frame

if TYPE_CHECKING:
    from attentune.sites.stack import Stack


def check_packed(stack: Stack, frame: Frame, call: Mapping[str, Any]) -> None:
    """Refuse packed rows, which have no mask, where an adapter's method would mix their texts.

    Raises:
        UnsupportedError: the positions of a row do not rise by one, and a method does not keep packed texts apart.
    """
    positions = call.get("position_ids")
    if not torch.is_tensor(positions) or positions.dim() != 2 or not frame.causal or frame.past:
        return
    if call.get("attention_mask") is not None:
        return
    served = stack.served(frame.groups)
    mixing = next((group.method.name for group in served if not group.method.packs(group.cfg)), None)
    if mixing is not None:
        rising = (positions.diff(dim=-1) == 1).all(-1).expand(frame.batch)
        frame.require(
            rising,
            lambda row: (
                f"the position_ids of row {row} do not rise by one, as where several texts are packed into it, and "
                f"{mixing} would mix them; give each text a row of its own, with an attention_mask"
            ),
        )
