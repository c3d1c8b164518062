"""Kernel-mix: the maps alone, in RoBERTa, and in GPT-2 with its cache."""

from __future__ import annotations

from typing import Any

import torch
from laws.zoo import CACHE
from torch import Tensor
from torch.nn import functional as F

from attentune.method import Frame, Site
from attentune.methods.kernel_mix import KernelMixConfig, edit_output, edit_query, edit_value, prepare
from golden_cases.case import Case
from golden_cases.inject import Tensors, inject, pull_back, train_recorded, watch
from golden_cases.ledger import Ledger

PARTS = {"query": Site.QUERY, "value": Site.VALUE, "output": Site.OUTPUT}


def check(case: Case) -> Ledger:
    if "backbone_class" not in case.about:
        return _module(case)
    return _gpt2(case) if case.about["config_class"] == "GPT2Config" else _roberta(case)


def _ours(theirs: dict[str, Tensor], part: str, heads: int) -> dict[str, Tensor]:
    """A site's tensors from `head.A`, `head.B`, `head.bias`, `shared.A` and `shared.B`."""
    found: dict[str, Tensor] = {}
    if "head.A" in theirs:
        b = theirs["head.B"]
        # The authors' output map has the heads side by side in its columns.
        found["head_b"] = b.unflatten(1, (heads, -1)).transpose(0, 1) if part == "output" else b
        found["head_a"] = theirs["head.A"]
    if "head.bias" in theirs:
        found["head_bias"] = theirs["head.bias"] if part == "output" else theirs["head.bias"].squeeze(1)
    if "shared.A" in theirs:
        found["shared_a"], found["shared_b"] = theirs["shared.A"], theirs["shared.B"]
    return found


def _under(theirs: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {key.removeprefix(start): value for key, value in theirs.items() if key.startswith(start)}


def _config(case: Case) -> KernelMixConfig:
    switches = case.switches
    alpha = switches["lora_alpha"]
    return KernelMixConfig(
        q_rank=switches["lora_Q_rank"],
        v_rank=switches["lora_V_rank"],
        q_shared_rank=switches["lora_Q_share_rank"],
        v_shared_rank=switches["lora_V_share_rank"],
        v_base=switches["lora_head_base"][1],
        # The authors scale shared parts only where alpha is above 1.5.
        alpha=alpha if alpha > 1.5 else None,
    )


def _tensors(leaves: dict[str, Tensor], heads: int, layers: int) -> Tensors:
    return {
        (site, layer): _ours(_under(leaves, f"layer.{layer}.{part}."), part, heads)
        for layer in range(layers)
        for part, site in PARTS.items()
    }


def _merge_heads(x: Tensor) -> Tensor:
    """[B,H,T,d] -> [B,T,H*d]"""
    return x.transpose(1, 2).flatten(2)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """[B,T,H*d] -> [B,H,T,d]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _module(case: Case) -> Ledger:
    ledger, cfg, heads = Ledger(case), _config(case), case.about["heads"]
    leaves, given = case.leaves("adapter"), case.leaves("input")
    p = {
        part: {key: value[None] for key, value in _ours(_under(leaves, f"{part}."), part, heads).items()}
        for part in PARTS
    }
    x = given["hidden_states"]
    frame = Frame(tokens=None, mask=None, length=x.shape[1], seen={Site.KEY: _merge_heads(given["key"])})
    p = {part: prepare(cfg, PARTS[part], tensors) for part, tensors in p.items()}
    found = {
        "query": _split_heads(edit_query(cfg, p["query"], x, _merge_heads(given["query"]), frame), heads),
        "value": _split_heads(edit_value(cfg, p["value"], x, _merge_heads(given["value"]), frame), heads),
        "output": edit_output(
            cfg, p["output"], _merge_heads(given["attention_output"]), given["projected_output"], frame
        ),
    }
    loss = torch.stack([(result * given[f"cotangent_{part}"]).sum() for part, result in found.items()]).sum()
    ledger.outputs({**found, "loss": loss})
    loss.backward()
    ledger.gradients(leaves, "adapter")
    ledger.gradients(given, "input")
    return ledger


def _roberta(case: Case) -> Ledger:
    ledger, model = Ledger(case), case.backbone()
    config, leaves = model.config, case.leaves("adapter")
    tensors = _tensors(leaves, config.num_attention_heads, config.num_hidden_layers)
    watches = watch(model)
    peft_model: Any = inject(model, _config(case), tensors, watches)
    backbone = train_recorded(case, model)
    inputs = case.inputs("input_ids", "attention_mask", "labels")
    out = peft_model(**inputs, output_attentions=case.attention == "eager")
    ledger.outputs(watches[0].outputs(inputs["input_ids"].shape[1]))
    ledger.attentions(out.attentions)
    ledger.outputs({"logits": out.logits, "loss": out.loss})
    for (site, layer), value in watches[0].sites.items():
        name = "projected_output" if site == "output" else site
        value = value if site in ("output", "attention_output") else _split_heads(value, config.num_attention_heads)
        ledger.outputs({f"layer.{layer}.{name}": value})
    out.loss.backward()
    pull_back(peft_model, tensors)
    ledger.gradients(leaves, "adapter")
    ledger.gradients(dict(backbone), "backbone")
    _merged(case, ledger, peft_model)
    return ledger


def _merged(case: Case, ledger: Ledger, peft_model: Any) -> None:
    """The same logits when all of it is merged into the backbone's weights."""
    merged = peft_model.merge_and_unload()
    with torch.no_grad():
        ledger.compare("output/logits", merged(**case.inputs("input_ids", "attention_mask")).logits)


def _gpt2(case: Case) -> Ledger:
    ledger, model = Ledger(case), case.backbone()
    config, leaves = model.config, case.leaves("adapter")
    tensors = _tensors(leaves, config.num_attention_heads, config.num_hidden_layers)
    watches = watch(model)
    peft_model: Any = inject(model, _config(case), tensors, watches)
    inputs = case.inputs("input_ids", "attention_mask", "labels")
    out = peft_model(**inputs, output_hidden_states=True)
    ledger.outputs(watches[0].outputs(inputs["input_ids"].shape[1]))
    shifted = out.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()
    ledger.outputs(
        {
            "last_hidden_state": out.hidden_states[-1],
            "logits": out.logits,
            "loss": out.loss,
            "loss_label_smooth_0.1": F.cross_entropy(*shifted, label_smoothing=0.1),
        }
    )
    out.loss.backward()
    pull_back(peft_model, tensors)
    ledger.gradients(leaves, "adapter")
    _cached_step(case, ledger, peft_model, inputs)
    _merged(case, ledger, peft_model)
    return ledger


def _cached_step(case: Case, ledger: Ledger, peft_model: Any, inputs: dict[str, Tensor]) -> None:
    """The last real token of row 0: in one piece and after a cache of the others, the same logits."""
    tokens = inputs["input_ids"]
    row = tokens[0][inputs.get("attention_mask", torch.ones_like(tokens))[0].bool()][None]
    with torch.no_grad():
        whole = peft_model(input_ids=row).logits[:, -1]
        before = peft_model(input_ids=row[:, :-1], use_cache=True)
        step = peft_model(input_ids=row[:, -1:], **{CACHE: before[CACHE]}, use_cache=True).logits[:, -1]
    ledger.outputs({"full_forward_last_logits_row0": whole})
    ledger.outputs({"full_forward_last_logits_row0": step})
    ledger.leave_out(
        "output/cached_step_logits_official",
        "the authors' cache keeps values without their change; our cached step equals the full forward instead",
    )
