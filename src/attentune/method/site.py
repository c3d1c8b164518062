"""The places of a transformer where a method can act, and the sizes that it finds there."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor


class Site(StrEnum):
    """A place where a method can act. PROMPT alone lengthens the sequence; KEY_VALUE gives keys and values."""

    PROMPT = "prompt"
    """What stands in front of the word embeddings: x [B,T] tokens, y [B,T,E] embeddings -> [B,m,E]."""
    BLOCK_INPUT = "block_input"
    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    KEY_VALUE = "key_value"
    """Keys and values in front of the text's, inside the softmax: -> (k [R,H,m,d], v [R,H,m,d])."""
    CONTEXT = "context"
    """What enters the output projection, [B,T,H*d]."""
    OUTPUT = "output"
    ATTENTION_OUTPUT = "attention_output"
    """The residual stream after the attention's sum (and norm, in post-norm blocks)."""
    BLOCK_OUTPUT = "block_output"


@dataclass(frozen=True)
class Dims:
    """The sizes that an `init` needs."""

    hidden: int
    heads: int
    kv_heads: int
    head: int
    layers: int
    words: Tensor
    """[V,E] the word embeddings: prompts may start from rows of it."""
    config: Any
    """The backbone's config, for special tokens."""
    specials: tuple[str | int, ...] = ()
    """The anatomy's special-token rule."""

    @property
    def embedding(self) -> int:
        """E."""
        return int(self.words.shape[1])
