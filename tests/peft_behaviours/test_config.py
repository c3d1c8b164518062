"""What peft asks of every config, and of the public names."""

import inspect
import json

import pytest
from peft import PeftConfig, PeftModel, __version__, get_peft_config

import attentune
from attentune import MethodConfig
from attentune.errors import ConfigError

from .kit import FORMS, answer, batch_of, every_form, model_of, wrap


@every_form
def test_json_there_and_back(form, tmp_path):
    cfg = form.config("bert", layers_to_transform=[1], inference_mode=True, revision="abc")
    cfg.save_pretrained(tmp_path)
    again = PeftConfig.from_pretrained(tmp_path)
    assert type(again) is type(cfg)
    assert again.to_dict() == cfg.to_dict()
    assert type(cfg).from_pretrained(tmp_path).to_dict() == cfg.to_dict()


@every_form
def test_keys_of_a_later_version_are_ignored_with_a_warning(form, tmp_path):
    cfg = form.config("bert")
    cfg.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "from_the_future": 1}))
    with pytest.warns(UserWarning, match=r"Unexpected keyword arguments \['from_the_future'\]"):
        again = PeftConfig.from_pretrained(tmp_path)
    assert again.to_dict() == cfg.to_dict()


@every_form
def test_the_version_of_peft_is_recorded(form):
    assert form.config().peft_version == __version__


@every_form
def test_task_types_are_checked(form):
    with pytest.raises(ValueError, match="Invalid task type: 'SEQ_CLASSIFICATION'"):
        form.config(task_type="SEQ_CLASSIFICATION")


@every_form
def test_the_type_tells_the_method(form):
    cfg = form.config()
    assert cfg.peft_type == f"ATTENTUNE_{form.method.upper()}"
    assert cfg.peft_type.value == cfg.to_dict()["peft_type"]
    assert not cfg.is_prompt_learning
    assert not cfg.is_adaption_prompt
    given = {"peft_type": cfg.peft_type, "task_type": "SEQ_CLS", "inference_mode": False, **form.options}
    assert type(get_peft_config(given)) is type(cfg)


@every_form
def test_a_type_that_nobody_registered(form, tmp_path):
    form.config().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace("ATTENTUNE_", "ATTENTUNE_SELDOM_"))
    with pytest.raises(KeyError):
        PeftConfig.from_pretrained(tmp_path)


@every_form
def test_a_config_is_not_changed_by_a_second_model(form):
    """What is filled in from a backbone stays, as in every saved adapter; nothing else moves."""
    cfg = form.config()
    first = PeftModel(model_of("bert"), cfg).eval()
    filled = cfg.to_dict()
    second = PeftModel(model_of("bert"), cfg).eval()
    assert cfg.to_dict() == filled
    assert answer(first, batch_of("bert")).shape == answer(second, batch_of("bert")).shape


@every_form
def test_another_method_s_config_is_refused(form):
    other = next(f for f in FORMS if f.method != form.method)
    model = wrap(form)
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        model.add_adapter("other", other.config("bert"))
    with pytest.raises(ConfigError, match="Config, not a "):
        type(model.base_model)(model_of("bert"), other.config(), "default")
    assert list(model.peft_config) == ["default"]


def test_every_public_name_is_documented():
    """peft's `make quality` asks for a docstring of whatever its documentation may name."""
    for name in attentune.__all__:
        found = getattr(attentune, name)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert inspect.getdoc(found), name
            assert not (inspect.getdoc(found) or "").startswith(f"{name}("), f"{name} has the docstring of dataclass"


def test_every_method_of_a_config_is_documented():
    for kind in [MethodConfig, *(type(form.config()) for form in FORMS)]:
        assert "(" not in (inspect.getdoc(kind) or "(").split("\n")[0]
