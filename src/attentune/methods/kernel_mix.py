"""Kernel-mix: kernel-wise adapters (Chen et al., NAACL Findings 2022, arXiv:2205.03720).

Self-attention is a kernel estimator, so every head h gets its own low-rank change, and a shared one is added:

    Q_h += B_h A_h x + b_h       + [S2 S1 x]_h          A_h [r_q,D], B_h [d,r_q];  shared rank s_q
    V_h += B_h A_h z + b_h       + [S2 S1 x]_h          z = K_h (base K: A_h [r_v,d]) or x (base X: A_h [r_v,D])
    O   += sum_h B_h A_h o_h + b + S2 S1 concat(o)      o_h: what head h gives, before the output projection

In the paper keys stay as they are; `parts` with a k gives them the shared part alone, for what is adopted from LoRA,
whose maths that is. All of it is linear in what the frozen maps read, so it merges exactly: base K adds B A W_K,h to
W_V,h. `parts` chooses among q, v and o: "qvo", or the budget-matched "qv".

Where the authors' code differs: its cache keeps un-updated values (several units in the logits of a cached step); here
the cache holds what attention reads. Its scripts leave the head frozen at random. Shared parts are scaled by alpha / s
only where alpha > 1.5; here `alpha=None` means 1. Its start ("Houlsby": all tensors from a normal of 0.01, cut at 2) is
`init_weights="paper"`; ours has B = 0 and b = 0, the unchanged model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attentune.dropout import dropout
from attentune.errors import ConfigError
from attentune.method import Dims, Frame, Method, MethodConfig, Params, Site
from attentune.products import add_product, narrow


@dataclass
class KernelMixConfig(MethodConfig):
    """Kernel-mix: low-rank changes head by head."""

    parts: str = field(
        default="qvo",
        metadata={
            "help": "which of q, k, v, o change: any of these letters (k: not in the paper)",
            "search": ("v", "qv", "qvo"),
        },
    )
    q_rank: int = field(default=1, metadata={"help": "rank a head for q; 0: none", "search": (1, 2)})
    v_rank: int = field(default=2, metadata={"help": "rank a head for v and o; 0: none", "search": (1, 2, 4)})
    q_shared_rank: int = field(default=2, metadata={"help": "shared rank for q and k; 0: none", "search": (0, 2, 4)})
    v_shared_rank: int = field(default=4, metadata={"help": "shared rank for v and o; 0: none", "search": (0, 4, 8)})
    v_base: str = field(
        default="K", metadata={"help": "what the change of v reads: K the head's keys, X the block's input"}
    )
    alpha: float | None = field(default=None, metadata={"help": "shared parts are scaled by alpha / rank; none: by 1"})
    biases: bool = field(
        default=True, metadata={"help": "biases a head; false where the projections have none to merge into"}
    )
    dropout: float = field(default=0.1, metadata={"help": "dropout on what the low-rank maps read, in training"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts or set(self.parts) - set("qkvo"):
            raise ConfigError(f"parts is made of the letters q, k, v and o, not {self.parts!r}")
        if self.v_base not in ("K", "X"):
            raise ConfigError(f"v_base is K or X, not {self.v_base!r}")
        ranks = (self.q_rank, self.v_rank, self.q_shared_rank, self.v_shared_rank)
        if min(ranks) < 0 or not any(ranks):
            raise ConfigError(f"ranks are at least 0 and not all 0; got {ranks}")
        if {"k", "v"} <= set(self.parts) and self.v_base == "K" and self.v_rank:
            raise ConfigError("v_base K reads the frozen keys, and parts with k changes them; wanted is v_base X there")
        trained = {
            "q": self.q_rank or self.q_shared_rank or self.biases,
            "k": self.q_shared_rank,
            "v": self.v_rank or self.v_shared_rank or self.biases,
            "o": self.v_rank or self.v_shared_rank or self.biases,
        }
        if not any(trained[part] for part in self.parts):
            raise ConfigError(
                f"parts={self.parts!r} has nothing to train: wanted is a rank there (k: q_shared_rank) or, but for k, "
                f"biases; got q_rank={self.q_rank}, v_rank={self.v_rank}, q_shared_rank={self.q_shared_rank}, "
                f"v_shared_rank={self.v_shared_rank}, biases={self.biases}"
            )


Factors = tuple[Tensor, Tensor]
"""Of a product B A of rank r, from width i to width o: A [...,r,i] and the transpose of B [...,r,o]."""


def per_head(a: Tensor, b: Tensor) -> Factors:
    """B_h A_h x for every head, of x [B,T,D].  a [...,H,r,D], b [...,H,d,r] -> i = D, o = H*d"""
    return a.flatten(-3, -2), spread(b.transpose(-1, -2))


def from_heads(a: Tensor, b: Tensor) -> Factors:
    """B_h A_h x_h, each head reading its own slice of x [B,T,H*d].  a [...,H,r,d], b [...,H,d,r] -> i = o = H*d"""
    return spread(a), spread(b.transpose(-1, -2))


def into_sum(a: Tensor, b: Tensor) -> Factors:
    """sum_h B_h A_h x_h, of x [B,T,H*d].  a [...,H,r,d], b [...,H,D,r] -> i = H*d, o = D"""
    return spread(a), b.transpose(-1, -2).flatten(-3, -2)


def spread(w: Tensor) -> Tensor:
    """Heads' matrices on the diagonal, zeros beside them.  w [...,H,o,i] -> [...,H*o,H*i]

    A few heads' small ranks are cheaper as one matrix product than as one a head with transposes around it.
    """
    return torch.diag_embed(w.movedim(-3, -1), dim1=-4, dim2=-2).flatten(-2).flatten(-3, -2)


def prepare(cfg: KernelMixConfig, site: Site, p: Params) -> dict[str, Tensor]:
    """All products of a site side by side, of rank s that reads the keys and of rank r that reads the site's input:
    {"keys": A [...,s,H*d], "inner": A [...,r,in], "outer": the transposes of B [...,s+r,out], and last a row of biases}
    """
    reads_keys = site == Site.VALUE and cfg.v_base == "K"
    keys: list[Factors] = []
    inner: list[Factors] = []
    if "head_a" in p:
        shape = into_sum if site == Site.OUTPUT else from_heads if reads_keys else per_head
        (keys if reads_keys else inner).append(shape(p["head_a"], p["head_b"]))
    if "shared_a" in p:
        scale, b = _scale(cfg, p), p["shared_b"].transpose(-1, -2)
        inner.append((p["shared_a"], b if scale == 1 else scale * b))
    found = {name: _joined([a for a, _ in some]) for name, some in (("keys", keys), ("inner", inner)) if some}
    outer = [b for _, b in keys + inner]
    if "head_bias" in p:
        outer.append((p["head_bias"] if site == Site.OUTPUT else p["head_bias"].flatten(-2))[..., None, :])
    return {**found, "outer": _joined(outer)} if outer else found


def add(y: Tensor, inner: Sequence[Tensor], outer: Tensor, overwrite: bool = False) -> Tensor:
    """Y [B,T,o] + what was read, [R,r,n] each with R n = B T, times outer [R,sum of r,o] -> [B,T,o].

    It is one matrix product. One more row of `outer` is a bias. With `overwrite` y itself is lost.
    """
    read = list(inner)
    if sum(part.shape[1] for part in read) < outer.shape[1]:
        read.append(y.new_ones(len(outer), 1, y.shape[0] * y.shape[1] // len(outer)))
    return add_product(y, _joined(read).transpose(1, 2), outer, overwrite)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), -2)


def _scale(cfg: KernelMixConfig, p: Params) -> float:
    return 1.0 if cfg.alpha is None else cfg.alpha / p["shared_a"].shape[-2]


def _dropped(cfg: KernelMixConfig, frame: Frame, x: Tensor) -> Tensor:
    return dropout(x, cfg.dropout) if frame.training and cfg.dropout else x


def _handed_on(cfg: KernelMixConfig, frame: Frame, x: Tensor) -> Tensor:
    """The dropped x for q, which v of the same block takes over: a mask less to draw, a tensor less to keep."""
    dropped = _dropped(cfg, frame, x)
    frame.memo["dropped"] = (x, dropped)
    return dropped


def _taken_over(cfg: KernelMixConfig, frame: Frame, x: Tensor) -> Tensor:
    # Taken out, so that a block that is run again for its gradients draws what it drew before.
    given, dropped = frame.memo.pop("dropped", (None, None))
    return dropped if given is x else _dropped(cfg, frame, x)


def _add(p: Params, x: Tensor, y: Tensor, frame: Frame, keys: Tensor | None = None) -> Tensor:
    read = [narrow(z, p[name]) for name, z in (("keys", keys), ("inner", x)) if z is not None and name in p]
    return add(y, read, p["outer"], frame.fresh) if "outer" in p else y


def edit_query(cfg: KernelMixConfig, p: Params, x: Tensor, y: Tensor, frame: Frame) -> Tensor:
    """X [B,T,D], y [B,T,H*d]"""
    return _add(p, _handed_on(cfg, frame, x), y, frame)


def edit_key(cfg: KernelMixConfig, p: Params, x: Tensor, y: Tensor, frame: Frame) -> Tensor:
    """X [B,T,D], y [B,T,H*d]"""
    return _add(p, _dropped(cfg, frame, x), y, frame)


def edit_value(cfg: KernelMixConfig, p: Params, x: Tensor, y: Tensor, frame: Frame) -> Tensor:
    """X [B,T,D], y [B,T,H*d]"""
    x = _taken_over(cfg, frame, x)
    keys = _dropped(cfg, frame, frame.seen[Site.KEY].to(y.dtype)) if "keys" in p else None
    return _add(p, x, y, frame, keys)


def edit_output(cfg: KernelMixConfig, p: Params, x: Tensor, y: Tensor, frame: Frame) -> Tensor:
    """X [B,T,H*d], y [B,T,D]"""
    return _add(p, _dropped(cfg, frame, x), y, frame)


def merge(
    cfg: KernelMixConfig, site: Site, p: Params, key_weight: Tensor, key_bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """What the edits of a site add to its weight [out,in] and bias [out]; R = 1."""
    bias = p["head_bias"][0].flatten() if "head_bias" in p else None
    weight = torch.zeros(1, device=key_weight.device, dtype=torch.float32)
    if "head_a" in p:
        both = p["head_b"][0] @ p["head_a"][0]
        if site == Site.OUTPUT:
            weight = both.transpose(0, 1).flatten(1)
        elif site == Site.VALUE and cfg.v_base == "K":
            weight = (both @ key_weight.to(both.dtype).unflatten(0, (len(both), -1))).flatten(0, 1)
            if key_bias is not None:
                moved = (both @ key_bias.to(both.dtype).unflatten(0, (len(both), -1))[..., None]).flatten()
                bias = moved if bias is None else bias + moved
        else:
            weight = both.flatten(0, 1)
    if "shared_a" in p:
        weight = weight + _scale(cfg, p) * p["shared_b"][0] @ p["shared_a"][0]
    return weight, bias


def init(cfg: KernelMixConfig, site: Site, dims: Dims) -> dict[str, Tensor]:
    """{"head_a": [H,r,in], "head_b": [H,out,r], "head_bias": [H,d] or [D], "shared_a": [s,in], "shared_b": [out,s]}"""
    h = dims.kv_heads if site in (Site.KEY, Site.VALUE) else dims.heads
    rank, shared = (
        (cfg.v_rank, cfg.v_shared_rank) if site in (Site.VALUE, Site.OUTPUT) else (cfg.q_rank, cfg.q_shared_rank)
    )
    rank = 0 if site == Site.KEY else rank
    narrow = site == Site.OUTPUT or (site == Site.VALUE and cfg.v_base == "K")
    width_in = dims.heads * dims.head if site == Site.OUTPUT else dims.hidden
    width_out = dims.hidden if site == Site.OUTPUT else h * dims.head
    p: dict[str, Tensor] = {}
    if rank:
        p["head_a"] = torch.empty(h, rank, dims.head if narrow else dims.hidden)
        p["head_b"] = torch.empty(h, dims.hidden if site == Site.OUTPUT else dims.head, rank)
    if cfg.biases and site != Site.KEY:
        p["head_bias"] = torch.empty(dims.hidden) if site == Site.OUTPUT else torch.empty(h, dims.head)
    if shared:
        p["shared_a"], p["shared_b"] = torch.empty(shared, width_in), torch.empty(width_out, shared)
    for name, value in p.items():
        if cfg.init_weights is not True:
            value.copy_(torch.fmod(torch.randn(value.shape), 2) * (0.01 if cfg.init_weights == "paper" else 0.1))
        elif name.endswith("_a"):
            value.normal_(std=value.shape[-1] ** -0.5)
        else:
            value.zero_()
    return p


_SITES = {"q": Site.QUERY, "k": Site.KEY, "v": Site.VALUE, "o": Site.OUTPUT}


def sites(cfg: KernelMixConfig) -> Collection[Site]:
    """The parts that change."""
    return [_SITES[letter] for letter in "qkvo" if letter in cfg.parts]


def taps(cfg: KernelMixConfig) -> Collection[Site]:
    """Base K reads the keys."""
    return (Site.KEY,) if "v" in cfg.parts and cfg.v_base == "K" and cfg.v_rank else ()


METHOD = Method(
    "kernel_mix",
    KernelMixConfig,
    {Site.QUERY: edit_query, Site.KEY: edit_key, Site.VALUE: edit_value, Site.OUTPUT: edit_output},
    init,
    prepare=prepare,
    sites=sites,
    taps=taps,
    packs=lambda cfg: True,
    merge=merge,
)
