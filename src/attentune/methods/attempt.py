"""ATTEMPT: attentional mixtures of soft prompts (Asai, Salehi, Peters, Hajishirzi, EMNLP 2022, arXiv:2205.11961).

K source prompts, trained before and frozen, and the task's own target prompt are mixed anew for every text:

    x = max over tokens of the word embeddings;      p_j = max over the m rows of prompt j, j = 1..K and the target
    g = LN(W_up SiLU(W_down x));                     a = softmax_j(p_j . g / T)
    rows in front of the text = sum_j a_j P_j + P_target

`attention`: sub (above), constant (uniform weights), dot (g = x), linear (g = LN(W x)), none (prompt tuning: the
target alone). `source_names` say what the sources are. `tasks` > 1 holds one target prompt a task under one attention;
`task_ids` [B] says whose a row is (without a `task_type`: peft's models of a task keep `task_ids` for themselves).

Where the authors' code differs: its max-pool runs over padding, so an answer depends on the batch; here padding is
masked (`paper_exact` does not mask). Its dot and linear attention cannot run, its attention norm and its second
learning rate never train by oversight. T = d e fits T5's large embeddings; the default here is a quarter of d times
their RMS, the same softness on any backbone. Prompts start from rows of the vocabulary. On causal models the answer
(tokens whose label is not -100) is left out of the max, or it would leak into its own prompt; so they do not train
without `labels` in the forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils.import_utils import is_tracing

from attentune.errors import ConfigError, UnsupportedError
from attentune.method import Dims, Frame, Method, MethodConfig, Params, Site

ATTENTIONS = ("sub", "constant", "dot", "linear", "none")
ATTENTION_TENSORS = ("attn_down", "attn_up", "attn_linear", "norm_weight", "norm_bias")
TARGET = "target"
"""The task's own prompt among the names of those that are mixed."""


@dataclass
class AttemptConfig(MethodConfig):
    """ATTEMPT: a mixture of soft prompts, weighted by attention to the text."""

    length: int = field(default=8, metadata={"help": "m: rows of every prompt", "search": (4, 8, 16)})
    sources: int = field(default=4, metadata={"help": "K: source prompts", "search": (1, 2, 4)})
    attention: str = field(default="sub", metadata={"help": "sub, constant, dot, linear, or none (prompt tuning)"})
    bottleneck: int = field(
        default=100, metadata={"help": "sub: inner width of the attention's network", "search": (4, 16, 64)}
    )
    temperature: float | None = field(
        default=None, metadata={"help": "T of the softmax; default: a quarter of width times RMS of the embeddings"}
    )
    ignore_target: bool = field(default=False, metadata={"help": "the sources alone, without the task's own prompt"})
    tasks: int = field(default=1, metadata={"help": "target prompts under one shared attention; without a task_type"})
    task: int = field(default=0, metadata={"help": "the target prompt of rows without task_ids"})
    train_sources: bool = field(default=False, metadata={"help": "train the source prompts too (none at hand, say)"})
    paper_exact: bool = field(default=False, metadata={"help": "max-pool over padding too, as the authors' code does"})
    source_names: list[str] | None = field(
        default=None, metadata={"help": "names of the source prompts, in their order", "record": True}
    )
    source_hashes: list[str] | None = field(
        default=None, metadata={"help": "their sha256, in the order of the names", "record": True}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention not in ATTENTIONS:
            raise ConfigError(f"attention is one of {', '.join(ATTENTIONS)}, not {self.attention!r}")
        if self.length < 1 or self.tasks < 1 or not 0 <= self.task < self.tasks:
            raise ConfigError(
                f"length and tasks are at least 1 and task is below tasks; got {self.length}, {self.tasks}, {self.task}"
            )
        if self.tasks > 1 and self.task_type is not None:
            raise ConfigError(
                f"{self.tasks} tasks are told apart by task_ids, which peft's models with a task_type, here "
                f"{getattr(self.task_type, 'value', self.task_type)}, do not pass on; leave task_type out"
            )
        if self.sources < 0 or self.bottleneck < 1:
            raise ConfigError(
                f"sources is at least 0 and bottleneck at least 1; got {self.sources} and {self.bottleneck}"
            )
        if self.ignore_target and (self.sources < 1 or self.attention == "none"):
            raise ConfigError("ignore_target leaves nothing to mix: it needs at least one source and an attention")
        for given in (self.source_names, self.source_hashes):
            if given is not None and len(given) != self.sources:
                raise ConfigError(f"sources is {self.sources}, and {len(given)} are named: {', '.join(given)}")
        if self.temperature is not None and self.temperature <= 0:
            raise ConfigError(f"temperature is positive, not {self.temperature}")


def max_pool(x: Tensor, mask: Tensor | None) -> Tensor:
    """X [B,T,E], mask [B,T] -> [B,E]; a row with nothing in the mask gives zeros."""
    if mask is None:
        return x.amax(1)
    pooled = x.masked_fill(~mask[..., None], torch.finfo(x.dtype).min).amax(1)
    return pooled * mask.any(1, keepdim=True).to(x.dtype)


def query_sub(x: Tensor, down: Tensor, up: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
    """LN(up SiLU(down x)).  x [B,E], down [R,r,E], up [R,E,r], norm_weight, norm_bias [R,E] -> [B,E]"""
    inner = F.silu(torch.einsum("be,rie->rbi" if len(down) == 1 else "be,bie->bi", x, down).reshape(len(x), -1))
    outer = torch.einsum("bi,rei->rbe" if len(up) == 1 else "bi,bei->be", inner, up).reshape(len(x), -1)
    return F.layer_norm(outer, outer.shape[-1:]) * norm_weight + norm_bias


def query_linear(x: Tensor, weight: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
    """LN(W x).  x [B,E], weight [R,E,E], norm_weight, norm_bias [R,E] -> [B,E]"""
    outer = torch.einsum("be,rfe->rbf" if len(weight) == 1 else "be,bfe->bf", x, weight).reshape(len(x), -1)
    return F.layer_norm(outer, outer.shape[-1:]) * norm_weight + norm_bias


def mix(weights: Tensor, prompts: Tensor) -> Tensor:
    """sum_j a_j P_j.  weights [B,J], prompts [R,J,m,E] -> [B,m,E]"""
    if len(prompts) == 1:
        return (weights @ prompts[0].flatten(1)).unflatten(1, prompts.shape[2:])
    return torch.einsum("bj,bjme->bme", weights, prompts)


def _targets(cfg: AttemptConfig, p: Params, frame: Frame, batch: int) -> Tensor:
    """Each row's target prompt, [R,m,E]."""
    targets = p["target_prompts"]
    if frame.task_ids is None:
        return targets[:, cfg.task]
    odd = [] if is_tracing() else [task for task in frame.task_ids.tolist() if not 0 <= task < cfg.tasks]
    if odd:
        raise UnsupportedError(f"task_ids run from 0 to {cfg.tasks - 1}; the batch has {odd[0]}")
    rows = torch.arange(batch, device=targets.device) if len(targets) > 1 else torch.zeros_like(frame.task_ids)
    return targets[rows, frame.task_ids]


def _scores(cfg: AttemptConfig, p: Params, y: Tensor, prompts: Tensor, frame: Frame) -> Tensor:
    """p_j . g, [B,J], before the temperature; constant: zeros.

    Raises:
        UnsupportedError: a language model is trained without labels in its forward.
    """
    if cfg.attention == "constant":
        return y.new_zeros(len(y), prompts.shape[1])
    if frame.writes and frame.source is None and frame.training and torch.is_grad_enabled():
        raise UnsupportedError(
            "a prompt that depends on the text may not see the answer that is learned, and no labels tell which it is: "
            "Trainer takes them out of the batch for label_smoothing_factor and compute_loss_func; pass labels to the "
            "model, or take attention 'constant' or 'none'"
        )
    mask = frame.keys(frame.length)
    if frame.source is not None:
        mask = frame.source if mask is None else mask & frame.source
    x = max_pool(y, None if cfg.paper_exact else mask)
    if cfg.attention == "sub":
        x = query_sub(x, p["attn_down"], p["attn_up"], p["norm_weight"], p["norm_bias"])
    elif cfg.attention == "linear":
        x = query_linear(x, p["attn_linear"], p["norm_weight"], p["norm_bias"])
    keys = prompts.amax(2)
    return x @ keys[0].T if len(keys) == 1 else torch.einsum("be,bje->bj", x, keys)


def edit_prompt(cfg: AttemptConfig, p: Params, x: Tensor, y: Tensor, frame: Frame) -> Tensor:
    """Y [B,T,E] word embeddings -> [B,m,E]"""
    if not frame.prompt:
        return y[:, :0]
    target = _targets(cfg, p, frame, len(y))
    if cfg.attention == "none" or (not cfg.sources and not cfg.ignore_target):
        return target.expand(len(y), -1, -1)
    prompts = p["source_prompts"]
    if not cfg.ignore_target:
        r = max(len(prompts), len(target))
        prompts = torch.cat([prompts.expand(r, -1, -1, -1), target[:, None].expand(r, -1, -1, -1)], 1)
    scores = _scores(cfg, p, y, prompts, frame)
    assert cfg.temperature is not None
    weights = (scores / cfg.temperature).softmax(-1)
    frame.memo["prompt_scores"], frame.memo["prompt_attention"] = scores.detach(), weights.detach()
    mixed = mix(weights, prompts)
    return mixed if cfg.ignore_target else mixed + target


def names(cfg: AttemptConfig) -> tuple[str, ...]:
    """What is mixed, in the order of the weights: the sources, then the target."""
    if cfg.attention == "none" or not cfg.sources:
        return ()
    sources = cfg.source_names or [f"source{j + 1}" for j in range(cfg.sources)]
    return (*sources, *(() if cfg.ignore_target else (TARGET,)))


def resolve(cfg: AttemptConfig, dims: Dims) -> None:
    """Fill in the temperature."""
    if cfg.temperature is None:
        rms = dims.words.detach().float().square().mean().sqrt().item() if dims.words.device.type != "meta" else 1.0
        cfg.temperature = max(0.25 * dims.embedding * rms, 1e-6)


def init(cfg: AttemptConfig, site: Site, dims: Dims) -> dict[str, Tensor]:
    """{"target_prompts": [N,m,E], "source_prompts": [K,m,E], ...}; prompts are rows of the vocabulary."""
    e, m = dims.embedding, cfg.length
    rows = torch.randint(len(dims.words), ((cfg.tasks + cfg.sources) * m,))
    words = dims.words.detach().float().cpu() if dims.words.device.type != "meta" else torch.zeros(len(dims.words), e)
    drawn = words[rows].unflatten(0, (-1, m))
    p = {"target_prompts": drawn[: cfg.tasks].clone()}
    if cfg.attention == "none":
        return p
    if cfg.sources:
        p["source_prompts"] = drawn[cfg.tasks :].clone()
    if cfg.attention in ("sub", "linear"):
        p["norm_weight"], p["norm_bias"] = torch.ones(e), torch.zeros(e)
    std = 0.01 if cfg.init_weights == "paper" else e**-0.5
    if cfg.attention == "sub":
        p["attn_down"] = torch.empty(cfg.bottleneck, e).normal_(std=std)
        p["attn_up"] = torch.empty(e, cfg.bottleneck).normal_(
            std=std if cfg.init_weights == "paper" else cfg.bottleneck**-0.5
        )
    elif cfg.attention == "linear":
        p["attn_linear"] = torch.empty(e, e).normal_(std=std)
    return p


METHOD = Method(
    "attempt",
    AttemptConfig,
    {Site.PROMPT: edit_prompt},
    init,
    prompt_length=lambda cfg: cfg.length,
    frozen=lambda cfg: () if cfg.train_sources else ("source_prompts",),
    attention=ATTENTION_TENSORS,
    shared=(*ATTENTION_TENSORS, "source_prompts"),
    mixes=names,
    sees_padding=lambda cfg: cfg.paper_exact,
    resolve=resolve,
)
