"""Tiny-attention adapter (Zhao, Tan, Mei, EMNLP 2022, arXiv:2211.01979).

An attention of width a (often 1) inside every block, so that a position's edit depends directly on all other
positions:

    [q|k|v] = W1 LN(h) + b1;   q, k, v <- Wq q + bq, Wk k + bk, Wv v + bv
    delta(h) = W2 (Wo softmax(q k' / sqrt(a / heads)) v + bo) + b2

`structure` says what it reads and where it adds:
    m0  u <- u + delta(u)          u: after the attention (and its norm), before the feed-forward part; the default
    s0  u <- u + delta(h)          h: the block's input (parallel to the attention)
    m1  out <- out + delta(u)      (parallel to the feed-forward part)
    s1  out <- out + delta(h)      (parallel to the whole block)
    seq h <- h + delta(h)          before the block
    double_seq                     seq and m0, a module each

Several experts act one after the other, u <- u + delta_j(u) / E; for deployment `average_experts` makes one of them.

Where the authors' code differs: its averaging leaves the experts' LayerNorm and the head at an earlier checkpoint, so
that another model is evaluated than is trained; here the norm is averaged too. The paper draws experts as a parallel
mean; the code, and this file, run them in sequence. Its start is N(0, 0.02) with Xavier inside
(`init_weights="paper"`); ours has W2 = 0, the unchanged model. Bias of the keys: softmax does not see it, so that
slice never gets a gradient.

With heads of width 1, long rows need no T x T products: see `attentune.scalar_attention`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from attentune import scalar_attention
from attentune.dropped_attention import dropped_attention
from attentune.errors import ConfigError
from attentune.method import Dims, Frame, Method, MethodConfig, Params, Site
from attentune.products import add_product, narrow

STRUCTURES = ("m0", "m1", "s0", "s1", "seq", "double_seq")


@dataclass
class TinyAttentionConfig(MethodConfig):
    """Tiny attention: an attention of a few dimensions in every block."""

    width: int = field(
        default=1, metadata={"help": "a: inner width of the attention, over all its heads", "search": (1, 2, 4, 8)}
    )
    heads: int = field(default=1, metadata={"help": "heads of the tiny attention; divides width"})
    structure: str = field(
        default="m0",
        metadata={"help": "what it reads and where it adds: m0, m1, s0, s1, seq or double_seq", "search": ("m0", "s0")},
    )
    experts: int = field(default=1, metadata={"help": "E: modules in sequence, each with factor 1/E"})
    dropout: float = field(default=0.1, metadata={"help": "dropout on the tiny attention's weights, in training"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.structure not in STRUCTURES:
            raise ConfigError(f"structure is one of {', '.join(STRUCTURES)}, not {self.structure!r}")
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ConfigError(f"heads divides width: width is {self.width}, heads is {self.heads}")
        if self.experts < 1:
            raise ConfigError(f"experts is at least 1, not {self.experts}")


def prepare(cfg: TinyAttentionConfig, site: Site, p: Params) -> dict[str, Tensor]:
    """Linear maps in a row as one, of all E experts: {"inner": [...,E,3a,D] and "inner_bias": [...,E,3a], what makes q,
    k and v of the normed states, "outer": [...,E,a+1,D], what brings their attention up, divided by E, its bias last}

    p: down_weight [...,E,3a,D], down_bias [...,E,3a], in_weight [...,E,3,a,a], in_bias [...,E,3,a], norm_weight,
    norm_bias [...,E,D], out_weight [...,E,a,a], out_bias [...,E,a], up_weight [...,E,D,a], up_bias [...,E,D]
    """
    a = p["in_weight"].shape[-1]
    # [3a,D] instead of [3a,D] then 3 x [a,a] per position. The norm's scale and shift are folded in as well.
    inner = (p["in_weight"] @ p["down_weight"].unflatten(-2, (3, a))).flatten(-3, -2)
    bias = ((p["in_weight"] @ p["down_bias"].unflatten(-1, (3, a))[..., None])[..., 0] + p["in_bias"]).flatten(-2)
    bias = bias + (inner @ p["norm_bias"][..., None])[..., 0]
    last = torch.cat([p["out_weight"].transpose(-1, -2), p["out_bias"][..., None, :]], -2)
    outer = last @ p["up_weight"].transpose(-1, -2) + F.pad(p["up_bias"][..., None, :], (0, 0, a, 0))
    outer = outer / cfg.experts if cfg.experts > 1 else outer
    return {"inner": inner * p["norm_weight"][..., None, :], "inner_bias": bias, "outer": outer}


def project(h: Tensor, inner: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of one expert.  h [B,T,D], inner [R,3a,D], bias [R,3a] -> three of [B,T,a]"""
    qkv = narrow(F.layer_norm(h, h.shape[-1:]), inner) + bias[..., None]
    # Contiguous: PyTorch's fast attention wants the numbers of one position side by side.
    q, k, v = qkv.transpose(1, 2).reshape(*h.shape[:2], -1).contiguous().chunk(3, -1)
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, frame: Frame, dropout: float) -> Tensor:
    """Softmax(q k' / sqrt(w)) v of what the frame allows; long rows of heads of width 1 in linear time, to an error of
    1e-6.  q [B,heads,Tq,w], k, v [B,heads,Tk,w] -> [B,heads,Tq,w]
    """
    if dropout:
        return dropped_attention(q, k, v, frame.allowed(q, k), dropout)
    if frame.unpadded(q, k):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if q.shape[-1] == 1:
        mask, causal = frame.keys(k.shape[-2]), frame.causal and q.shape[-2] > 1
        there = None if mask is None else mask[:, None, None]
        plan = scalar_attention.faster(q, k, there, causal)
        if plan is not None:
            return scalar_attention.attend(q, k, v, there, plan, causal)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=frame.allowed(q, k))


def widen(o: Tensor, outer: Tensor, y: Tensor, overwrite: bool = False) -> Tensor:
    """Y [B,T,D] and what comes out of one expert, o [B,T,a], through outer [R,a+1,D] -> [B,T,D]: o and a one beside it,
    in one product; with `overwrite` y itself is lost
    """
    return add_product(y, F.pad(o, (0, 1), value=1.0).reshape(len(outer), -1, outer.shape[1]), outer, overwrite)


def add_delta(
    cfg: TinyAttentionConfig, p: Params, h: Tensor, y: Tensor, frame: Frame, expert: int = 0, overwrite: bool = False
) -> Tensor:
    """Y and what one expert makes of h, with what `prepare` made.  h, y [B,T,D] -> [B,T,D]; with `overwrite` y itself
    is lost
    """
    inner, bias, outer = (p[key][:, expert] for key in ("inner", "inner_bias", "outer"))
    q, k, v = project(h, inner, bias)
    split = [t.unflatten(-1, (cfg.heads, -1)).transpose(1, 2) for t in (q, k, v)]
    here, frame.here = frame.here, f"{frame.here} {expert}"
    keys, values = frame.recall(split[1], split[2])
    frame.here = here
    dropout = cfg.dropout if frame.training else 0.0
    o = attend(split[0], keys, values, frame, dropout).transpose(1, 2).flatten(2)
    return widen(o, outer, y, overwrite)


def average_experts(p: Params) -> dict[str, Tensor]:
    """One module instead of E, the mean of all their tensors, for deployment.  [..., E, ...] -> [..., 1, ...]

    `p` without the row axis; the config that goes with the result has experts=1. Another function than the sequence of
    experts, near it where they are near each other.
    """
    return {key: value.mean(0, keepdim=True) for key, value in p.items()}


def init(cfg: TinyAttentionConfig, site: Site, dims: Dims) -> dict[str, Tensor]:
    """Every tensor with a leading expert axis."""
    e, a, d = cfg.experts, cfg.width, dims.hidden
    p = {
        "norm_weight": torch.ones(e, d),
        "norm_bias": torch.zeros(e, d),
        "down_weight": torch.empty(e, 3 * a, d).normal_(std=d**-0.5),
        "down_bias": torch.zeros(e, 3 * a),
        "in_weight": torch.eye(a).expand(e, 3, a, a).clone(),
        "in_bias": torch.zeros(e, 3, a),
        "out_weight": torch.eye(a).expand(e, a, a).clone(),
        "out_bias": torch.zeros(e, a),
        "up_weight": torch.zeros(e, d, a),
        "up_bias": torch.zeros(e, d),
    }
    if cfg.init_weights == "paper":
        for name in ("down_weight", "up_weight", "out_weight"):
            p[name].normal_(std=0.02)
        bound = (6 / (4 * a)) ** 0.5
        p["in_weight"].uniform_(-bound, bound)
    elif cfg.init_weights is False:
        p = {key: value + 0.1 * torch.randn_like(value) for key, value in p.items()}
    return p


def _in_sequence(cfg: TinyAttentionConfig, p: Params, y: Tensor, frame: Frame) -> Tensor:
    for expert in range(cfg.experts):
        y = add_delta(cfg, p, y, y, frame, expert, frame.fresh)
    return y


def _parallel(cfg: TinyAttentionConfig, p: Params, read: Tensor, y: Tensor, frame: Frame) -> Tensor:
    read = read.to(y.dtype)
    for expert in range(cfg.experts):
        y = add_delta(cfg, p, read, y, frame, expert, frame.fresh)
    return y


def edit_input(cfg: TinyAttentionConfig, p: Params, x: Tensor, y: Tensor, frame: Frame) -> Tensor:
    """seq, double_seq: before the block."""
    return _in_sequence(cfg, p, y, frame)


def edit_attention(cfg: TinyAttentionConfig, p: Params, x: Tensor, y: Tensor, frame: Frame) -> Tensor:
    """m0, s0, double_seq: after the attention."""
    if cfg.structure == "s0":
        return _parallel(cfg, p, frame.seen[Site.BLOCK_INPUT], y, frame)
    return _in_sequence(cfg, p, y, frame)


def edit_output(cfg: TinyAttentionConfig, p: Params, x: Tensor, y: Tensor, frame: Frame) -> Tensor:
    """m1, s1: after the block."""
    read = Site.BLOCK_INPUT if cfg.structure == "s1" else Site.ATTENTION_OUTPUT
    return _parallel(cfg, p, frame.seen[read], y, frame)


_SITES = {
    "m0": (Site.ATTENTION_OUTPUT,),
    "s0": (Site.ATTENTION_OUTPUT,),
    "m1": (Site.BLOCK_OUTPUT,),
    "s1": (Site.BLOCK_OUTPUT,),
    "seq": (Site.BLOCK_INPUT,),
    "double_seq": (Site.BLOCK_INPUT, Site.ATTENTION_OUTPUT),
}
_TAPS: dict[str, tuple[Site, ...]] = {
    "s0": (Site.BLOCK_INPUT,),
    "s1": (Site.BLOCK_INPUT,),
    "m1": (Site.ATTENTION_OUTPUT,),
}


def sites(cfg: TinyAttentionConfig) -> Collection[Site]:
    """Where this structure acts."""
    return _SITES[cfg.structure]


def taps(cfg: TinyAttentionConfig) -> Collection[Site]:
    """What this structure reads from elsewhere."""
    return _TAPS.get(cfg.structure, ())


METHOD = Method(
    "tiny_attention",
    TinyAttentionConfig,
    {Site.BLOCK_INPUT: edit_input, Site.ATTENTION_OUTPUT: edit_attention, Site.BLOCK_OUTPUT: edit_output},
    init,
    prepare=prepare,
    sites=sites,
    taps=taps,
    remembers=True,
)
