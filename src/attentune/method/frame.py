"""The batch in flight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.utils.import_utils import is_tracing

from attentune.errors import UnsupportedError
from attentune.method.group import Group
from attentune.method.site import Site


# Functions, where a call of `dict[...]` would break the compiler's graph.
def _no_tensors() -> dict[Site, Tensor]:
    return {}


def _nothing() -> dict[str, Any]:
    return {}


def _no_views() -> dict[Any, Frame]:
    return {}


def _no_doubts() -> list[Tensor]:
    return []


@dataclass
class Frame:
    """The batch in flight. One per stack, written once per forward, read by every site."""

    tokens: Tensor | None
    """[B,T] token ids; None where embeddings were passed."""
    mask: Tensor | None
    """[B,past+width+T] True where there is something to attend to; None: everywhere."""
    length: int
    """T: positions of text in this forward."""
    odd_mask: str | None = None
    """Why there is no mask although one was passed: it is not [B,T]."""
    width: int = 0
    """Columns in front of the text in this forward (the longest prompt of the batch)."""
    prompt: int = 0
    """m of the rows that read this frame; their prompt stands in the last m of the `width` columns."""
    past: int = 0
    """Positions already in the cache, prompt included."""
    causal: bool = False
    training: bool = False
    groups: tuple[Group, ...] | None = None
    """Which adapter serves which row; None: the active adapters serve all."""
    task_ids: Tensor | None = None
    """[B] which of an adapter's tasks a row belongs to, for methods that hold several."""
    source: Tensor | None = None
    """[B,T] on causal models: False for tokens of the answer, which an input-dependent prompt may not see."""
    writes: bool = False
    """A language head on a causal model reads what leaves the stack."""
    cache: Any = None
    """The cache of the stack's self-attention, where there is one."""
    seen: dict[Site, Tensor] = field(default_factory=_no_tensors)
    """What left a tapped site of the block now running."""
    memo: dict[str, Any] = field(default_factory=_nothing)
    """What an edit derives once per forward; also read from outside (the attention over prompts, say)."""
    views: dict[Any, Frame] = field(default_factory=_no_views)
    """The frame as each group's rows see it."""
    states: Tensor | None = None
    """[B,width+T,D] the last states before prompt rows are stripped."""
    here: str = ""
    """Which site is running: the key of its memory."""
    fresh: bool = False
    """Nobody else holds the y of the running edit, which may write into it; never where gradients are wanted."""
    own: tuple[Site, Tensor] | None = None
    """[B,...] what an edit at a site has made for the whole batch: the next one there may write into it."""
    rows: Tensor | None = None
    """[R] the rows of the whole batch that this frame shows; None: all."""
    batch: int = 0
    """B of the whole batch."""
    device: torch.device | None = None
    """Where the batch is."""
    doubts: list[Tensor] = field(default_factory=_no_doubts)
    """[R] each: what must hold for every row, and was not looked at while a graph was made."""

    @property
    def uniform(self) -> bool:
        """The same adapters serve every row."""
        return self.groups is None or (
            len(self.groups) == 1 and self.groups[0].which is None and self.groups[0].rows is None
        )

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """`make()` at the first call of this forward, the same value afterwards."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def require(self, holds: Tensor, otherwise: Callable[[int], str]) -> None:
        """Refuse the batch with a sentence about the first row for which it does not hold.  holds [R] bool

        While a graph is made of the forward nothing can be looked at: who replays it finds what must hold in `doubts`.

        Raises:
            UnsupportedError: it does not hold.
        """
        if is_tracing():
            self.doubts.append(holds)
        elif not bool(holds.all()):
            raise UnsupportedError(otherwise(int((~holds).nonzero()[0])))

    def keys(self, length: int) -> Tensor | None:
        """[R,length] which of `length` keys may be attended to; an architecture's own padding on the right may not.

        Raises:
            UnsupportedError: the caller's mask is not [B,T], so that it does not tell tokens from padding.
        """
        if self.odd_mask is not None:
            raise UnsupportedError(self.odd_mask)
        mask, there = self.mask, self.past + self.width + self.length
        if mask is None and length > there:
            rows = self.batch if self.rows is None else len(self.rows)
            mask = torch.ones(rows, there, dtype=torch.bool, device=self.device)
        if mask is None or mask.shape[1] == length:
            return mask
        if mask.shape[1] > length:
            return mask[:, -length:]
        return torch.nn.functional.pad(mask, (0, length - mask.shape[1]), value=False)

    def allowed(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        """Which query may attend to which key, [R,1,Tq|1,Tk], or None: all to all.

        queries [...,Tq,w], keys [...,Tk,w]
        """
        q, k = queries.shape[-2], keys.shape[-2]

        def make() -> Tensor | None:
            mask = self.keys(k)
            allowed = None if mask is None else mask[:, None, None, :]
            if not self.causal or q == 1:
                return allowed
            causal = torch.ones(q, k, dtype=torch.bool, device=keys.device).tril(k - q)[None, None]
            return causal if allowed is None else allowed & causal

        return self.once(f"allowed {q} {k}", make)

    def unpadded(self, queries: Tensor, keys: Tensor) -> bool:
        """Whether queries and keys are the same positions of causal rows, all of them text: PyTorch's attention knows
        that case by itself, without a mask of [Tq,Tk].

        queries [...,Tq,w], keys [...,Tk,w]
        """
        q, k = queries.shape[-2], keys.shape[-2]

        def make() -> bool:
            mask = self.keys(k)
            return mask is None or (not is_tracing() and bool(mask.all()))

        return self.causal and q == k > 1 and self.once(f"unpadded {k}", make)

    def recall(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append to this site's memory, [R,h,T,w] each, and get back all positions since the start of decoding.

        The memory is an extra layer of the self-attention cache, so that beam search reorders it too.

        Raises:
            UnsupportedError: the cache cannot grow (a static cache, say).
        """
        if self.cache is None:
            return key, value
        if not isinstance(self.cache, DynamicCache):
            raise UnsupportedError(
                f"{self.here} keeps a memory beside the cache and needs a DynamicCache, not {type(self.cache).__name__}"
            )
        places: dict[str, int] = self.cache.__dict__.setdefault("attentune_layers", {})
        if self.here not in places:
            places[self.here] = len(self.cache.layers)
            self.cache.layers.append(DynamicLayer())
        if self.rows is None:
            return self.cache.update(key, value, places[self.here])
        whole = [x.new_zeros(self.batch, *x.shape[1:]).index_copy(0, self.rows, x) for x in (key, value)]
        keys, values = self.cache.update(whole[0], whole[1], places[self.here])
        return keys.index_select(0, self.rows), values.index_select(0, self.rows)
