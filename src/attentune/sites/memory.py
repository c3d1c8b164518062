"""The cache of a decoder's self-attention, beside whose layers methods keep what they remember."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

from attentune.errors import UnsupportedError
from attentune.method import Group

if TYPE_CHECKING:
    from attentune.sites.stack import Stack


def cache_of(stack: Stack, call: dict[str, Any], groups: tuple[Group, ...] | None) -> Any:
    """The cache of a forward; where the backbone would make one and a method remembers it is made here, and passed on.

    Raises:
        UnsupportedError: a method remembers, and the cache cannot take what it remembers in.
    """
    if not stack.anatomy.causal:
        return None
    given: Any = call.get("past_key_values")
    remembers = [group.method.name for group in stack.served(groups) if group.method.remembers]
    use = call.get("use_cache")  # The models with a language head pass on None.
    if given is None and remembers and (getattr(stack.config, "use_cache", False) if use is None else use):
        checkpointed = stack.host.training and getattr(stack.host, "gradient_checkpointing", False)
        if not checkpointed:
            given = DynamicCache(config=stack.config)
            if stack.encoder is not None:
                given = EncoderDecoderCache(given, DynamicCache(config=stack.config))
            call["past_key_values"] = given
    own = given.self_attention_cache if isinstance(given, EncoderDecoderCache) else given
    if remembers and own is not None and not isinstance(own, DynamicCache):
        raise UnsupportedError(
            f"{remembers[0]} keeps a memory beside the cache and needs a DynamicCache, not {type(own).__name__}"
        )
    if remembers and own is not None:
        # One without a config makes its layers as blocks ask for them, and the memory stands behind all of them.
        own.layers.extend(DynamicLayer() for _ in range(stack.anatomy.layers(stack.config) - len(own.layers)))
    return own
