"""Heads of kilobytes that belong to tasks, per adapter, a head a row in a mixed batch.

A head is one linear layer; or, with words for classes, no tensor at all: the backbone's own masked-LM head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from attentune.errors import ConfigError, UnsupportedError
from attentune.method import Group, MethodConfig
from attentune.sites import AdapterLayer
from attentune.sites.rows import RowRequest

POOLINGS = ("cls", "mean", "pooler", "last", "prefix")


@dataclass(frozen=True)
class HeadConfig:
    """One linear layer on a pooled state, or on every token's; or the masked-LM head's scores of a few words."""

    kind: Literal["sequence", "token", "masked"] = "sequence"
    """"sequence": one answer a text; "token": one a token; "masked": one a text, read at its mask token."""
    num_labels: int = 2
    """C."""
    pooling: Literal["cls", "mean", "pooler", "last", "prefix"] = "cls"
    """What a sequence head reads: the first token, the mean over tokens, the backbone's own pooler, the last token, or
    the first prompt row."""
    dropout: float = 0.0
    """Dropout on what the head reads, in training."""
    words: list[int] = field(default_factory=list[int])
    """Of a masked head: the C tokens that stand for the classes."""
    mask: int | None = None
    """Of a masked head: the mask token."""

    def __post_init__(self) -> None:
        if self.kind not in ("sequence", "token", "masked"):
            raise ConfigError(f"a head's kind is 'sequence', 'token' or 'masked', not {self.kind!r}")
        if self.kind == "masked" and (self.mask is None or len(self.words) != self.num_labels):
            raise ConfigError(f"a masked head needs its mask token and {self.num_labels} words, found {self.words}")
        if self.pooling not in POOLINGS:
            raise ConfigError(f"a head's pooling is one of {', '.join(POOLINGS)}, not {self.pooling!r}")
        if self.num_labels < 1:
            raise ConfigError(f"a head has at least one label, not {self.num_labels}")


@dataclass
class TaskOutput(ModelOutput):
    """What a TaskModel gives."""

    logits: Tensor | None = None
    """[B,C] for sequence heads, [B,T,C] for token heads; where a batch has both, [B,T,C] with a sequence row's logits
    at position 0. Rows with fewer than C labels end in the dtype's minimum."""
    num_labels: Tensor | None = None
    """[B] each row's own C, in a mixed batch; 0 for rows without a head."""
    last_hidden_state: Tensor | None = None
    """[B,T,D], where no head answers for some row or where output_hidden_states asks for it."""
    prompt_attention: list[Tensor | None] | None = None
    """Where a bank is asked for it: each row's weights [J] of the prompts mixed for it, None where none are."""

    def in_rows(self, rows: Sequence[int]) -> TaskOutput:
        """The answers of another order of the batch: what stands at i is put at rows[i]."""
        found: dict[str, Any] = {}
        for key, value in self.items():
            if torch.is_tensor(value):
                at = torch.tensor(rows, device=value.device)
                found[key] = torch.empty_like(value).index_copy_(0, at, value)
            else:
                found[key] = [each for _, each in sorted(zip(rows, value, strict=True), key=lambda pair: pair[0])]
        return TaskOutput(**found)


def no_prefix() -> None:
    """Nothing stands in front of the text."""


@dataclass
class States:
    """What heads read."""

    last: Tensor
    """[B,T,D]"""
    mask: Tensor | None
    """[B,T]"""
    pooler: Tensor | None
    """[B,D]"""
    prefix: Callable[[], Tensor | None] = no_prefix
    """[B,D] made when a head reads it, which few do."""
    tokens: Tensor | None = None
    """[B,T]"""
    vocabulary: nn.Module | None = None
    """States [R,D] -> scores of the words of the vocabulary [R,V]."""

    def of(self, rows: Tensor | None) -> Tensor:
        """[R,T,D] the last states of some rows, None for all."""
        return _pick(self.last, rows)

    def pooled(self, pooling: str, rows: Tensor | None) -> Tensor:
        """[R,D]"""
        last, mask = self.of(rows), None if self.mask is None else _pick(self.mask, rows)
        if pooling == "mean":
            if mask is None:
                return last.mean(1)
            weight = mask.to(last.dtype)[..., None]
            return (last * weight).sum(1) / weight.sum(1).clamp(min=1)
        if pooling in ("pooler", "prefix"):
            found = self.pooler if pooling == "pooler" else self.prefix()
            if found is None:
                raise UnsupportedError(
                    f"pooling={pooling!r} needs "
                    + ("a backbone with a pooler" if pooling == "pooler" else "a method that puts a prompt in front")
                    + "; 'cls', 'mean' and 'last' work everywhere"
                )
            return _pick(found, rows)
        if mask is None:
            return last[:, 0 if pooling == "cls" else -1]
        order = torch.arange(mask.shape[1], device=mask.device)
        index = mask.int().argmax(1) if pooling == "cls" else (order * mask).argmax(1)
        return last[torch.arange(len(last), device=last.device), index]

    def scored(self, words: Sequence[int], mask: int, rows: Tensor | None) -> Tensor:
        """[R,C] the scores of C words at each row's first mask token."""
        if self.vocabulary is None or self.tokens is None:
            raise UnsupportedError(
                "an adapter with words for classes needs token ids and its backbone's masked-LM head; "
                "attentune.load brings it, and attentune.vocabulary gives it to a TaskModel"
            )
        last, tokens = self.of(rows), _pick(self.tokens, rows)
        at = (tokens == mask).int().argmax(1)
        found = last[torch.arange(len(last), device=last.device), at]
        return self.vocabulary(found).index_select(-1, torch.tensor(words, device=last.device))


def _pick(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


class HeadLayer(AdapterLayer):
    """The heads of one method's adapters: out_weight [C,D] and out_bias [C] by adapter name; none for masked heads."""

    def get_base_layer(self) -> nn.Module:
        """There is nothing beneath a head."""
        return self

    def add(self, name: str, cfg: MethodConfig, hidden: int, like: Tensor, inference_mode: bool = False) -> None:
        """Start one head: weight N(0, 0.02), bias 0."""
        head = HeadConfig(**(cfg.head or {}))
        if head.kind == "masked":
            self.put(name, cfg, {}, like, inference_mode=inference_mode)
            return
        tensors = {"out_weight": torch.randn(head.num_labels, hidden) * 0.02, "out_bias": torch.zeros(head.num_labels)}
        self.put(name, cfg, tensors, like, inference_mode=inference_mode)

    def answer(self, name: str, rows: Tensor | None, states: States) -> Tensor:
        """[R,C] or [R,T,C], in the head's precision."""
        return _answer(self.config(name), self.tensors(name), rows, states, self.training)

    def config(self, name: str) -> HeadConfig:
        """That of an adapter's head."""
        return HeadConfig(**(self.configs[name].head or {}))


class MergedHead(nn.Module):
    """The head of an adapter that is merged into the backbone, frozen: it answers where no adapter's head does."""

    def __init__(self, head: HeadConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.head = head
        for key, value in tensors.items():
            self.register_parameter(key, nn.Parameter(value.detach().clone(), requires_grad=False))

    def answer(self, rows: Tensor | None, states: States) -> Tensor:
        """As that of a HeadLayer."""
        return _answer(self.head, dict(self.named_parameters()), rows, states, self.training)


def _answer(head: HeadConfig, p: Mapping[str, Tensor], rows: Tensor | None, states: States, training: bool) -> Tensor:
    if head.kind == "masked" and head.mask is not None:
        return states.scored(head.words, head.mask, rows).float()
    x = states.of(rows) if head.kind == "token" else states.pooled(head.pooling, rows)
    x = nn.functional.dropout(x.to(p["out_weight"].dtype), head.dropout, training)
    return nn.functional.linear(x, p["out_weight"], p["out_bias"])


class Heads(nn.Module):
    """The place for heads: a HeadLayer per method is a child of it, and perhaps the head of what was merged."""

    def __init__(self, vocabulary: nn.Module | None = None) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.merged: MergedHead | None = None
        self.request: RowRequest | None = None

    def forward(self, states: States) -> TaskOutput:
        """One head for all rows, or a head a row."""
        layers = [layer for layer in self.children() if isinstance(layer, HeadLayer)]
        if self.request is not None:
            groups = self.request.groups(len(states.last), states.last.device)
            return self._mixed([(layer, g) for g in groups for layer in layers if g.names[0] in layer.configs], states)
        active = [(layer, group.names[0]) for layer in layers for group in layer.groups(None)]
        if not active and self.merged is not None:
            return TaskOutput(logits=self.merged.answer(None, states))
        if not active:
            return TaskOutput(last_hidden_state=states.last)
        if len(active) > 1:
            raise UnsupportedError(
                f"the heads of {[name for _, name in active]} are active at once; "
                "activate one adapter, or give each row its own by adapter_names"
            )
        layer, name = active[0]
        return TaskOutput(logits=layer.answer(name, None, states))

    def _mixed(self, groups: list[tuple[HeadLayer, Group]], states: States) -> TaskOutput:
        batch, device = len(states.last), states.last.device
        answers = [
            (rows, layer.answer(name, rows, states))
            for layer, group in groups
            for name, rows in _by_name(group, batch, device)
        ]
        if self.merged is not None:
            left = torch.ones(batch, dtype=torch.bool, device=device)
            for rows, _ in answers:
                left[rows] = False
            rows = left.nonzero().squeeze(-1)
            answers += [(rows, self.merged.answer(rows, states))] if len(rows) else []
        return assemble(answers, states)


def assemble(answers: Sequence[tuple[Tensor, Tensor]], states: States) -> TaskOutput:
    """(rows [R], their logits [R,C] or [R,T,C]) of the heads of a mixed batch -> its output."""
    batch, device = len(states.last), states.last.device
    counts = torch.zeros(batch, dtype=torch.long, device=device)
    if not answers:
        return TaskOutput(num_labels=counts, last_hidden_state=states.last)
    dtype = answers[0][1].dtype
    fill, widest = torch.finfo(dtype).min, max(answer.shape[-1] for _, answer in answers)
    token = any(answer.dim() == 3 for _, answer in answers)
    shape = (batch, states.last.shape[1], widest) if token else (batch, widest)
    logits = torch.full(shape, fill, dtype=dtype, device=device)
    for rows, answer in answers:
        counts = counts.index_fill(0, rows, answer.shape[-1])
        answer = nn.functional.pad(answer.to(dtype), (0, widest - answer.shape[-1]), value=fill)
        if token and answer.dim() == 2:
            answer = nn.functional.pad(answer[:, None], (0, 0, 0, shape[1] - 1), value=fill)
        logits = logits.index_copy(0, rows, answer)
    headless = sum(len(rows) for rows, _ in answers) < batch
    return TaskOutput(logits=logits, num_labels=counts, last_hidden_state=states.last if headless else None)


def _by_name(group: Group, batch: int, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    rows = torch.arange(batch, device=device) if group.rows is None else group.rows
    for i, name in enumerate(group.names):
        yield name, rows if group.which is None else rows[group.which == i]
