"""LoRA adapters of peft, adopted: the same answers, beside adapters of other methods, or one clear refusal."""

from pathlib import Path
from typing import Any

import pytest
import torch
from laws.zoo import batch_of, model_of
from peft import EvaConfig, IA3Config, LoraConfig, get_peft_model
from serving.kit import adapter
from test_train import rows_of
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaForSequenceClassification,
)

from attentune import store
from attentune.adopt import adopt
from attentune.backbones import load_backbone
from attentune.cli import main
from attentune.errors import AttentuneError, ConfigError, UnsupportedError
from attentune.serving import Bank
from attentune.training.recalibrate import recalibrate

LABELS = ["one", "two", "three"]


def lora(model: Any, folder: Path, **options: Any) -> Any:
    """A saved LoRA with every matrix random, on a model with a random head."""
    torch.manual_seed(1)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 6, **options}
    peft: Any = get_peft_model(model, LoraConfig(**settings)).eval()
    for name, p in peft.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(p, std=0.2)
    peft.save_pretrained(str(folder))
    return peft


def saved(kind: str, folder: Path, auto: Any, labels: int = 3) -> Any:
    """A model with a task head whose backbone lies in `folder`."""
    base = model_of(kind)
    base.base_model.save_pretrained(folder)
    torch.manual_seed(2)
    return auto.from_pretrained(folder, num_labels=labels).eval()


EVA = {"init_lora_weights": "eva", "eva_config": EvaConfig()}
CASES = {
    "bert": (AutoModelForSequenceClassification, ["query", "key", "value", "attention.output.dense"], "SEQ_CLS", {}),
    "bert tags": (AutoModelForTokenClassification, ["query", "value"], "TOKEN_CLS", {"use_rslora": True}),
    "llama": (LlamaForSequenceClassification, ["q_proj", "v_proj"], "SEQ_CLS", {"alpha_pattern": {"q_proj": 3}}),
    "bert eva": (AutoModelForSequenceClassification, ["query", "value"], "SEQ_CLS", EVA),
    "bert ranks": (AutoModelForSequenceClassification, ["query", "value"], "SEQ_CLS", {"rank_pattern": {"query": 2}}),
}


@pytest.mark.filterwarnings("ignore:lora with eva")
@pytest.mark.parametrize("case", CASES)
def test_adopted_answers_are_those_of_peft(case: str, tmp_path: Path) -> None:
    auto, targets, task, options = CASES[case]
    kind = case.split()[0]
    model = saved(kind, tmp_path / "base", auto)
    peft = lora(model, tmp_path / "lora", target_modules=targets, task_type=task, **options)
    inputs = {k: v for k, v in batch_of(kind, (9, 12, 7)).items() if not k.startswith("decoder")}
    with torch.inference_mode():
        wanted = peft(**inputs).logits
    folder = adopt(
        tmp_path / "lora",
        tmp_path / "ours",
        LABELS,
        str(tmp_path / "base"),
        "tagging" if "tags" in case else "classification",
    )
    bank = Bank(str(tmp_path / "base"))
    bank.add("adopted", folder)
    found = bank(adapter_names=["adopted"] * 3, **dict[str, Any](inputs)).logits
    assert found is not None
    keep = inputs["attention_mask"].bool() if "tags" in case else ...
    torch.testing.assert_close(found[keep], wanted[keep], atol=1e-5, rtol=1e-5)


def test_adopted_ones_share_batches_with_other_methods(tmp_path: Path) -> None:
    model = saved("bert", tmp_path / "base", AutoModelForSequenceClassification)
    lora(model, tmp_path / "lora", target_modules=["query", "value"], task_type="SEQ_CLS")
    bank = Bank(str(tmp_path / "base"))
    bank.add("adopted", adopt(tmp_path / "lora", tmp_path / "ours", LABELS, str(tmp_path / "base")))
    bank.add("ours", adapter(load_backbone(str(tmp_path / "base")), tmp_path / "pasta", "pasta"))
    inputs: dict[str, Any] = dict(batch_of("bert", (9, 12)))
    mixed = bank(adapter_names=["adopted", "ours"], **inputs).logits
    alone = bank(adapter_names=["adopted", "adopted"], **inputs).logits
    assert mixed is not None
    assert alone is not None
    torch.testing.assert_close(mixed[0], alone[0], atol=1e-5, rtol=1e-5)
    assert not mixed[1].allclose(alone[1])


def test_an_adopted_one_is_calibrated(tiny_bert: Path, tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    lora(model, tmp_path / "lora", target_modules=["query"], task_type="SEQ_CLS")
    folder = adopt(tmp_path / "lora", tmp_path / "ours", ["neg", "pos"], str(tiny_bert))
    found = recalibrate(folder, rows_of("classification", 40), tmp_path / "calibrated")
    assert found.card.calibration.rows == 40
    assert found.metrics["run"] == {"calibration_rows": 40}


def test_what_cannot_be_adopted_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(tmp_path / "base")
    seq: dict[str, Any] = {"target_modules": ["query"], "task_type": "SEQ_CLS"}

    def refused(error: type[AttentuneError], match: str, labels: list[str] = LABELS, **options: Any) -> None:
        model = saved("bert", tmp_path / "base", AutoModelForSequenceClassification)
        lora(model, tmp_path / "lora", **{**seq, **options})
        with pytest.raises(error, match=match):
            adopt(tmp_path / "lora", tmp_path / "ours", labels, base)
        assert not (tmp_path / "ours").exists()

    refused(UnsupportedError, "LoRA on .*intermediate.dense", target_modules=["intermediate.dense"])
    refused(UnsupportedError, "use_dora", use_dora=True)
    refused(UnsupportedError, "bias='all'", bias="all")
    refused(UnsupportedError, "init_lora_weights='pissa'", init_lora_weights="pissa")
    refused(UnsupportedError, "init_lora_weights='olora'", init_lora_weights="olora")
    refused(
        UnsupportedError,
        "1 tensors besides LoRA .*trainable_tokens_delta",
        trainable_token_indices={"word_embeddings": [3]},
    )
    refused(UnsupportedError, "10 tensors besides LoRA .*LayerNorm", modules_to_save=["classifier", "LayerNorm"])
    refused(UnsupportedError, "one linear layer", task_type="FEATURE_EXTRACTION")
    refused(ConfigError, "3 outputs and 2 labels", labels=["a", "b"])
    refused(ConfigError, "two classes are named 'a'", labels=["a", "b", "a"])
    with pytest.raises(ConfigError, match="lora is the LoRA adapter itself, which stays as it is; name another output"):
        adopt(tmp_path / "lora", tmp_path / "lora", LABELS, base)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / store.CONFIG).touch()
    for kind in ("banana", "regression", "multilabel"):
        labels = [part for label in LABELS for part in ("--label", label)]
        with pytest.raises(SystemExit) as end:
            main(["adopt", str(tmp_path / "lora"), "-o", str(tmp_path / "ours"), *labels, "--task", kind])
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert f"or tagging, found '{kind}'" in said
        assert "ours holds an adapter already" in said
    model = saved("bert", tmp_path / "base", AutoModelForSequenceClassification)
    other: Any = get_peft_model(model, IA3Config(target_modules=["key"], feedforward_modules=[], task_type="SEQ_CLS"))
    other.save_pretrained(tmp_path / "ia3")
    with pytest.raises(UnsupportedError, match="IA3"):
        adopt(tmp_path / "ia3", tmp_path / "ours", LABELS, base)
    roberta = saved("roberta", tmp_path / "roberta", AutoModelForSequenceClassification)
    lora(roberta, tmp_path / "two", **seq)
    with pytest.raises(UnsupportedError, match="one linear layer"):
        adopt(tmp_path / "two", tmp_path / "ours", LABELS, str(tmp_path / "roberta"))
    longformer = saved("longformer", tmp_path / "longformer", AutoModelForTokenClassification)
    lora(longformer, tmp_path / "tags", **{**seq, "task_type": "TOKEN_CLS"})
    with pytest.raises(UnsupportedError, match="Longformer has no global attention when it tags"):
        adopt(tmp_path / "tags", tmp_path / "ours", LABELS, str(tmp_path / "longformer"), "tagging")
