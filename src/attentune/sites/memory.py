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
"""What a forward calls its cache: from transformers 5.24 on, which takes the other name too; and before."""


def name_of(parameters: Sequence[str]) -> str | None:
    """What the forward with these parameters calls its cache; None: it knows none."""
    return next((name for name in NAMES if name in parameters), None)


def given_in(call: Mapping[str, Any]) -> Any:
    """The cache that a call brings, by whichever name; None: none."""
    cache = call.get(NAMES[0])
    return call.get(NAMES[1]) if cache is None else cache


def put_into(call: MutableMapping[str, Any], name: str, cache: Any) -> None:
    """Let a call bring this cache, by the name that its forward knows."""
    for other in NAMES:
        call.pop(other, None)
    call[name] = cache


def cache_of(stack: Stack, call: dict[str, Any], groups: tuple[Group, ...] | None) -> Any:
    """The cache of a forward; where the backbone would make one and a method remembers it is made here, and passed on.

    Raises:
        UnsupportedError: a method remembers, and the cache cannot take what it remembers in.
    """
    if not stack.anatomy.causal:
        return None
    given = given_in(call)
    remembers = [group.method.name for group in stack.served(groups) if group.method.remembers]
    use = call.get("use_cache")  # The models with a language head pass on None.
    wanted = getattr(stack.config, "use_cache", False) if use is None else use
    if given is None and remembers and wanted and stack.cache_name is not None:
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
