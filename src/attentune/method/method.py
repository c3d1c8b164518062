"""The record of a method, and all that are registered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor

from attentune.method.frame import Frame
from attentune.method.group import Params
from attentune.method.site import Dims, Site

Edit = Callable[[Any, Params, Any, Tensor, Frame], Any]


@dataclass(frozen=True, eq=False)
class Method:
    """A method: a frozen record of functions, nothing inherited."""

    name: str
    config: type[Any]
    edits: Mapping[Site, Edit]
    """Site -> edit."""
    init: Callable[[Any, Site, Dims], dict[str, Tensor]]
    """(cfg, site, dims) -> start of the site's tensors, without the row axis."""
    prompt_length: Callable[[Any], int] = lambda cfg: 0
    """m: rows that PROMPT puts in front."""
    prompt_is_fixed: bool = False
    """What PROMPT puts in front is the same whatever is trained: zeros, say."""
    sites: Callable[[Any], Collection[Site]] | None = None
    """Which of the edits a config switches on; None: all."""
    taps: Callable[[Any], Collection[Site]] = lambda cfg: ()
    """Sites whose output later edits of the same block read in `frame.seen`."""
    remembers: bool = False
    """Its edits use `frame.recall`: what earlier positions left is needed while decoding."""
    frozen: Callable[[Any], tuple[str, ...]] = lambda cfg: ()
    """Tensors that are saved but not trained."""
    attention: tuple[str, ...] = ()
    """Tensors with a learning rate of their own, a recipe's `attention_learning_rate`."""
    shared: tuple[str, ...] = ()
    """Tensors that tasks trained together have in common."""
    mixes: Callable[[Any], tuple[str, ...]] = lambda cfg: ()
    """Names of the prompts whose weights an edit leaves in `frame.memo["prompt_attention"]` [B,J], in their order."""
    resolve: Callable[[Any, Dims], None] = lambda cfg, dims: None
    """Fill the config's `None`s from the backbone, in place; raise UnsupportedError where the method cannot act."""
    sees_padding: Callable[[Any], bool] = lambda cfg: False
    """What stands at padding enters its formula, as in its authors' code."""
    packs: Callable[[Any], bool] = lambda cfg: False
    """Several texts in one row, told by position_ids that start again, are to it as if each had a row of its own."""
    position_shift: Callable[[Any], int] = lambda cfg: 0
    """By how much positions of the text move although nothing stands in front."""
    pools_prompt: Callable[[Any], bool] = lambda cfg: False
    """Position 0 of the output is the first prompt row instead of the first token."""
    prepare: Callable[[Any, Site, Params], Params] = lambda cfg, site, p: p
    """(cfg, site, p) -> floating tensors that the edit is given instead of p: all that depends on the tensors alone.

    Before a tensor's own axes stand R, or R and the blocks, for a bank does it for all blocks of one task at once; what
    comes out has them, too. p is read only, {} at a site without tensors, and may have R = 1 for frozen tensors."""
    merge: Callable[[Any, Site, Params, Tensor, Tensor | None], tuple[Tensor, Tensor | None]] | None = None
    """(cfg, site, p, key weight [out,D], key bias) -> what to add to the host's weight [out,in] and bias."""
    fold: Callable[[Any, Site, Params, Params], dict[str, Tensor]] | None = None
    """(cfg, site, p, p of PROMPT) -> the same function with fewer tensors, for deployment; exact."""
    folded: Callable[[Any], bool] = lambda cfg: True
    """Whether there is nothing left to fold."""
    folded_config: Callable[[Any], Any] = lambda cfg: cfg
    """The config that goes with folded tensors."""

    def sites_of(self, cfg: Any) -> tuple[Site, ...]:
        """The sites that `cfg` switches on."""
        return tuple(self.edits) if self.sites is None else tuple(self.sites(cfg))

    def __reduce__(self) -> Any:
        # Copies of a model (deepcopy, pickle) share the one record of a method.
        return _registered, (self.name,)


METHODS: dict[str, Method] = {}
"""Every registered method by name."""


def _registered(name: str) -> Method:
    return METHODS[name]


def peft_name(method: Method) -> Enum:
    """The member under which peft knows the method: an own enumeration, for peft's is closed to third parties."""
    value = f"ATTENTUNE_{method.name.upper()}"
    if value not in _PEFT_NAMES:
        names: Any = Enum("MethodName", {value: value}, type=str)
        _PEFT_NAMES[value] = names[value]
    return _PEFT_NAMES[value]


_PEFT_NAMES: dict[str, Enum] = {}
