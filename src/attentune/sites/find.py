"""Where in a model its stacks are."""

from torch import nn

from attentune.sites.stack import STACK_CHILD, Stack


def stacks_in(model: nn.Module) -> list[Stack]:
    """The stacks of a model, an encoder's before its decoder's.

    One stands beside its list of blocks, never in it, and nothing in there has another: not to look there is ten times
    as fast, and every forward asks.
    """
    found: list[Stack] = []
    waiting = [model]
    while waiting:
        module = waiting.pop(0)
        stack = getattr(module, STACK_CHILD, None)
        if isinstance(stack, Stack):
            found.append(stack)
        elif not isinstance(module, nn.ModuleList):
            waiting.extend(module.children())
    return found
