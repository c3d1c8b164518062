"""PASTA on BERT."""

from __future__ import annotations

from typing import Any

from attentune.method import Site
from attentune.methods.pasta import PastaConfig
from golden_cases.case import Case
from golden_cases.inject import Tensors, inject, pull_back, train_recorded, watch
from golden_cases.ledger import Ledger


def check(case: Case) -> Ledger:
    ledger, model = Ledger(case), case.backbone()
    leaves = case.leaves("adapter")
    tensors: Tensors = {
        (Site.BLOCK_INPUT, layer): {"shift": leaves[f"layer.{layer}.special_token_embedding"]}
        for layer in range(model.config.num_hidden_layers)
    }
    cfg = PastaConfig(slots=case.about["num_special_tokens_of_module"], special_ids=case.about["special_token_ids"])
    watches = watch(model)
    peft_model: Any = inject(model, cfg, tensors, watches)
    backbone = train_recorded(case, model)
    inputs = case.inputs("input_ids", "attention_mask", "token_type_ids", "labels")
    out = peft_model(**inputs, output_attentions=case.attention == "eager")
    ledger.outputs(watches[0].outputs(inputs["input_ids"].shape[1]))
    ledger.attentions(out.attentions)
    ledger.outputs({"logits": out.logits, "loss": out.loss})
    out.loss.backward()
    pull_back(peft_model, tensors)
    ledger.gradients(leaves, "adapter")
    ledger.gradients(dict(backbone), "backbone")
    return ledger
