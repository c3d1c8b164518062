"""Adapters come, act, rest and go."""

import copy

import pytest
import torch
from peft import get_peft_model

from attentune import KernelMixConfig
from attentune.errors import AttentuneError

from .kit import (
    FORMS,
    add,
    answer,
    base_of,
    batch_of,
    every_cell,
    every_form,
    model_of,
    same,
    tensors_of,
    unchanged,
    wrap,
)


def trained(model):
    return {key for key, p in model.named_parameters() if p.requires_grad}


def hooks(model):
    """How many forward hooks every module has."""
    return {key: (len(m._forward_hooks), len(m._forward_pre_hooks)) for key, m in model.named_modules() if key}


@every_form
def test_attributes(form):
    model = wrap(form)
    assert hasattr(model, "save_pretrained")
    assert hasattr(model, "from_pretrained")
    assert model.active_adapter == "default"
    assert model.active_adapters == ["default"]
    assert list(model.peft_config) == ["default"]
    assert model.base_model.peft_config is model.peft_config
    named = get_peft_model(model_of("bert"), form.config("bert"), adapter_name="mine")
    assert named.active_adapters == ["mine"]
    assert list(named.peft_config) == ["mine"]


@every_cell
def test_the_base_is_untouched(form, kind):
    base = model_of(kind)
    before, wanted = {key: v.clone() for key, v in base.state_dict().items()}, answer(base, batch_of(kind))
    model = wrap(form, kind, model=base)
    assert same(base_of(model), before)
    assert not torch.allclose(answer(model, batch_of(kind)), wanted)
    with model.disable_adapter():
        assert torch.equal(answer(model, batch_of(kind)), wanted)


@every_cell
def test_unload_leaves_the_model_as_it_came(form, kind):
    base, fresh, batch = model_of(kind), model_of(kind), batch_of(kind)
    config = base.config.to_dict()
    model = wrap(form, kind, model=base)
    add(model, "other", form, kind)
    answer(model, batch)
    plain = model.unload()
    assert plain is base
    assert same(plain.state_dict(), fresh.state_dict())
    assert [type(m) for m in plain.modules()] == [type(m) for m in fresh.modules()]
    assert hooks(plain) == hooks(fresh)
    assert not plain._forward_pre_hooks
    assert plain.config.to_dict() == config
    assert not hasattr(plain, "peft_config")
    assert torch.equal(answer(plain, batch), answer(fresh, batch))
    again = wrap(form, kind, model=plain)
    assert torch.equal(answer(again, batch), answer(wrap(form, kind), batch))


@every_form
def test_delete_an_active_adapter(form):
    model, batch = wrap(form), batch_of("bert")
    keys, gradients = set(model.state_dict()), trained(model)
    wanted = answer(model, batch)
    add(model, "other", form)
    model.set_adapter("other")
    with pytest.warns(UserWarning, match="Adapter other was active which is now deleted"):
        model.delete_adapter("other")
    assert model.active_adapters == ["default"]
    assert list(model.peft_config) == ["default"]
    assert set(model.state_dict()) == keys
    assert trained(model) == gradients
    assert torch.equal(answer(model.eval(), batch), wanted)


@pytest.mark.parametrize("parts", ["qvo", "q"])
def test_one_adapter_follows_a_deleted_one_at_every_site(parts):
    """Also where it does not act, and where only another one does."""
    model, batch = get_peft_model(model_of("bert"), KernelMixConfig(parts=parts, init_weights=False)), batch_of("bert")
    model.add_adapter("b", KernelMixConfig(parts="q", init_weights=False))
    model.add_adapter("c", KernelMixConfig(parts="v", init_weights=False, inference_mode=True))
    for gone, left in (("default", "b"), ("b", "c")):
        with pytest.warns(UserWarning, match=f"{gone} was active which is now deleted.*to {left}") as said:
            model.delete_adapter(gone)
        assert len(said) == 1
        assert model.active_adapters == [left]
        assert bool(trained(model)) == (left == "b")
        followed = answer(model.eval(), batch)
        model.set_adapter(left)
        assert torch.equal(answer(model, batch), followed)
    model.delete_adapter("c")
    assert model.active_adapters == []


@every_form
def test_delete_an_inactive_adapter(form):
    model, batch = wrap(form), batch_of("bert")
    keys, wanted = set(model.state_dict()), answer(model, batch)
    add(model, "other", form)
    model.delete_adapter("other")
    assert model.active_adapters == ["default"]
    assert set(model.state_dict()) == keys
    assert not [m for m in model.modules() if "other" in getattr(m, "configs", {})]
    assert not [m for m in model.modules() if "other" in getattr(m, "frozen_peft_weight_names", {})]
    assert torch.equal(answer(model, batch), wanted)
    with pytest.raises(AttentuneError, match="no such adapter"):
        answer(model, batch, adapter_names=["other"] * 3)
    add(model, "other", form)
    model.set_adapter("other")
    assert torch.isfinite(answer(model, batch)).all()


@every_form
def test_delete_the_last_adapter(form):
    model, batch = wrap(form), batch_of("bert")
    model.delete_adapter("default")
    assert model.active_adapters == []
    assert not tensors_of(model)
    assert torch.equal(answer(model.base_model, batch), answer(model_of("bert"), batch))


@every_form
def test_unknown_names_are_refused_without_a_trace(form):
    model = wrap(form)
    with unchanged(model):
        with pytest.raises(ValueError, match="Adapter absent does not exist"):
            model.delete_adapter("absent")
        with pytest.raises(ValueError, match="absent"):
            model.set_adapter("absent")
    assert model.active_adapters == ["default"]


@every_form
def test_a_name_that_is_taken(form):
    model, batch = wrap(form), batch_of("bert")
    wanted = answer(model, batch)
    with unchanged(model), pytest.raises(ValueError, match="Adapter with name 'default' already exists"):
        model.add_adapter("default", form.config("bert"))
    assert torch.equal(answer(model, batch), wanted)


@every_form
def test_a_config_that_does_not_fit_leaves_no_trace(form):
    model, batch = wrap(form), batch_of("bert")
    wanted = answer(model, batch)
    with unchanged(model), pytest.raises(AttentuneError, match=r"layers_to_transform names \[9\]"):
        model.add_adapter("other", form.config("bert", layers_to_transform=[9]))
    assert list(model.peft_config) == ["default"]
    assert torch.equal(answer(model, batch), wanted)


@every_form
def test_switching(form):
    model, batch = wrap(form), batch_of("bert")
    wanted = answer(model, batch)
    add(model, "other", form)
    assert torch.equal(answer(model, batch), wanted)
    model.set_adapter("other")
    assert model.active_adapters == ["other"]
    assert {key.split(".")[-1] for key in trained(model) if "modules_to_save" not in key} == {"other"}
    assert not torch.allclose(answer(model, batch), wanted)
    model.set_adapter("default", inference_mode=True)
    assert not trained(model)
    assert torch.equal(answer(model, batch), wanted)


@every_form
def test_disabling_gives_back_the_state_before(form):
    model, batch = wrap(form), batch_of("bert")
    add(model, "other", form)
    model.set_adapter("other")
    wanted, gradients, base = answer(model, batch), trained(model), answer(model_of("bert"), batch)
    with model.disable_adapter():
        assert torch.equal(answer(model, batch), base)
        assert model.get_model_status().enabled is False
        with model.disable_adapter():
            assert torch.equal(answer(model, batch), base)
        assert torch.equal(answer(model, batch), base)
    assert model.get_model_status().enabled is True
    assert torch.equal(answer(model, batch), wanted)
    assert trained(model) == gradients
    with pytest.raises(RuntimeError, match="on purpose"), model.disable_adapter():
        raise RuntimeError("on purpose")
    assert torch.equal(answer(model, batch), wanted)
    model.base_model.disable_adapter_layers()
    with model.disable_adapter():
        assert torch.equal(answer(model, batch), base)
    assert torch.equal(answer(model, batch), base)
    model.base_model.enable_adapter_layers()
    assert torch.equal(answer(model, batch), wanted)


@every_form
def test_an_irregular_state_warns(form):
    model = wrap(form)
    layer = next(m for m in model.modules() if getattr(m, "configs", None))
    layer.enable_adapters(False)
    warned = pytest.warns(UserWarning, match="some adapter layers that are enabled and others that are disabled")
    with warned, model.disable_adapter():
        pass
    assert model.get_model_status().enabled is True


@every_form
def test_set_requires_grad(form):
    model = wrap(form)
    add(model, "other", form)
    own = {key for key in tensors_of(model) if "modules_to_save" not in key}
    model.set_requires_grad("default", False)
    assert not trained(model) & own
    model.set_requires_grad(["default", "other"])
    assert {key.split(".")[-1] for key in trained(model) if "modules_to_save" not in key} == {"default", "other"}


@every_form
def test_status(form):
    model = wrap(form)
    add(model, "other", form)
    status = model.get_model_status()
    assert status.active_adapters == ["default"]
    assert sorted(status.available_adapters) == ["default", "other"]
    assert status.merged_adapters == []
    layers = model.get_layer_status()
    assert {layer.enabled for layer in layers} == {True}
    assert {tuple(layer.available_adapters) for layer in layers} == {("default", "other")}


@every_cell
def test_a_deep_copy_is_independent(form, kind):
    model, batch = wrap(form, kind), batch_of(kind)
    wanted = answer(model, batch)
    twin = copy.deepcopy(model)
    assert torch.equal(answer(twin, batch), wanted)
    for p in tensors_of(twin).values():
        p.data.normal_()
    changed = answer(twin, batch)
    assert not torch.allclose(changed, wanted)
    assert torch.equal(answer(model, batch), wanted)
    del model
    assert torch.equal(answer(twin, batch), changed)
    plain = twin.unload()
    assert plain.state_dict().keys() == model_of(kind).state_dict().keys()


@every_form
def test_the_tensors_are_shown(form):
    text = repr(wrap(form))
    assert f"_{form.method}): SiteLayer" in text
    assert "ParameterDict" in text


def test_trainable_parameters_are_printed(capsys):
    model = wrap(FORMS[0])
    model.print_trainable_parameters()
    assert capsys.readouterr().out.startswith("trainable params: ")
