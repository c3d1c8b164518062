"""Prefix-propagation, prefix-tuning and the kernel form, on RoBERTa and Longformer."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attentune.method import Site
from attentune.methods.prefix_propagation import PrefixPropagationConfig
from golden_cases.case import Case
from golden_cases.inject import Tensors, Watch, inject, pull_back, sites, train_recorded, watch
from golden_cases.ledger import Ledger

EXCLUDED = ("prefix_tuning_longformer*", "prefix_propagation_longformer_combine*")
REASON = (
    "prefix-tuning inside Longformer's attention: a baseline that transformers gives no way into, and whose official "
    "form computes the wrong rows as global ones"
)


def excluded(case: Case) -> bool:
    """Whether a case asks for what the library refuses."""
    return any(fnmatch(case.name, pattern) for pattern in EXCLUDED)


def config(case: Case) -> PrefixPropagationConfig:
    """The authors' switches as our config."""
    about, switches, adapter = case.about, case.switches, case.group("adapter")
    mode = {"only": "propagate", "combine": "combine", "none": "tune"}[switches["propagate_prefix"]]
    kernel = switches.get("prefix_kernel")
    hidden = [value for name, value in adapter.items() if name.endswith("trans.0.bias")]
    in_front = about["prefix_rows_in_hidden_states"]
    return PrefixPropagationConfig(
        length=about["prefix_length"],
        mode="kernel" if kernel else mode,
        pool="prefix" if in_front and about["pooled_position"] == 0 else "text",
        mlp=len(hidden[0]) if hidden else None,
        scale_rows=switches["propagate_prefix_scalar"],
        kernel=kernel.lower() if kernel else "exp",
        lengthscale=about.get("rbf_lengthscale", 64.0),
        paper_exact=True,
    )


def check(case: Case) -> Ledger:
    ledger, model, cfg = Ledger(case), case.backbone(), config(case)
    leaves, head = case.leaves("adapter"), case.leaves("head")
    tensors = _tensors(leaves, cfg, model.config.num_hidden_layers)
    watches = watch(model)
    peft_model: Any = inject(model, cfg, tensors, watches)
    backbone = train_recorded(case, model)
    loss, found = _run(case, peft_model, watches[0], head)
    ledger.outputs(found)
    loss.backward()
    pull_back(peft_model, tensors)
    ledger.gradients(leaves, "adapter")
    ledger.gradients(dict(backbone), "backbone")
    ledger.gradients(head, "head")
    with torch.no_grad():
        if cfg.mlp is not None:
            peft_model.base_model.fold_adapter("default")
            ledger.outputs(_run(case, peft_model, watches[0], head)[1])
        _effective(ledger, peft_model, cfg, model.config.num_attention_heads)
    return ledger


def _tensors(leaves: dict[str, Tensor], cfg: PrefixPropagationConfig, layers: int) -> Tensors:
    """The authors keep all blocks in one table, or in the last map of one MLP, block after block."""
    tensors: Tensors = {(Site.PROMPT, 0): {}} if cfg.propagates or cfg.mlp is not None else {}
    past = Site.CONTEXT if cfg.mode == "kernel" else Site.KEY_VALUE
    for theirs, ours, site in (("propagated", "prefix", Site.BLOCK_INPUT), ("past", "past", past)):
        if f"{theirs}.embedding.weight" not in leaves:
            continue
        table = leaves[f"{theirs}.embedding.weight"]
        if cfg.mlp is None:
            per_layer = [{ours: part} for part in table.chunk(layers, 1)]
        else:
            tensors[Site.PROMPT, 0] |= {
                f"{ours}_seed": table,
                f"{ours}_down_weight": leaves[f"{theirs}.trans.0.weight"],
                f"{ours}_down_bias": leaves[f"{theirs}.trans.0.bias"],
            }
            weights = leaves[f"{theirs}.trans.2.weight"].chunk(layers)
            biases = leaves[f"{theirs}.trans.2.bias"].chunk(layers)
            per_layer = [
                {f"{ours}_up_weight": weight, f"{ours}_up_bias": bias}
                for weight, bias in zip(weights, biases, strict=True)
            ]
        for layer, part in enumerate(per_layer):
            tensors[site, layer] = part
    for layer in range(layers) if cfg.mode == "kernel" else ():
        tensors[past, layer]["scale"] = leaves[f"layer.{layer}.kernel_scale"].reshape(1)
        if cfg.kernel == "poly":
            tensors[past, layer]["raw_offset"] = leaves[f"layer.{layer}.kernel_raw_offset"]
    return tensors


def _run(case: Case, peft_model: Any, watched: Watch, head: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    about = case.about
    inputs = case.inputs("input_ids", "attention_mask", "global_attention_mask", "token_type_ids")
    labels = case.group("input")["labels"]
    if head:
        out = peft_model(**inputs)
        pooled, moved = out.pooler_output, about["pooled_position"] - about["prefix_rows_in_hidden_states"]
        if moved:
            # The authors' pooler reads position P although nothing was put in front.
            pooled = peft_model.base_model.model.pooler(out.last_hidden_state[:, moved:])
        logits = F.linear(pooled, head["classifier.weight"], head["classifier.bias"])
        loss = F.cross_entropy(logits, labels)
    else:
        out = peft_model(**inputs, labels=labels)
        logits, loss = out.logits, out.loss
    length = inputs["input_ids"].shape[1] + about["prefix_rows_in_hidden_states"]
    return loss, {**watched.outputs(length), "logits": logits, "loss": loss}


def _effective(ledger: Ledger, peft_model: Any, cfg: PrefixPropagationConfig, heads: int) -> None:
    """What the blocks use, MLP folded."""
    for (site, layer), p in sites(peft_model).items():
        found: dict[str, Tensor] = {}
        if site == Site.BLOCK_INPUT:
            found["prefix"], *scale = p["prefix"].chunk(1 + cfg.scale_rows, 1)
            if scale:
                found["prefix_scale"] = scale[0]
        elif "past" in p:
            keys, values = p["past"].chunk(2, 1)
            found["past_key"] = keys.unflatten(1, (heads, -1)).transpose(0, 1)
            found["past_value"] = values.unflatten(1, (heads, -1)).transpose(0, 1)
        if "raw_offset" in p:
            found["kernel_offset"] = F.softplus(p["raw_offset"])
        ledger.outputs({f"layer.{layer}.{name}": value for name, value in found.items()}, "effective")
