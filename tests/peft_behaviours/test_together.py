"""Several active adapters, native heads, and transformers' own adapter methods."""

from contextlib import nullcontext

import pytest
import torch
from peft import PeftModel, get_peft_model

from attentune.errors import UnsupportedError

from .kit import FORMS, add, answer, batch_of, every_form, model_of, named, natively, same, tensors_of, wrap

WIDENING = [form for form in FORMS if form.widens]
plain_forms = pytest.mark.parametrize("form", named([form for form in FORMS if not form.widens]))
widening_forms = pytest.mark.parametrize("form", named(WIDENING))
fresh_start = {"tiny_attention", "pasta", "kernel_mix"}


def two(form, **config):
    """A bare model with two adapters, none with a native head, for two heads cannot be active at once."""
    base = model_of("bert").bert
    torch.manual_seed(1)
    model = get_peft_model(base, form.config(**config)).eval()
    torch.manual_seed(2)
    model.add_adapter("other", form.config(**config))
    return model.eval()


def states(model, **more):
    with torch.no_grad():
        return model(**batch_of("bert"), **more).last_hidden_state


@plain_forms
def test_two_active_adapters_act_one_after_the_other(form):
    model = two(form)
    single = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        single[name] = states(model)
    model.base_model.set_adapter(["default", "other"])
    assert model.active_adapters == ["default", "other"]
    both = states(model)
    assert not any(torch.allclose(both, one) for one in single.values())
    assert {key.split(".")[-1] for key, p in model.named_parameters() if p.requires_grad} == {"default", "other"}
    for p in tensors_of(model, "other").values():
        p.data.zero_()
    if form.method in fresh_start:
        torch.testing.assert_close(states(model), single["default"], atol=1e-5, rtol=1e-5)
    model.set_adapter("default")
    assert torch.equal(states(model), single["default"])


@widening_forms
def test_two_active_prompts_are_refused_in_one_sentence(form):
    model = two(form)
    wanted = states(model)
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(UnsupportedError, match="two adapters that lengthen the sequence") as caught:
        states(model)
    assert "\n" not in str(caught.value)
    model.set_adapter("default")
    assert torch.equal(states(model), wanted)


@every_form
def test_only_one_native_head_can_be_active(form):
    model = wrap(form)
    add(model, "other", form)
    with pytest.raises(ValueError, match="Only one adapter can be set at a time"):
        model.base_model.set_adapter(["default", "other"])


@every_form
def test_native_heads_are_saved_by_task_type(form):
    model = wrap(form)
    add(model, "other", form)
    assert model.modules_to_save == {"classifier", "score"}
    heads = model.base_model.model.classifier.modules_to_save
    assert set(heads) == {"default", "other"}
    assert not torch.equal(heads["default"].weight, heads["other"].weight)
    assert all(p.requires_grad for p in heads["default"].parameters())
    assert not any(p.requires_grad for p in heads["other"].parameters())
    assert not any(p.requires_grad for p in model.base_model.model.classifier.original_module.parameters())


@every_form
def test_modules_to_save_by_name(form, tmp_path):
    base, batch = model_of("bert"), batch_of("bert")
    torch.manual_seed(1)
    model = get_peft_model(base, form.config(modules_to_save=["pooler", "classifier"])).eval()
    for key, p in model.named_parameters():
        if "modules_to_save" in key:
            p.data.add_(0.1)
    wanted = answer(model, batch)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(model_of("bert"), tmp_path).eval()
    assert same(tensors_of(again), tensors_of(model))
    assert torch.equal(answer(again, batch), wanted)
    with model.disable_adapter():
        assert torch.equal(answer(model, batch), answer(model_of("bert"), batch))
    assert torch.equal(answer(model.unload(), batch), answer(model_of("bert"), batch))


@every_form
def test_adapters_with_different_modules_to_save(form):
    base, batch = model_of("bert"), batch_of("bert")
    model = get_peft_model(base, form.config(modules_to_save=["classifier"])).eval()
    model.add_adapter("other", form.config(modules_to_save=["pooler"]))
    for key, p in model.named_parameters():
        if "modules_to_save" in key:
            p.data.add_(0.1)
    single = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        single[name] = answer(model.eval(), batch)
        saved = {
            key.split("modules_to_save.")[1]
            for key, p in model.named_parameters()
            if "modules_to_save" in key and p.requires_grad
        }
        assert {key.split(".")[0] for key in saved} == {name}
    assert not torch.allclose(single["default"], single["other"])


# --- transformers' own methods ---------------------------------------------------------------------------------------


def native(form, names=("default", "other")):
    model = model_of("bert")
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        # peft says so to everybody who adds a second adapter this way.
        with pytest.warns(UserWarning, match="Already found a `peft_config`") if seed else nullcontext():
            model.add_adapter(form.config(), name)
    return model.eval()


@natively
@every_form
def test_native_add_twice_set_disable_enable_delete(form):
    batch, base = batch_of("bert"), answer(model_of("bert"), batch_of("bert"))
    model = native(form)
    assert model.active_adapters() == ["other"]
    second = answer(model, batch)
    model.set_adapter("default")
    first = answer(model, batch)
    assert not torch.allclose(first, second)
    assert torch.equal(first, answer(native(form, ("default",)), batch))
    model.disable_adapters()
    assert torch.equal(answer(model, batch), base)
    model.enable_adapters()
    assert torch.equal(answer(model, batch), first)
    model.delete_adapter("other")
    assert torch.equal(answer(model, batch), first)
    assert not [key for key in model.state_dict() if key.endswith(".other")]
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter(form.config(), "default")
    with pytest.raises(ValueError, match="not found"):
        model.set_adapter("other")
    model.delete_adapter("default")
    assert torch.equal(answer(model, batch), base)
    model.add_adapter(form.config(), "default")
    assert not torch.allclose(answer(model.eval(), batch), base)


def close(a, b):
    """Not bit for bit: tensors that lie elsewhere in memory may be summed in another order."""
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


@natively
@every_form
def test_native_save_and_load(form, tmp_path):
    model, batch = native(form, ("default",)), batch_of("bert")
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    again = model_of("bert")
    torch.manual_seed(9)
    report = again.load_adapter(str(tmp_path))
    assert not report.missing_keys
    assert not report.unexpected_keys
    assert same(tensors_of(again), tensors_of(model))
    close(answer(again.eval(), batch), answer(model, batch))
    peft = PeftModel.from_pretrained(model_of("bert"), tmp_path).eval()
    assert torch.equal(answer(peft, batch), answer(model, batch))


@natively
@every_form
def test_native_load_of_what_peft_saved(form, tmp_path):
    base, batch = model_of("bert"), batch_of("bert")
    model = get_peft_model(base, form.config()).eval()
    wanted = answer(model, batch)
    model.save_pretrained(tmp_path)
    again = model_of("bert")
    torch.manual_seed(9)
    again.load_adapter(str(tmp_path), adapter_name="mine")
    assert again.active_adapters() == ["mine"]
    assert same({key.replace(".mine", ".default"): p for key, p in tensors_of(again, "mine").items()}, tensors_of(base))
    close(answer(again.eval(), batch), wanted)


@natively
def test_native_adapters_of_two_methods_at_once():
    batch = batch_of("bert")
    tiny, pasta = FORMS[0], FORMS[1]
    model = model_of("bert")
    torch.manual_seed(0)
    model.add_adapter(tiny.config(), "tiny")
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="Already found a `peft_config`"):
        model.add_adapter(pasta.config(), "pasta")
    single = {}
    for name in ("tiny", "pasta"):
        model.set_adapter(name)
        single[name] = answer(model.eval(), batch)
    assert torch.equal(single["tiny"], answer(native(tiny, ("tiny",)), batch))
    model.set_adapter(["tiny", "pasta"])
    both = answer(model, batch)
    assert not any(torch.allclose(both, one) for one in single.values())
    model.delete_adapter("pasta")
    model.set_adapter("tiny")
    assert torch.equal(answer(model, batch), single["tiny"])
