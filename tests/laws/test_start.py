"""Law 1: where adapters start, and that they leave without a trace."""

import copy
from typing import Any

import pytest
import torch

from attentune import METHODS
from attentune.errors import UnsupportedError
from laws.cells import CELLS, FORMS, REFUSALS, Form, adapted, cells
from laws.matrix import REFUSED, Says
from laws.zoo import ZOO, answer, batch_of, model_of

IDENTITY = ("tiny_attention", "pasta", "kernel_mix", "loreft")


def test_cells() -> None:
    """Every registered method takes part, on every architecture or with a refusal."""
    assert {form.method for form in FORMS} == set(METHODS)
    assert len(CELLS) + len(REFUSALS) == len(FORMS) * len(ZOO)


@pytest.mark.feature("start")
@cells
def test_default_start_is_the_base(form: Form, kind: str) -> None:
    batch = batch_of(kind)
    base = answer(model_of(kind), batch)
    model = adapted(form, kind, init_weights=True)
    if form.method in IDENTITY or dict(form.options).get("mode") == "kernel":
        assert torch.equal(answer(model, batch), base)
    else:
        # A base row of a widened batch: its prompt rows are masked.
        mixed = answer(model, batch, adapter_names=["default", "__base__", "__base__"])
        real = batch.get("decoder_input_ids", batch["attention_mask"])[1:].bool()
        torch.testing.assert_close(mixed[1:][real], base[1:][real], atol=1e-5, rtol=1e-5)


@pytest.mark.feature("disabled")
@cells
def test_random_start_differs_and_disabled_is_the_base(form: Form, kind: str) -> None:
    batch = batch_of(kind)
    base = answer(model_of(kind), batch)
    model = adapted(form, kind)
    assert not torch.allclose(answer(model, batch), base, atol=1e-4)
    with model.disable_adapter():
        assert torch.equal(answer(model, batch), base)
    assert not torch.allclose(answer(model, batch), base, atol=1e-4)


@pytest.mark.feature("unloaded")
@cells
def test_unload_leaves_nothing(form: Form, kind: str) -> None:
    clean: Any = model_of(kind)
    names, keys = [n for n, _ in clean.named_modules()], list(clean.state_dict())
    model = adapted(form, kind)
    batch = batch_of(kind)
    answer(model, batch)
    bare = model.unload()
    assert [n for n, _ in bare.named_modules()] == names
    assert list(bare.state_dict()) == keys
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in bare.modules())
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in clean.modules())
    assert torch.equal(answer(bare, batch), answer(clean, batch))


@pytest.mark.feature("start")
@pytest.mark.parametrize(("form", "kind"), REFUSALS)
def test_refusals_are_one_sentence(form: Form, kind: str, record_property: Says) -> None:
    with pytest.raises(UnsupportedError) as error:
        adapted(form, kind)
    assert "\n" not in str(error.value)
    record_property(REFUSED, str(error.value))


@pytest.mark.feature("copied", kind="bert")
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.label)
def test_a_copy_after_a_forward_is_independent(form: Form) -> None:
    batch = batch_of("bert")
    model = adapted(form, "bert")
    expected = answer(model, batch)
    other = copy.deepcopy(model)
    assert torch.equal(answer(other, batch), expected)
    for p in other.parameters():
        if p.requires_grad:
            p.data += 1
    assert not torch.equal(answer(other, batch), expected)
    assert torch.equal(answer(model, batch), expected)
