"""Calling: positions, generation, precision."""

import pytest
import torch

from attentune import PastaConfig
from attentune.errors import UnsupportedError

from .kit import FORMS, answer, batch_of, every_cell, every_form, model_of, named, tensors_of, wrap

HALF = [torch.float16, torch.bfloat16]


@every_cell
def test_positional_arguments(form, kind):
    model, batch = wrap(form, kind), batch_of(kind)
    tokens, mask = batch.pop("input_ids"), batch.pop("attention_mask")
    with torch.no_grad():
        if kind in ("gpt2", "llama"):
            wanted = model(input_ids=tokens, attention_mask=None).logits
            base = model.get_base_model()
            assert torch.equal(base(tokens).logits, wanted)
            assert torch.equal(model(tokens).logits, wanted)
        else:
            wanted = model(input_ids=tokens, attention_mask=mask, **batch).logits
            assert torch.equal(model(tokens, mask, **batch).logits, wanted)
            assert torch.equal(model.get_base_model()(tokens, mask, **batch).logits, wanted)


@pytest.mark.parametrize("form", named(FORMS))
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_generation_by_position_and_by_name(form, kind):
    model, batch = wrap(form, kind), batch_of(kind)
    options = {"max_new_tokens": 4, "do_sample": False, "attention_mask": batch["attention_mask"]}
    named_out = model.generate(input_ids=batch["input_ids"], **options)
    assert torch.equal(model.generate(batch["input_ids"], **options), named_out)
    assert named_out.shape[0] == 3
    assert torch.equal(named_out[:, :8], batch["input_ids"])


@pytest.mark.parametrize("form", named(FORMS))
def test_generation_differs_from_the_base_and_goes_back_to_it(form):
    model, batch = wrap(form, "gpt2"), batch_of("gpt2")
    options = {"max_new_tokens": 12, "do_sample": False}
    base = model_of("gpt2").generate(**batch, **options)
    tuned = model.generate(**batch, **options)
    with model.disable_adapter():
        assert torch.equal(model.generate(**batch, **options), base)
    assert torch.equal(model.generate(**batch, **options), tuned)


@every_cell
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_forward(form, kind, dtype):
    model, full, batch = wrap(form, kind, model=model_of(kind).to(dtype)), wrap(form, kind), batch_of(kind)
    full.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
    found = answer(model, batch)
    assert found.dtype == dtype
    wanted = answer(full, batch)
    real = torch.ones_like(wanted, dtype=torch.bool)
    if kind in ("roberta", "gpt2", "llama"):
        real &= batch["attention_mask"].bool()[..., None]
    torch.testing.assert_close(found.float()[real], wanted[real], atol=0.15 * float(wanted.std()) + 0.05, rtol=0.1)


def dtypes(model, name="default"):
    """Of an adapter's own tensors; native heads keep the backbone's precision, as with every method of peft."""
    return {p.dtype for key, p in tensors_of(model, name).items() if "modules_to_save" not in key}


@every_form
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_adapters_are_float32_unless_told_otherwise(form, autocast, dtype, tmp_path):
    from peft import PeftModel, get_peft_model

    model = get_peft_model(model_of("bert").to(dtype), form.config("bert"), autocast_adapter_dtype=autocast).eval()
    wanted = torch.float32 if autocast else dtype
    assert dtypes(model) == {wanted}
    assert {p.dtype for key, p in model.named_parameters() if "default" not in key} == {dtype}
    answer(model, batch_of("bert"))
    model.add_adapter("other", form.config("bert"), autocast_adapter_dtype=autocast)
    assert dtypes(model, "other") == {wanted}
    model.save_pretrained(tmp_path)
    for low in (True, False):
        again = PeftModel.from_pretrained(
            model_of("bert").to(dtype), tmp_path, autocast_adapter_dtype=autocast, low_cpu_mem_usage=low
        ).eval()
        assert dtypes(again) == {wanted}, f"low_cpu_mem_usage={low}"
        torch.testing.assert_close(answer(again, batch_of("bert")), answer(model, batch_of("bert")))


@every_form
def test_autocast(form):
    model, batch = wrap(form), batch_of("bert")
    wanted = answer(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = answer(model, batch)
    torch.testing.assert_close(found.float(), wanted, atol=0.1, rtol=0.1)


def test_embeddings_instead_of_tokens():
    """All but PASTA, which finds special tokens by id."""
    batch = batch_of("bert")
    for form in FORMS:
        model = wrap(form)
        embeds = model.get_base_model().get_input_embeddings()(batch["input_ids"]).detach()
        inputs = {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"]}
        if form.config().__class__ is PastaConfig:
            with pytest.raises(UnsupportedError, match="pass input_ids, not inputs_embeds"):
                answer(model, inputs)
        else:
            torch.testing.assert_close(answer(model, inputs), answer(model, batch))
