"""Prefix-propagation (Li, Aitken, Bhambhoria, Zhu, ACL 2023, arXiv:2305.12086), with the prefix-tuning and the
kernel form that its code compares with.

    propagate   m rows of zero word embedding stand in front; before every block  h[:, :m] <- h[:, :m] + dropout(P)
    tune        softmax([K_P; K]) [V_P; V]: keys and values in front of the text's, in every block (prefix-tuning)
    combine     both, m each
    kernel      softmax(K) V + scale * kernel(Q, K_P) V_P, kernel rows normalised over the m prefix keys:
                exp: softmax(q.k / sqrt(d));  rbf: exp(-|q - k|^2 / 2 l^2) / row sum;  poly: (q.k + c)^2 / row sum

Prefix rows get position and type embeddings, norm and dropout; positions 0..m-1, text after them; Longformer: global
attention. `mlp` makes the vectors from one small MLP per stack, P_l = W_l tanh(W e + b) + b_l, which is folded to plain
tensors for deployment. `scale_rows`: h <- s h + P on prefix rows.

Where the authors' code differs, and `paper_exact` follows it: positions of the text also move by m where nothing stands
in front (tune, kernel); on Longformer the kernel divides queries by sqrt(d) twice. By default they are not moved, and
the kernel is q.k / sqrt(d) everywhere. `pool="prefix"`: a head that reads position 0 gets the first prefix row, the
default of the authors' Longformer class. Its kernel scale is frozen on Longformer by oversight; here it is trained.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attentune.dropout import dropout
from attentune.errors import ConfigError
from attentune.method import Dims, Frame, Method, MethodConfig, Params, Site

MODES = ("propagate", "tune", "combine", "kernel")
KERNELS = ("exp", "rbf", "poly")


@dataclass
class PrefixPropagationConfig(MethodConfig):
    """Prefix-propagation: extra positions, steered before every block."""

    length: int = field(default=8, metadata={"help": "m: prefix rows (or prefix keys)", "search": (2, 4, 8, 16)})
    mode: str = field(default="propagate", metadata={"help": "propagate, tune (prefix-tuning), combine or kernel"})
    dropout: float = field(default=0.1, metadata={"help": "dropout on the prefix vectors, in training"})
    pool: str = field(default="text", metadata={"help": "what position 0 of the output is: text or prefix"})
    mlp: int | None = field(
        default=None, metadata={"help": "hidden width of an MLP that makes the vectors; none: plain"}
    )
    scale_rows: bool = field(default=False, metadata={"help": "propagate: also a factor a coordinate, h <- s h + P"})
    kernel: str = field(default="exp", metadata={"help": "kernel: exp, rbf or poly (degree 2)"})
    kernel_scale: float = field(default=1.0, metadata={"help": "kernel: start of the trained scale"})
    lengthscale: float = field(default=64.0, metadata={"help": "kernel rbf: l, fixed"})
    paper_exact: bool = field(
        default=False, metadata={"help": "the authors' positions (tune, kernel) and their kernel on Longformer"}
    )
    heads: int | None = field(default=None, metadata={"help": "filled in: H of the backbone"})
    query_scale: float | None = field(default=None, metadata={"help": "filled in: factor on queries before the kernel"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("mode", MODES), ("kernel", KERNELS), ("pool", ("text", "prefix"))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
        if self.length < 1:
            raise ConfigError(f"length is at least 1, not {self.length}")
        if self.mlp is not None and self.mlp < 1:
            raise ConfigError(f"mlp is at least 1, not {self.mlp}")
        if self.lengthscale <= 0:
            raise ConfigError(f"lengthscale is positive, not {self.lengthscale}")
        if self.scale_rows and self.mode not in ("propagate", "combine"):
            raise ConfigError(f"scale_rows goes with mode propagate or combine, not {self.mode}")
        if self.pool == "prefix" and self.mode not in ("propagate", "combine"):
            raise ConfigError(f"pool='prefix' goes with mode propagate or combine; with {self.mode} no row is in front")

    @property
    def propagates(self) -> bool:
        """Rows stand in front."""
        return self.mode in ("propagate", "combine")

    @property
    def has_keys(self) -> bool:
        """There are prefix keys and values."""
        return self.mode != "propagate"


def steer(h: Tensor, prefix: Tensor, start: int, scale: Tensor | None = None, overwrite: bool = False) -> Tensor:
    """h[:, start:start+m] * scale + prefix.  h [B,T,D], prefix, scale [R,m,D] -> [B,T,D]; `overwrite`: h may be lost"""
    m = prefix.shape[1]
    if scale is None:
        at = torch.arange(start, start + m, device=h.device)
        return (h.index_add_ if overwrite else h.index_add)(1, at, prefix.expand(len(h), -1, -1))
    return torch.cat([h[:, :start], h[:, start : start + m] * scale + prefix, h[:, start + m :]], 1)


def kernel_weights(q: Tensor, k: Tensor, kind: str, lengthscale: float = 64.0, offset: Tensor | None = None) -> Tensor:
    """Kernel between queries and prefix keys, normalised over the keys.

    q [B,H,T,d], k [R,H,m,d], offset [R] (poly) -> [B,H,T,m]
    """
    if kind == "exp":
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    if kind == "rbf":
        near = q.square().sum(-1)[..., None] - 2 * q @ k.transpose(-1, -2) + k.square().sum(-1)[..., None, :]
        # The softmax of log kernels: the same ratio, without underflow.
        return (-near / (2 * lengthscale**2)).softmax(-1)
    assert offset is not None
    weights = (q @ k.transpose(-1, -2) + offset[:, None, None, None]).square()
    return weights / weights.sum(-1, keepdim=True)


def perceptron(p: Params, name: str) -> Tensor:
    """tanh(W e + b) of the MLP's first layer.  seed [R,m,D], down_weight [R,h,D], down_bias [R,h] -> [R,m,h]"""
    inner = p[f"{name}_seed"] @ p[f"{name}_down_weight"].transpose(1, 2) + p[f"{name}_down_bias"][:, None]
    return inner.tanh()


def _vectors(cfg: PrefixPropagationConfig, p: Params, name: str, entrance: Params) -> Tensor:
    """The vectors of one block, [R,m,width]: plain, or made by the MLP, whose first layer stands at the entrance."""
    if cfg.mlp is None:
        return p[name]
    # Run for every block: a re-entrant checkpoint goes backward block by block, and could pass a shared one only once.
    return perceptron(entrance, name) @ p[f"{name}_up_weight"].transpose(1, 2) + p[f"{name}_up_bias"][:, None]


def _dropped(cfg: PrefixPropagationConfig, frame: Frame, vectors: Tensor) -> Tensor:
    if not frame.training or not cfg.dropout:
        return vectors
    rows = frame.batch if frame.rows is None else len(frame.rows)
    return dropout(vectors.expand(rows, -1, -1), cfg.dropout)


def edit_prompt(cfg: PrefixPropagationConfig, p: Params, x: Tensor, y: Tensor, frame: Frame) -> Tensor:
    """M rows of zeros; keeps the MLP's first layer for the blocks."""
    frame.memo["entrance"] = p
    return y.new_zeros(len(y), frame.prompt, y.shape[-1])


def edit_input(cfg: PrefixPropagationConfig, p: Params, x: Tensor, y: Tensor, frame: Frame) -> Tensor:
    """Before every block."""
    if not frame.prompt:
        return y
    vectors = _dropped(cfg, frame, _vectors(cfg, p, "prefix", frame.memo.get("entrance", {})))
    add, scale = vectors.chunk(2, -1) if cfg.scale_rows else (vectors, None)
    return steer(y, add, frame.width - frame.prompt, scale, frame.fresh)


def _keys_values(cfg: PrefixPropagationConfig, p: Params, d: int, frame: Frame) -> tuple[Tensor, Tensor]:
    """Prefix keys and values, [R,H,m,d] each."""
    vectors = _dropped(cfg, frame, _vectors(cfg, p, "past", frame.memo.get("entrance", {})))
    k, v = vectors.chunk(2, -1)
    return k.unflatten(-1, (-1, d)).transpose(1, 2), v.unflatten(-1, (-1, d)).transpose(1, 2)


def edit_key_value(cfg: PrefixPropagationConfig, p: Params, x: Any, y: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """tune, combine: y [B,H,T,d] the text's keys."""
    return _keys_values(cfg, p, y.shape[-1], frame)


def edit_context(cfg: PrefixPropagationConfig, p: Params, x: Tensor, y: Tensor, frame: Frame) -> Tensor:
    """kernel: what the heads give before the output projection, [B,T,H*d]."""
    assert cfg.heads is not None
    assert cfg.query_scale is not None
    q = frame.seen[Site.QUERY].to(y.dtype).unflatten(-1, (cfg.heads, -1)).transpose(1, 2)
    k, v = _keys_values(cfg, p, q.shape[-1], frame)
    offset = F.softplus(p["raw_offset"][:, 0]) if cfg.kernel == "poly" else None
    weights = kernel_weights(q * cfg.query_scale, k, cfg.kernel, cfg.lengthscale, offset)
    return y + (p["scale"][:, :, None, None] * (weights @ v)).transpose(1, 2).flatten(2)


def _names(cfg: PrefixPropagationConfig) -> list[str]:
    return ["prefix"] * cfg.propagates + ["past"] * cfg.has_keys


def resolve(cfg: PrefixPropagationConfig, dims: Dims) -> None:
    """Fill in what the kernel form needs of the architecture."""
    cfg.heads = dims.heads
    exact = cfg.paper_exact and dims.config.model_type == "longformer"
    cfg.query_scale = dims.head**-0.5 if exact else 1.0


def init(cfg: PrefixPropagationConfig, site: Site, dims: Dims) -> dict[str, Tensor]:
    """Plain: {"prefix": [m,D]}, {"past": [m,2*H*d]}; with an MLP, its first layer at PROMPT, the rest in the blocks."""
    m, std = cfg.length, 0.2 if cfg.init_weights is False else 0.02
    if site == Site.PROMPT:
        return {k: v for name in _names(cfg) if cfg.mlp is not None for k, v in _first_layer(cfg, name, dims).items()}
    name = "prefix" if site == Site.BLOCK_INPUT else "past"
    heads = dims.kv_heads if site == Site.KEY_VALUE else dims.heads
    width = dims.hidden * (1 + cfg.scale_rows) if name == "prefix" else 2 * heads * dims.head
    if cfg.mlp is None:
        vectors = torch.empty(m, width).normal_(std=std)
        if name == "prefix" and cfg.scale_rows:
            vectors[:, dims.hidden :] += 1
        if site == Site.CONTEXT and cfg.init_weights is True:
            vectors[:, width // 2 :] = 0
        p = {name: vectors}
    else:
        bias = torch.zeros(width)
        if name == "prefix" and cfg.scale_rows:
            bias[dims.hidden :] = 1
        p = {f"{name}_up_weight": torch.empty(width, cfg.mlp).normal_(std=std), f"{name}_up_bias": bias}
        if site == Site.CONTEXT and cfg.init_weights is True:
            p[f"{name}_up_weight"][width // 2 :] = 0
    if site == Site.CONTEXT:
        p["scale"] = torch.full((1,), cfg.kernel_scale)
        if cfg.kernel == "poly":
            p["raw_offset"] = torch.ones(1)
    return p


def _first_layer(cfg: PrefixPropagationConfig, name: str, dims: Dims) -> dict[str, Tensor]:
    assert cfg.mlp is not None
    return {
        f"{name}_seed": torch.empty(cfg.length, dims.hidden).normal_(),
        f"{name}_down_weight": torch.empty(cfg.mlp, dims.hidden).normal_(std=dims.hidden**-0.5),
        f"{name}_down_bias": torch.zeros(cfg.mlp),
    }


def fold(cfg: PrefixPropagationConfig, site: Site, p: Params, entrance: Params) -> dict[str, Tensor]:
    """The vectors that the MLP makes, as plain tensors."""
    if site == Site.PROMPT:
        return {}
    name = "prefix" if site == Site.BLOCK_INPUT else "past"
    kept = {key: p[key][0] for key in ("scale", "raw_offset") if key in p}
    return {name: _vectors(cfg, p, name, entrance)[0].detach(), **kept}


def sites(cfg: PrefixPropagationConfig) -> Collection[Site]:
    """Where this mode acts."""
    found = [Site.PROMPT] if cfg.propagates or cfg.mlp is not None else []
    found += [Site.BLOCK_INPUT] * cfg.propagates
    found += [Site.KEY_VALUE] * (cfg.mode in ("tune", "combine"))
    return [*found, Site.CONTEXT] if cfg.mode == "kernel" else found


def prompt_length(cfg: PrefixPropagationConfig) -> int:
    """M rows where they stand in front."""
    return cfg.length if cfg.propagates else 0


def position_shift(cfg: PrefixPropagationConfig) -> int:
    """The authors move positions although nothing stands in front."""
    return cfg.length if cfg.paper_exact and not cfg.propagates else 0


METHOD = Method(
    "prefix_propagation",
    PrefixPropagationConfig,
    {
        Site.PROMPT: edit_prompt,
        Site.BLOCK_INPUT: edit_input,
        Site.KEY_VALUE: edit_key_value,
        Site.CONTEXT: edit_context,
    },
    init,
    prompt_length=prompt_length,
    prompt_is_fixed=True,
    sites=sites,
    taps=lambda cfg: (Site.QUERY,) if cfg.mode == "kernel" else (),
    resolve=resolve,
    packs=lambda cfg: not cfg.propagates,
    position_shift=position_shift,
    pools_prompt=lambda cfg: cfg.pool == "prefix",
    fold=fold,
    folded=lambda cfg: cfg.mlp is None,
    folded_config=lambda cfg: replace(cfg, mlp=None),
)
