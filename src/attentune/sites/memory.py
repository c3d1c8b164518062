"""The cache of a decoder's self-attention, beside whose layers methods keep what they remember."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

from attentune.errors import UnsupportedError
from attentune.method import Group

if TYPE_CHECKING:
    from attentune.sites.stack import Stack


NAMES = ("cache", "past_key_values")
"""What a forward calls its cache: from transformers 5.24 on, which takes the older name alone, too; and before."""


def name_of(parameters: Sequence[str]) -> str:
    """What the forward with these parameters calls its cache."""
    return NAMES[0] if NAMES[0] in parameters else NAMES[1]


def given_in(call: Mapping[str, Any], name: str) -> Any:
    """The cache that a call brings to a forward that calls it so; None: none."""
    return call[name] if name in call else call.get(NAMES[1])


def put_into(call: MutableMapping[str, Any], name: str, cache: Any) -> None:
    """Let a call bring this cache."""
    call.pop(NAMES[1], None)
    call[name] = cache


def cache_of(stack: Stack, call: dict[str, Any], groups: tuple[Group, ...] | None) -> Any:
    """The cache of a forward; where the backbone would make one and a method remembers it is made here, and passed on.

    Raises:
        UnsupportedError: a method remembers, and the cache cannot take what it remembers in.
    """
    if not stack.anatomy.causal:
        return None
    given = given_in(call, stack.cache_name)
    remembers = [group.method.name for group in stack.served(groups) if group.method.remembers]
    use = call.get("use_cache")  # The models with a language head pass on None.
    if given is None and remembers and (getattr(stack.config, "use_cache", False) if use is None else use):
        checkpointed = stack.host.training and getattr(stack.host, "gradient_checkpointing", False)
        if not checkpointed:
            given = DynamicCache(config=stack.config)
            if stack.encoder is not None:
                given = EncoderDecoderCache(given, DynamicCache(config=stack.config))
            put_into(call, stack.cache_name, given)
    own = given.self_attention_cache if isinstance(given, EncoderDecoderCache) else given
    if remembers and own is not None and not isinstance(own, DynamicCache):
        raise UnsupportedError(
            f"{remembers[0]} keeps a memory beside the cache and needs a DynamicCache, not {type(own).__name__}"
        )
    if remembers and own is not None:
        # One without a config makes its layers as blocks ask for them, and the memory stands behind all of them.
        own.layers.extend(DynamicLayer() for _ in range(stack.anatomy.layers(stack.config) - len(own.layers)))
    return own
