"""ATTEMPT and plain prompt tuning on T5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attentune.forward import memo
from attentune.method import Site
from attentune.methods.attempt import AttemptConfig
from golden_cases.case import Case
from golden_cases.inject import Tensors, inject, pull_back, watch
from golden_cases.ledger import Ledger


def check(case: Case) -> Ledger:
    ledger, leaves = Ledger(case), case.leaves("adapter")
    tensors = _tensors(leaves)
    peft_model, out, found = _run(case, _config(case, paper_exact=True), tensors)
    ledger.outputs(found)
    out.loss.backward()
    pull_back(peft_model, tensors)
    ledger.gradients(leaves, "adapter")
    with torch.no_grad():
        # What every row gives alone, without padding: our default masks it.
        _, _, found = _run(case, _config(case, paper_exact=False), tensors)
    ledger.outputs({f"unpadded.{name}": value for name, value in found.items()})
    return ledger


def _tensors(leaves: dict[str, Tensor]) -> Tensors:
    target = leaves["target_prompt"]
    p = {"target_prompts": target if target.dim() == 3 else target[None]}
    names = {
        "source_prompts": "source_prompts",
        "attn_down": "attn_down.weight",
        "attn_up": "attn_up.weight",
        "norm_weight": "attn_norm.weight",
        "norm_bias": "attn_norm.bias",
    }
    p |= {ours: leaves[name] for ours, name in names.items() if name in leaves}
    return {(Site.PROMPT, 0): p}


def _config(case: Case, paper_exact: bool) -> AttemptConfig:
    about, adapter = case.about, case.group("adapter")
    return AttemptConfig(
        length=adapter["target_prompt"].shape[-2],
        sources=len(adapter["source_prompts"]) if "source_prompts" in adapter else 0,
        attention=about["attention_method"] or "none",
        bottleneck=len(adapter["attn_down.weight"]) if "attn_down.weight" in adapter else 1,
        temperature=about["temperature"] or 1.0,
        ignore_target=about["ignore_target"],
        tasks=len(adapter["target_prompt"]) if adapter["target_prompt"].dim() == 3 else 1,
        train_sources=True,
        paper_exact=paper_exact,
    )


def _run(case: Case, cfg: AttemptConfig, tensors: Tensors) -> tuple[Any, Any, dict[str, Tensor]]:
    model = case.backbone()
    watches = watch(model)
    peft_model: Any = inject(model, cfg, tensors, watches)
    inputs = case.inputs("input_ids", "attention_mask", "labels", "task_ids")
    out = peft_model(**inputs)
    wide = inputs["input_ids"].shape[1] + cfg.length
    found = {
        **watches[0].outputs(wide, "encoder_hidden_states"),
        **watches[1].outputs(inputs["labels"].shape[1], "decoder_hidden_states"),
        "encoder_last_hidden_state": out.encoder_last_hidden_state,
        "soft_prompt": watches[0].states[0][:, : cfg.length],
        "logits": out.logits,
        "loss": out.loss,
    }
    if cfg.attention != "none":
        kept: Any = {key: memo(peft_model, key) for key in ("prompt_attention", "prompt_scores")}
        found["prompt_attention"] = weights = kept["prompt_attention"]
        scores = kept["prompt_scores"] / cfg.temperature
        # Where nothing is scored, the authors' run keeps the uniform weights under this name.
        found["prompt_scores"] = weights if cfg.attention == "constant" else scores
    return peft_model, out, found
