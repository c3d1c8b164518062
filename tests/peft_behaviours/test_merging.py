"""Kernel-mix merges into the frozen weights; the other methods say in one sentence that they cannot."""

import pytest
import torch
from peft import get_peft_model

from attentune.errors import UnsupportedError
from attentune.sites import SiteLayer

from .kit import FORMS, MERGING, add, answer, base_of, batch_of, model_of, named, same, unchanged, wrap

merging = pytest.mark.parametrize("form", named(MERGING))
others = pytest.mark.parametrize("form", named([form for form in FORMS if form not in MERGING]))
MERGE_KINDS = {"bert": {}, "gpt2": {}, "roberta": {}, "llama": {"biases": False}, "t5": {"biases": False}}
"""Architectures, with what an adapter needs to merge there: no biases where projections have none."""
kinds = pytest.mark.parametrize("kind", MERGE_KINDS)


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@merging
@kinds
def test_merged_answers_as_before_and_unmerging_restores_bit_for_bit(form, kind):
    model, batch = wrap(form, kind, **MERGE_KINDS[kind]), batch_of(kind)
    before, weights = answer(model, batch), base_of(model)
    model.merge_adapter()
    assert not same(base_of(model), weights)
    close(answer(model, batch), before)
    model.unmerge_adapter()
    assert same(base_of(model), weights)
    assert torch.equal(answer(model, batch), before)


@merging
@kinds
def test_merge_and_unload_leaves_the_plain_architecture(form, kind):
    model, batch = wrap(form, kind, **MERGE_KINDS[kind]), batch_of(kind)
    before = answer(model, batch)
    plain = model.merge_and_unload()
    assert plain.state_dict().keys() == model_of(kind).state_dict().keys()
    assert {type(m) for m in plain.modules()} == {type(m) for m in model_of(kind).modules()}
    close(answer(plain, batch), before)


@merging
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_merging_in_half_precision_rounds_once(form, dtype):
    half, full, batch = wrap(form, model=model_of("bert").to(dtype)), wrap(form), batch_of("bert")
    weights = base_of(half)
    full.load_state_dict({key: value.float() for key, value in half.state_dict().items()})
    half.merge_adapter()
    full.merge_adapter()
    rounded = {key: value.to(dtype) for key, value in base_of(full).items()}
    assert same(base_of(half), rounded)
    assert torch.isfinite(answer(half, batch)).all()
    half.unmerge_adapter()
    assert same(base_of(half), weights)


@merging
def test_nan_and_safe_merge_leave_the_base_intact(form):
    """The NaN sits in the last site, so that earlier ones have been merged when it is found."""
    model, batch = wrap(form), batch_of("bert")
    before, weights = answer(model, batch), base_of(model)
    bad = [p for key, p in model.named_parameters() if key.endswith("output_kernel_mix.head_b.default")][-1]
    good = bad.detach().clone()
    bad.data[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        model.merge_adapter(safe_merge=True)
    assert same(base_of(model), weights)
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_and_unload(safe_merge=True)
    assert same(base_of(model), weights)
    assert not any(getattr(m, "merged_adapters", []) for m in model.modules())
    bad.data.copy_(good)
    assert torch.equal(answer(model, batch), before)
    model.merge_adapter(safe_merge=True)
    close(answer(model, batch), before)


@merging
def test_a_merge_that_fails_keeps_what_was_merged_before(form):
    model = wrap(form)
    torch.manual_seed(2)
    model.add_adapter("other", form.config(init_weights=False))
    model.merge_adapter(["default"])
    merged = base_of(model)
    bad = [p for key, p in model.named_parameters() if key.endswith("output_kernel_mix.head_b.other")][-1]
    bad.data[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        model.merge_adapter(["other"], safe_merge=True)
    assert same(base_of(model), merged)
    assert {tuple(m.merged_adapters) for m in model.modules() if isinstance(m, SiteLayer)} == {("default",)}


@merging
def test_merging_twice_is_merging_once(form):
    model, batch = wrap(form), batch_of("bert")
    before = answer(model, batch)
    model.merge_adapter()
    once = base_of(model)
    model.merge_adapter()
    assert same(base_of(model), once)
    close(answer(model, batch), before)
    close(answer(model.merge_and_unload(), batch), before)


@merging
def test_several_adapters_one_by_one_or_together(form):
    """All ways to add two adapters up; the second reads the frozen keys of the unmerged model."""
    batch, ways = batch_of("bert"), {}
    for way in ("sequential", "together", "active"):
        base = model_of("bert")
        torch.manual_seed(1)
        model = get_peft_model(base, form.config()).eval()
        weights = base_of(model)
        torch.manual_seed(3)
        model.add_adapter("other", form.config())
        if way == "sequential":
            model.merge_adapter(["default"])
            model.merge_adapter(["other"])
        elif way == "together":
            model.merge_adapter(["default", "other"])
        else:
            model.base_model.set_adapter(["default", "other"])
            model.eval().merge_adapter()
        ways[way] = base_of(model)
        assert torch.isfinite(answer(model, batch)).all()
        model.unmerge_adapter()
        assert same(base_of(model), weights)
    assert same(ways["sequential"], ways["together"])
    assert same(ways["active"], ways["together"])


@merging
def test_only_the_named_adapter_is_merged(form):
    model, batch = wrap(form), batch_of("bert")
    add(model, "other", form)
    model.set_adapter("other")
    wanted = answer(model.eval(), batch)
    plain = model.merge_and_unload(adapter_names=["other"])
    close(answer(plain, batch), wanted)


@merging
def test_while_merged_nothing_else_acts(form):
    model, batch = wrap(form), batch_of("bert")
    before = answer(model, batch)
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged"):
        model.delete_adapter("default")
    with pytest.raises(UnsupportedError, match="merged into the base weights"):
        answer(model, batch, adapter_names=["__base__"] * 3)
    close(answer(model, batch), before)
    model.unmerge_adapter()
    assert torch.equal(answer(model, batch), before)


@merging
def test_disabling_a_merged_adapter_gives_the_base(form):
    """As with LoRA: it is unmerged, and acts again afterwards."""
    model, batch = wrap(form), batch_of("bert")
    before = answer(model, batch)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(answer(model, batch), answer(model_of("bert"), batch))
    assert torch.equal(answer(model, batch), before)


@merging
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_biases_without_a_place_to_merge_into(form, kind):
    model, batch = wrap(form, kind), batch_of(kind)
    before = answer(model, batch)
    with unchanged(model), pytest.raises(UnsupportedError, match="no bias to merge one into") as caught:
        model.merge_adapter()
    assert "biases=False" in str(caught.value)
    assert torch.equal(answer(model, batch), before)


@others
def test_the_other_methods_refuse_in_one_sentence_and_change_nothing(form):
    model, batch = wrap(form), batch_of("bert")
    before = answer(model, batch)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with unchanged(model), pytest.raises(UnsupportedError, match=f"{form.method} has no merged form") as caught:
            merge()
        assert "Methods that merge: kernel_mix" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert torch.equal(answer(model, batch), before)
