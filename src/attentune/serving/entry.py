"""One version of one task: what it is made of, and whether it fits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from attentune.card import TaskCard
from attentune.errors import StoreError
from attentune.method import METHODS, MethodConfig
from attentune.serving.head import Head
from attentune.serving.shelf import Shelf, frozen_tensors

POSITIONS = 4096
"""A number of a config may be no size of a tensor, but one of positions, say: as large as this it may always be."""


@dataclass(eq=False)
class Entry:
    """One version of one task; a replaced task is another entry."""

    name: str
    folder: Path
    """Where it is read from when it is cold; a version that moves takes its entry along."""
    card: TaskCard
    shelf: Shelf
    head: Head
    bytes: int
    """Of its row."""
    sha256: str
    """Of its file of tensors: another one in its place, read when it is cold, would be another version."""
    prompts: tuple[str, ...] = ()
    """What its method mixes for every text, in the order of the weights; most methods mix nothing."""


def check_card(card: TaskCard, config: MethodConfig, room: int | None) -> None:
    """Whether its texts fit into the backbone's `room` positions beside the prompt.

    Raises:
        StoreError: they do not.
    """
    method = METHODS[card.method]
    prompt = method.prompt_length(config) + method.position_shift(config)
    longest = math.inf if room is None else room - prompt
    if not 1 <= card.max_length <= longest:
        raise StoreError(
            f"the card has max_length {card.max_length}; wanted is 1 at least"
            + ("" if room is None else f", and beside {prompt} prompt rows the backbone has room for {longest} tokens")
        )


def check_sizes(config: MethodConfig, tensors: Mapping[str, Tensor]) -> None:
    """Whether the file has tensors as long as its config says, before room is made for what the config says.

    Raises:
        StoreError: a number of the config is larger than anything in the file.
    """
    longest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    for option in fields(config):
        value = getattr(config, option.name)
        if isinstance(value, int) and value > max(longest, POSITIONS):
            raise StoreError(f"the adapter's config has {option.name}={value}, and its longest tensor has {longest}")


def check_known(shelf: Shelf, head: Head, config: MethodConfig, tensors: Mapping[str, Tensor]) -> None:
    """Whether the shelf and the head have a place for every tensor.

    Raises:
        StoreError: there is a tensor without one.
    """
    known = shelf.wanted.keys() | set(head.names) | set(frozen_tensors(config, tensors))
    if unknown := sorted(set(tensors) - known):
        raise StoreError(f"the adapter does not fit this backbone: it has {len(unknown)} unknown tensors, {unknown[0]}")


def flat_row(shelf: Shelf, head: Head, tensors: Mapping[str, Tensor]) -> Tensor:
    """[N + M]: the method's tensors, then the head's."""
    return torch.cat([shelf.row(tensors), head.row(tensors)])
