"""TaskModel and LanguageModel: adapters come and go, and each keeps what is its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from laws.zoo import batch_of, model_of
from peft import get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from attentune import (
    AttemptConfig,
    ConfigError,
    KernelMixConfig,
    PastaConfig,
    PrefixPropagationConfig,
    TaskModel,
    TinyAttentionConfig,
)
from attentune.errors import UnsupportedError
from attentune.model import LanguageModel


def head(**more: Any) -> Any:
    return {"kind": "sequence", "num_labels": 3, **more}


def trained(model: Any) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("trainable", [True, False])
def test_a_second_adapter_leaves_the_first_one_s_head_trained(trainable: bool, tmp_path: Path) -> None:
    model = get_peft_model(TaskModel(model_of("bert")), PastaConfig(head=head()))
    model.save_pretrained(str(tmp_path))
    before = trained(model)
    assert any("out_weight" in name for name in before)
    model.add_adapter("added", PastaConfig(head=head(num_labels=2)))
    assert trained(model) == before
    model.load_adapter(str(tmp_path), "loaded", is_trainable=trainable)
    assert {name for name in trained(model) if not name.endswith(".loaded")} == before
    assert any(name.endswith("out_weight.loaded") for name in trained(model)) == trainable


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (lambda: KernelMixConfig(head=head(), layers_to_transform=[9]), "layers_to_transform"),
        (lambda: AttemptConfig(head=head(num_labels=0), length=3), "at least one label"),
        (lambda: PastaConfig(head=head(num_labels=0)), "at least one label"),
    ],
    ids=["of another method", "with a head that cannot be", "of the same method"],
)
def test_an_adapter_that_cannot_be_added_leaves_no_trace(config: Any, said: str) -> None:
    model: Any = TaskModel(model_of("bert")).eval()
    model.add_adapter("first", PastaConfig(head=head(), init_weights=False))
    expected = model(**batch_of("bert")).logits
    with pytest.raises(ConfigError, match=said):
        model.add_adapter("second", config())
    assert set(model.peft_config) == {"first"}
    assert torch.equal(model(**batch_of("bert")).logits, expected)
    assert not [name for name, _ in model.named_parameters() if "second" in name]
    model.add_adapter("second", PastaConfig(head=head(), init_weights=False))
    model.set_adapter("second")
    assert not torch.equal(model(**batch_of("bert")).logits, expected)


def test_adapters_over_half_precision_are_float32() -> None:
    model = TaskModel(model_of("bert").to(torch.bfloat16))
    model.add_adapter("one", PastaConfig(head=head()))
    assert {p.dtype for name, p in model.named_parameters() if "pasta" in name} == {torch.float32}


def test_a_saved_module_goes_with_its_adapter() -> None:
    model: Any = LanguageModel(model_of("llama")).eval()
    model.add_adapter("own", TinyAttentionConfig(modules_to_save=["lm_head"]))
    for name, p in model.named_parameters():
        if "modules_to_save.own" in name:
            p.data.normal_()
    batch = batch_of("llama")
    expected = model(**batch).logits
    model.add_adapter("without", TinyAttentionConfig())
    assert torch.equal(model(**batch).logits, expected)
    model.set_adapter("without")
    torch.testing.assert_close(model(**batch).logits, model_of("llama")(**batch).logits)
    model.set_adapter("own")
    assert torch.equal(model(**batch).logits, expected)


def test_a_row_whose_adapter_saved_no_head_has_the_model_s_own() -> None:
    config = BertConfig(
        vocab_size=140, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    torch.manual_seed(0)
    base = BertForSequenceClassification(config)
    model = get_peft_model(base, PastaConfig(init_weights=False, modules_to_save=["classifier"]))
    model.add_adapter("without", PastaConfig(init_weights=False))
    batch = batch_of("bert")
    mixed = model.eval()(**batch, adapter_names=["default", "without", "default"]).logits
    for row, name in enumerate(["default", "without", "default"]):
        model.set_adapter(name)
        torch.testing.assert_close(mixed[row], model.eval()(**batch).logits[row])


def test_pooling_the_prompt_needs_one() -> None:
    with pytest.raises(ConfigError, match="pasta has none"):
        PastaConfig(head=head(pooling="prefix"))
    with pytest.raises(ConfigError, match="prefix_propagation has none as it is set"):
        PrefixPropagationConfig(mode="tune", head=head(pooling="prefix"))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("options", [{"head": head(pooling="prefix")}, {"head": head(), "pool": "prefix"}])
def test_a_prompt_that_sees_no_text_is_not_pooled(kind: str, options: dict[str, Any]) -> None:
    model = TaskModel(model_of(kind).model if kind == "llama" else model_of(kind).transformer)
    with pytest.raises(UnsupportedError, match="pooling 'last' reads the whole text"):
        model.add_adapter("one", PrefixPropagationConfig(**options))


@pytest.mark.parametrize("kind", ["bert", "modernbert", "t5"])
def test_a_pooled_prompt_is_past_the_norm_of_the_stack(kind: str) -> None:
    """It is the state that `pool="prefix"` puts at the text's first position."""
    found: list[Any] = []
    forms: list[dict[str, Any]] = [{"head": head(pooling="prefix")}, {"head": head(), "pool": "prefix"}]
    for options in forms:
        model = TaskModel(model_of(kind)).eval()
        torch.manual_seed(1)
        model.add_adapter("one", PrefixPropagationConfig(length=3, init_weights=False, **options))
        batch = batch_of(kind)
        found.append(model.states(batch["input_ids"], batch["attention_mask"]))
    torch.testing.assert_close(found[0].prefix(), found[1].last[:, 0])


def test_a_prompt_stays_beside_an_adapter_that_puts_no_rows_in_front() -> None:
    """The kernel form with an MLP has a place at the entrance, and puts nothing there, whichever was added first."""
    prompt = ("prompt", AttemptConfig(length=3, init_weights=False))
    kernel = ("kernel", PrefixPropagationConfig(length=3, mode="kernel", mlp=5, init_weights=False))
    batch = batch_of("bert")
    found: list[Any] = []
    for order in ((prompt, kernel), (kernel, prompt)):
        model = TaskModel(model_of("bert")).eval()
        for name, config in order:
            torch.manual_seed(1)
            model.add_adapter(name, config)
        model.set_adapter([name for name, _ in order])
        found.append(model(batch["input_ids"], batch["attention_mask"]).last_hidden_state)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("pool", ["text", "prefix"])
def test_padding_on_the_left_changes_no_pooled_state(pool: str) -> None:
    config = PrefixPropagationConfig(length=3, pool=pool, init_weights=False, head=head())
    torch.manual_seed(1)
    model = get_peft_model(TaskModel(model_of("roberta")), config).eval()
    right, left = (model(**batch_of("roberta", side=side)).logits for side in ("right", "left"))
    torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


def test_shapes_can_be_had_without_numbers() -> None:
    """On the meta device, where nothing is calculated."""
    with torch.device("meta"):
        model = get_peft_model(model_of("bert"), TinyAttentionConfig())
    found = model(input_ids=torch.ones(2, 5, dtype=torch.long, device="meta")).last_hidden_state
    assert found.shape == (2, 5, 32)


@pytest.mark.parametrize("chosen", [None, ["other"]])
def test_what_is_merged_keeps_its_head(chosen: list[str] | None) -> None:
    model: Any = get_peft_model(TaskModel(model_of("bert")), KernelMixConfig(init_weights=False, head=head()))
    model.add_adapter("other", KernelMixConfig(init_weights=False, head=head(num_labels=5)))
    batch, left = batch_of("bert"), (chosen or ["default"])[0]
    model.eval().set_adapter(left)
    expected = model(**batch).logits
    model.set_adapter("default")
    merged = model.merge_and_unload(adapter_names=chosen)
    torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    assert [name for name in merged.state_dict() if name.startswith("heads")] == [
        f"heads.merged.{key}" for key in ("out_weight", "out_bias")
    ]
    assert not any(p.requires_grad for p in merged.parameters())


def test_what_is_merged_is_adapted_anew() -> None:
    """Its head answers where no adapter's does, whatever is active, and is never trained."""
    batch = batch_of("bert")
    first: Any = get_peft_model(TaskModel(model_of("bert")), KernelMixConfig(init_weights=False, head=head()))
    merged = first.eval().merge_and_unload()
    expected = merged(**batch).logits
    for config in (KernelMixConfig(head=head(num_labels=5)), TinyAttentionConfig(head=head(num_labels=5))):
        model: Any = get_peft_model(merged, config).eval()
        assert model(**batch).logits.shape[-1] == 5
        mixed = model(**batch, adapter_names=["default", "__base__", "__base__"])
        assert mixed.num_labels.tolist() == [5, 3, 3]
        torch.testing.assert_close(mixed.logits[1:, :3], expected[1:], atol=1e-5, rtol=1e-5)
        with model.disable_adapter():
            torch.testing.assert_close(model(**batch).logits, expected)
        merged = model.unload()
    model = get_peft_model(merged, KernelMixConfig())
    torch.testing.assert_close(model.eval()(**batch).logits, expected)
    assert not any("heads" in name for name, p in model.named_parameters() if p.requires_grad)
    again = model.merge_and_unload()
    torch.testing.assert_close(again(**batch).logits, expected)


def test_longformer_has_a_global_token_whichever_side_is_padded() -> None:
    """The first of the text, for which only the mask tells where it stands."""
    torch.manual_seed(1)
    config = TinyAttentionConfig(init_weights=False, head=head(pooling="mean"))
    model = get_peft_model(TaskModel(model_of("longformer")), config).eval()
    batches = [batch_of("longformer", side=side) for side in ("right", "left")]
    told = model(**batches[0]).logits
    for batch in batches:
        del batch["global_attention_mask"]
        torch.testing.assert_close(model(**batch).logits, told, atol=1e-5, rtol=1e-5)
    whole = batches[0]["input_ids"][:1]
    torch.testing.assert_close(model(input_ids=whole).logits, told[:1], atol=1e-5, rtol=1e-5)
