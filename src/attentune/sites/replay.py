"""Checkpointed blocks, run again for their gradients with the batch that they first ran with.

Two batches may go forward before either goes backward (pairs of texts, a reference beside what is trained); edits read
the batch in flight from their stack, which by then is the later one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from attentune.sites.stack import Stack

CHECKPOINT = "_gradient_checkpointing_func"
"""Where transformers keeps what checkpoints a module's blocks."""


class Replay:
    """Checkpoints as `checkpoint` does, for one stack."""

    def __init__(self, stack: Stack, checkpoint: Any) -> None:
        self.stack, self.checkpoint = stack, checkpoint

    def __call__(self, run: Any, *args: Any, **options: Any) -> Any:
        """What `run(*args)` gives, now and when it runs again."""
        stack = self.stack
        # While a compiler traces there is one batch, and what is checkpointed may change nothing outside.
        if torch.compiler.is_compiling():
            return self.checkpoint(run, *args, **options)
        first = stack.frame, stack.front

        def again(*given: Any, **named: Any) -> Any:
            now = stack.frame, stack.front
            stack.frame, stack.front = first
            try:
                return run(*given, **named)
            finally:
                stack.frame, stack.front = now

        return self.checkpoint(again, *args, **options)


def install(stack: Stack) -> None:
    """Checkpointing may be switched on at any time, so this looks before every forward that is trained."""
    for module in stack.host.modules():
        checkpoint = module.__dict__.get(CHECKPOINT)
        if checkpoint is not None and not isinstance(checkpoint, Replay):
            setattr(module, CHECKPOINT, Replay(stack, checkpoint))


def remove(host: nn.Module) -> None:
    """Leave transformers' own behind."""
    for module in host.modules():
        checkpoint = module.__dict__.get(CHECKPOINT)
        if isinstance(checkpoint, Replay):
            setattr(module, CHECKPOINT, checkpoint.checkpoint)
