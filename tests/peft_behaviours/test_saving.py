"""save_pretrained, from_pretrained, load_adapter."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import (
    AutoPeftModelForSequenceClassification,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file

from attentune import MethodConfig

from .kit import FORMS, add, answer, batch_of, every_cell, every_form, model_of, same, tensors_of, wrap

FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors"]


@every_cell
def test_answers_and_tensors_are_equal_after_a_reload(form, kind, tmp_path):
    model, batch = wrap(form, kind), batch_of(kind)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        again = PeftModel.from_pretrained(model_of(kind), tmp_path).eval()
    assert type(again) is type(model)
    assert same(tensors_of(model), tensors_of(again))
    assert torch.equal(answer(again, batch), answer(model, batch))
    assert not torch.equal(answer(again, batch), answer(model_of(kind), batch))


@every_form
def test_a_missing_tensor_is_told(form, tmp_path):
    wrap(form).save_pretrained(tmp_path)
    path = tmp_path / FILES[2]
    tensors = load_file(path)
    lost = next(key for key in tensors if f"_{form.method}." in key)
    save_file({key: value for key, value in tensors.items() if key != lost}, path)
    with pytest.warns(UserWarning, match="Found missing adapter keys while loading the checkpoint") as caught:
        PeftModel.from_pretrained(model_of("bert"), tmp_path)
    assert any(f"{lost}.default" in str(warning.message) for warning in caught)


@every_form
def test_another_name_than_it_was_saved_under(form, tmp_path):
    model, batch = wrap(form), batch_of("bert")
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(model_of("bert"), tmp_path, adapter_name="other").eval()
    assert list(again.peft_config) == ["other"]
    assert torch.equal(answer(again, batch), answer(model, batch))


@every_form
def test_low_cpu_mem_usage_gives_the_same_answers(form, tmp_path):
    model, batch = wrap(form), batch_of("bert")
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(model_of("bert"), tmp_path, low_cpu_mem_usage=True).eval()
    again.load_adapter(tmp_path, "other", low_cpu_mem_usage=True)
    assert {p.device.type for p in again.parameters()} == {"cpu"}
    for name in ("default", "other"):
        again.set_adapter(name)
        loaded = {key.replace(f".{name}", ".default"): p for key, p in tensors_of(again, name).items()}
        assert same(loaded, tensors_of(model))
        # Not bit for bit: tensors that lie elsewhere in memory may be summed in another order.
        torch.testing.assert_close(answer(again.eval(), batch), answer(model, batch), atol=1e-6, rtol=1e-6)


@every_form
def test_several_adapters_go_to_folders_of_their_own(form, tmp_path):
    model, batch = wrap(form), batch_of("bert")
    add(model, "other", form)
    before = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        before[name] = answer(model.eval(), batch)
    assert not torch.equal(before["default"], before["other"])
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "other"])
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == FILES[1:]
    again = PeftModel.from_pretrained(model_of("bert"), tmp_path)
    again.load_adapter(tmp_path / "other", "other")
    for name in ("default", "other"):
        again.set_adapter(name)
        assert torch.equal(answer(again.eval(), batch), before[name])


@every_form
def test_selected_adapters(form, tmp_path):
    model = wrap(form)
    add(model, "other", form)
    model.save_pretrained(tmp_path, selected_adapters=["other"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "other"]
    with pytest.raises(ValueError, match="invalid"):
        model.save_pretrained(tmp_path, selected_adapters=["absent"])


@every_form
@pytest.mark.parametrize("name", ["query", "output", "layer", "shift", "out"])
def test_a_name_that_is_a_modules_name_or_part_of_one(form, name, tmp_path):
    """What "default" has in the projection "query" is not the adapter "query"'s; peft goes by names."""
    base, batch = model_of("bert"), batch_of("bert")
    model = wrap(form, model=base)
    add(model, name, form)
    assert set(load(model, name, tmp_path)) == set(load(model, "default", tmp_path))
    model.set_adapter(name)
    wanted = answer(model.eval(), batch)
    again = PeftModel.from_pretrained(model_of("bert"), tmp_path / name, adapter_name=name).eval()
    assert torch.equal(answer(again, batch), wanted)
    model.set_adapter("default")
    model.delete_adapter(name)
    assert not [key for key in model.state_dict() if key.endswith(f".{name}")]


def load(model, name, folder):
    model.save_pretrained(folder, selected_adapters=[name])
    return load_file((folder if name == "default" else folder / name) / FILES[2])


@every_form
def test_keys_are_peft_s_and_name_no_adapter(form, tmp_path):
    keys = load(wrap(form), "default", tmp_path)
    assert all(key.startswith("base_model.model.") and "default" not in key.split(".") for key in keys)


@every_form
def test_the_config_file(form, tmp_path):
    model = wrap(form)
    model.get_base_model().config.save_pretrained(tmp_path / "backbone")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "backbone")
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / FILES[1]).read_text())
    assert saved["inference_mode"] is True
    assert saved["base_model_name_or_path"] == str(tmp_path / "backbone")
    assert list(saved) == sorted(saved)
    again = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(again, MethodConfig)
    assert type(again) is type(model.peft_config["default"])
    assert again.key() == model.peft_config["default"].key()
    assert model.peft_config["default"].inference_mode is False


@every_form
def test_the_card_is_a_peft_card(form, tmp_path):
    wrap(form).save_pretrained(tmp_path)
    text = (tmp_path / FILES[0]).read_text()
    assert "library_name: peft" in text
    assert "base_model:adapter:" in text


@every_form
def test_an_existing_card_is_kept(form, tmp_path):
    (tmp_path / FILES[0]).write_text("---\nlicense: mit\n---\nMine.\n")
    wrap(form).save_pretrained(tmp_path)
    text = (tmp_path / FILES[0]).read_text()
    assert "license: mit" in text
    assert "library_name: peft" in text
    assert "Mine." in text


@every_form
@pytest.mark.parametrize("trainable", [False, True])
def test_what_trains_after_a_load(form, trainable, tmp_path):
    model = wrap(form)
    frozen = {key for key, p in tensors_of(model).items() if not p.requires_grad}
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(model_of("bert"), tmp_path, is_trainable=trainable)
    tensors = tensors_of(again)
    assert {key for key, p in tensors.items() if p.requires_grad} == (set(tensors) - frozen if trainable else set())
    assert not any(p.requires_grad for key, p in again.named_parameters() if key not in tensors)


@every_form
def test_state_dicts_there_and_back(form):
    model, other, batch = wrap(form), wrap(form, seed=5), batch_of("bert")
    state = {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
    assert not torch.equal(answer(model, batch), answer(other, batch))
    result = set_peft_model_state_dict(other, state)
    assert not result.unexpected_keys
    assert torch.equal(answer(model, batch), answer(other, batch))


@every_form
def test_the_state_dict_of_a_given_model_state(form):
    model = wrap(form)
    given = {key: value + 1 for key, value in model.state_dict().items()}
    found = get_peft_model_state_dict(model, state_dict=given)
    plain = get_peft_model_state_dict(model)
    assert same(found, {key: value + 1 for key, value in plain.items()})


@every_form
def test_auto_model(form, tmp_path):
    base = model_of("bert")
    base.save_pretrained(tmp_path / "base")
    again = type(base).from_pretrained(tmp_path / "base")
    model, batch = wrap(form, model=again), batch_of("bert")
    model.save_pretrained(tmp_path / "adapter")
    auto = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(answer(auto, batch), answer(model, batch))


def test_a_folder_on_another_backbone_says_so(tmp_path):
    form = FORMS[0]
    wrap(form).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(wider(), tmp_path)
    assert Path(tmp_path / FILES[2]).is_file()


def wider():
    config = model_of("bert").config
    config.hidden_size = 64
    return type(model_of("bert"))(config)
