"""Tiny attention: the module alone, in RoBERTa, and the averaged experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attentune.method import Frame, Site
from attentune.methods.tiny_attention import TinyAttentionConfig, add_delta, average_experts, prepare
from golden_cases.case import Case
from golden_cases.inject import Tensors, Watch, inject, pull_back, watch
from golden_cases.ledger import Ledger

NAMES = {
    "norm_weight": "norm.weight",
    "norm_bias": "norm.bias",
    "down_weight": "linear1.weight",
    "down_bias": "linear1.bias",
    "in_weight": "attention.in_proj_weight",
    "in_bias": "attention.in_proj_bias",
    "out_weight": "attention.out_proj.weight",
    "out_bias": "attention.out_proj.bias",
    "up_weight": "linear2.weight",
    "up_bias": "linear2.bias",
}
"""Ours -> the authors'."""
SITES = {
    "m0": {Site.ATTENTION_OUTPUT: "tiny"},
    "s0": {Site.ATTENTION_OUTPUT: "tiny"},
    "m1": {Site.BLOCK_OUTPUT: "tiny"},
    "s1": {Site.BLOCK_OUTPUT: "tiny"},
    "seq": {Site.BLOCK_INPUT: "tiny"},
    "double_seq": {Site.BLOCK_INPUT: "tiny", Site.ATTENTION_OUTPUT: "after"},
}
"""Where each of the authors' modules acts."""


def check(case: Case) -> Ledger:
    return _module(case) if "backbone_class" not in case.about else _model(case)


def _ours(theirs: dict[str, Tensor], modules: list[str]) -> dict[str, Tensor]:
    """The tensors of a site, from one of the authors' modules an expert."""
    found: dict[str, Tensor] = {}
    for ours, name in NAMES.items():
        stacked = torch.stack([theirs[f"{module}{name}"] for module in modules])
        if ours in ("in_weight", "in_bias"):
            stacked = stacked.unflatten(1, (3, -1))
        found[ours] = stacked
    return found


def _theirs(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """One expert's tensors under the authors' names."""
    return {
        name: ours[key][0].flatten(0, 1) if key in ("in_weight", "in_bias") else ours[key][0]
        for key, name in NAMES.items()
    }


def _module(case: Case) -> Ledger:
    ledger, about = Ledger(case), case.about
    cfg = TinyAttentionConfig(width=about["attention_embd"], heads=about["attention_head"])
    given = case.group("input")
    for kind in sorted({key.split(".")[0] for key in case.group("output")}):
        leaves, h = case.leaves("adapter"), given["hidden_states"].clone().requires_grad_()
        p = {key: value[None] for key, value in _ours(leaves, [""]).items()}
        mask = given["attention_mask"].bool() if kind == "mask" else None
        frame = Frame(tokens=None, mask=mask, length=h.shape[1])
        result = add_delta(cfg, prepare(cfg, Site.ATTENTION_OUTPUT, p), h, torch.zeros_like(h), frame)
        loss = (result * given["cotangent"]).sum()
        ledger.outputs({f"{kind}.output": result, f"{kind}.loss": loss})
        loss.backward()
        ledger.gradients(leaves, f"{kind}/adapter")
        ledger.gradients({"hidden_states": h}, f"{kind}/input")
    return ledger


def _experts(case: Case) -> int:
    """How many modules a block has in sequence; 0: they are no experts."""
    return len({key.split(".")[3] for key in case.group("adapter") if key.startswith("layer.0.expert.")})


def _model(case: Case) -> Ledger:
    ledger, about, experts = Ledger(case), case.about, _experts(case)
    structure = "m0" if experts else about["structure"]
    leaves, head, layers = case.leaves("adapter"), case.leaves("head"), range(about["config"]["num_hidden_layers"])
    tensors: Tensors = {
        (site, layer): _ours(
            leaves, [f"layer.{layer}.expert.{e}." for e in range(experts)] or [f"layer.{layer}.{module}."]
        )
        for layer in layers
        for site, module in SITES[structure].items()
    }
    cfg = TinyAttentionConfig(
        width=about["attention_embd"], heads=about["attention_head"], structure=structure, experts=max(experts, 1)
    )
    peft_model, loss, found = _run(case, cfg, tensors, head)
    ledger.outputs(found)
    loss.backward()
    pull_back(peft_model, tensors)
    ledger.gradients(leaves, "adapter")
    ledger.gradients(head, "head")
    if case.group("merged"):
        _deploy(case, ledger, cfg, tensors)
    return ledger


def _run(
    case: Case, cfg: TinyAttentionConfig, tensors: Tensors, head: dict[str, Tensor]
) -> tuple[Any, Tensor, dict[str, Tensor]]:
    model = case.backbone()
    watches: list[Watch] = watch(model)
    peft_model: Any = inject(model, cfg, tensors, watches)
    inputs = case.inputs("input_ids", "attention_mask")
    x = peft_model(**inputs).last_hidden_state[:, 0]
    for i in range(case.about["output_nlayers"]):
        x = F.linear(x, head[f"linears.{i}.weight"], head[f"linears.{i}.bias"]).tanh()
    logits = F.linear(x, head["out_proj.weight"], head["out_proj.bias"])
    labels = case.group("input")["labels"]
    loss = F.mse_loss(logits[:, 0], labels) if labels.is_floating_point() else F.cross_entropy(logits, labels)
    states = watches[0].outputs(inputs["input_ids"].shape[1])
    return peft_model, loss, {**states, "logits": logits, "loss": loss}


def _deploy(case: Case, ledger: Ledger, cfg: TinyAttentionConfig, tensors: Tensors) -> None:
    """One module instead of the experts: as shipped, with the norms and the head of an earlier stage, and in full."""
    one = TinyAttentionConfig(width=cfg.width, heads=cfg.heads, structure=cfg.structure)
    full: Tensors = {place: average_experts({k: v.detach() for k, v in p.items()}) for place, p in tensors.items()}
    stage1, shipped = case.group("stage1"), dict[Any, dict[str, Tensor]]()
    for (site, layer), p in full.items():
        norm = {f"norm_{kind}": stage1[f"layer.{layer}.norm.{kind}"][None] for kind in ("weight", "bias")}
        shipped[site, layer] = {**p, **norm}
        ledger.outputs({f"layer.{layer}.tiny.{k}": v for k, v in _theirs(shipped[site, layer]).items()}, "merged")
    head1 = {key.removeprefix("head."): value for key, value in stage1.items() if key.startswith("head.")}
    ledger.outputs(_run(case, one, shipped, head1)[2], "output_deploy")
    ledger.outputs(_run(case, one, full, case.group("head"))[2], "output_deploy_full")
