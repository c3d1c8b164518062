"""What a method is: a table from places of a transformer to pure functions.

    Edit = (cfg, p, x, y, frame) -> y'

`p` holds the parameters of one site, every tensor with a leading row axis [R, ...]: R = 1 (one task) or R = B (a task
per row). Training reads them for one task, serving row by row: the line of mathematics is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum, StrEnum
from typing import Any, ClassVar

import torch
from peft.config import PeftConfig
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.utils.import_utils import is_tracing

from attentune.errors import ConfigError, UnsupportedError

Params = Mapping[str, Tensor]


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


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of a batch that share method and config: their parameters stack to [R, ...]."""

    method: Method
    cfg: Any
    names: tuple[str, ...]
    """The adapters present."""
    which: Tensor | None = None
    """[R] index into names, a row each; None: the one adapter serves every row (R = 1)."""
    rows: Tensor | None = None
    """[R] which rows of the batch; None: all of them, in order."""
    tensors: Mapping[Any, Params] | None = None
    """Layer -> the rows' parameters, [R, ...] or [1, ...], where a bank holds them instead of the layers."""

    def members(self) -> Iterator[tuple[str, Group, Tensor | None]]:
        """(name, group of that adapter alone, its rows among the group's: None for all)."""
        for i, name in enumerate(self.names):
            mine = None if self.which is None else (self.which == i).nonzero().squeeze(-1)
            tensors = self.tensors
            if tensors is not None and mine is not None:
                # Equal tasks have equal rows: the first stands for them all.
                tensors = {
                    layer: {key: value if len(value) == 1 else value[mine[:1]] for key, value in p.items()}
                    for layer, p in tensors.items()
                }
            yield name, Group(self.method, self.cfg, (name,), tensors=tensors), mine


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


Edit = Callable[[Any, Params, Any, Tensor, Frame], Any]


@dataclass
class MethodConfig(PeftConfig):
    """What every method's config has. Fields are JSON; `None` means: chosen from the backbone when first used."""

    method: ClassVar[Method | None] = None

    target_modules: list[str] | None = field(
        default=None, metadata={"help": "not used: the anatomy of the architecture says where a method acts"}
    )
    exclude_modules: list[str] | None = field(default=None, metadata={"help": "not used, see target_modules"})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules of the model that are trained and saved too, e.g. a native head"}
    )
    layers_to_transform: list[int] | None = field(
        default=None, metadata={"help": "blocks that are edited, counted from 0; none named: all"}
    )
    head: dict[str, Any] | None = field(
        default=None, metadata={"help": "the task's head: a HeadConfig, or nothing for a native head"}
    )
    init_weights: bool | str = field(
        default=True,
        metadata={"help": "true: start at the unchanged model; false: a random start; 'paper': the authors' start"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # pyright: ignore[reportUnknownMemberType]
        method = type(self).method
        if method is None:
            raise ConfigError(f"{type(self).__name__} belongs to no registered method; call attentune.register first")
        self.peft_type = peft_name(method)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        if is_dataclass(self.head) and not isinstance(self.head, type):
            self.head = asdict(self.head)
        if isinstance(self.layers_to_transform, int):
            self.layers_to_transform = [self.layers_to_transform]
        blocks: Any = self.layers_to_transform
        if isinstance(blocks, str) or not all(isinstance(block, int) for block in blocks or ()):
            raise ConfigError(f"layers_to_transform is a list of blocks, counted from 0, found {blocks!r}")
        if self.layers_to_transform == []:
            raise ConfigError("layers_to_transform names no block; leave it out to edit all of them")
        if (self.head or {}).get("pooling") == "prefix" and not method.prompt_length(self):
            raise ConfigError(f"a head with pooling prefix reads a prompt row, and {method.name} has none as it is set")
        if self.init_weights not in (True, False, "paper"):
            raise ConfigError(f"init_weights is true, false or 'paper', not {self.init_weights!r}")
        dropout = getattr(self, "dropout", 0.0)
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout is at least 0 and below 1, not {dropout}")

    def key(self) -> str:
        """Adapters with equal keys have equal shapes and run as one group; fields marked `record` enter no formula."""
        own = {f.name for f in fields(self) if not f.metadata.get("record")} - _SHARED_FIELDS
        return repr(sorted((name, getattr(self, name)) for name in own))


_SHARED_FIELDS = {f.name for f in fields(PeftConfig)} | {"modules_to_save", "head", "init_weights"}


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
    position_shift: Callable[[Any], int] = lambda cfg: 0
    """By how much positions of the text move although nothing stands in front."""
    pools_prompt: Callable[[Any], bool] = lambda cfg: False
    """Position 0 of the output is the first prompt row instead of the first token."""
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
