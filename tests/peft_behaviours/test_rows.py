"""adapter_names: each row its own adapter, native head included."""

from typing import Any

import pytest
import torch

from attentune.errors import UnsupportedError

from .kit import FORMS, KINDS, add, answer, batch_of, every_cell, every_form, model_of, named, unchanged, wrap

NAMES = ["default", "__base__", "other", "default", "other"]
GENERATING = [form for form in FORMS if form.method != "pasta"]


def alone(model, batch, name, **more):
    """One adapter's answer to the whole batch."""
    if name == "__base__":
        with model.disable_adapter():
            return answer(model, batch, **more)
    model.set_adapter(name)
    return answer(model.eval(), batch, **more)


@every_cell
def test_mixed_rows_equal_rows_alone(form, kind):
    model, batch = wrap(form, kind), batch_of(kind, rows=len(NAMES))
    add(model, "other", form, kind)
    separate = {name: alone(model, batch, name) for name in NAMES}
    assert not torch.allclose(separate["default"], separate["other"])
    mixed = answer(model, batch, adapter_names=NAMES)
    for row, name in enumerate(NAMES):
        real = batch.get("decoder_input_ids", batch["attention_mask"])[row].bool()
        rows = (separate[name][row], mixed[row])
        a, b = (x if x.dim() == 1 else x[real] for x in rows)
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    model.set_adapter("default")
    torch.testing.assert_close(answer(model.eval(), batch), separate["default"])


@every_form
def test_ranks_lengths_and_blocks_may_differ(form):
    more: dict[str, Any] = {
        "tiny_attention": {"width": 3, "heads": 1, "experts": 1},
        "pasta": {"slots": 1},
        "attempt": {"length": 5, "sources": 1},
        "kernel_mix": {"parts": "qv", "q_rank": 3},
        "prefix_propagation": {"length": 5},
    }[form.method]
    model, batch = wrap(form), batch_of("bert", rows=len(NAMES))
    options: dict[str, Any] = {**form.options, **more, "layers_to_transform": [1]}
    add(model, "other", form, **options)
    separate = {name: alone(model, batch, name) for name in NAMES}
    mixed = answer(model, batch, adapter_names=NAMES)
    for row, name in enumerate(NAMES):
        torch.testing.assert_close(mixed[row], separate[name][row], atol=1e-5, rtol=1e-4)


@every_form
def test_unknown_names_and_wrong_lengths_are_refused(form):
    model, batch = wrap(form), batch_of("bert")
    before = answer(model, batch)
    with unchanged(model):
        with pytest.raises(UnsupportedError, match=r"no such adapter: \['absent'\]; loaded are \['default'\]"):
            answer(model, batch, adapter_names=["default", "absent", "default"])
        for names in (["default"], ["default"] * 2, ["default"] * 4, []):
            with pytest.raises(UnsupportedError, match=f"{len(names)} names were given for 3 rows"):
                answer(model, batch, adapter_names=names)
    assert torch.equal(answer(model, batch), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["input_ids", "inputs_embeds"])
def test_only_beams_may_be_more_rows_than_names(kind, by):
    """Of a model of a task, which has `input_ids` in its signature."""
    model, batch = wrap(FORMS[0], kind), batch_of(kind, rows=4)
    if by == "inputs_embeds":
        batch[by] = model.get_input_embeddings()(batch.pop("input_ids")).detach()
    for names in (["default"], ["default", "__base__"]):
        with pytest.raises(UnsupportedError, match=f"{len(names)} names were given for 4 rows"):
            answer(model, batch, adapter_names=names)
    answer(model, batch, adapter_names=["default", "__base__"] * 2)


@every_form
def test_base_rows_are_the_base(form):
    model, batch = wrap(form), batch_of("bert")
    mixed = answer(model, batch, adapter_names=["__base__"] * 3)
    torch.testing.assert_close(mixed, answer(model_of("bert"), batch))


@pytest.mark.parametrize("form", named(FORMS))
@pytest.mark.parametrize("beams", [1, 3])
def test_generation(form, beams):
    model, batch = wrap(form, "llama"), batch_of("llama", rows=len(NAMES))
    add(model, "other", form, "llama")

    def generate(**more):
        return model.generate(**batch, num_beams=beams, max_new_tokens=5, do_sample=False, min_new_tokens=5, **more)

    separate = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        separate[name] = generate()
    with model.disable_adapter():
        separate["__base__"] = generate()
    mixed = generate(adapter_names=NAMES)
    for row, name in enumerate(NAMES):
        assert mixed[row].tolist() == separate[name][row].tolist(), name


@pytest.mark.parametrize("form", named([form for form in FORMS if form.fits("t5")]))
def test_generation_of_an_encoder_decoder_with_beams(form):
    model, batch = wrap(form, "t5"), batch_of("t5", rows=len(NAMES))
    batch.pop("decoder_input_ids")
    add(model, "other", form, "t5")

    def generate(**more):
        return model.generate(**batch, num_beams=3, max_new_tokens=5, do_sample=False, min_new_tokens=5, **more)

    separate = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        separate[name] = generate()
    with model.disable_adapter():
        separate["__base__"] = generate()
    mixed = generate(adapter_names=NAMES)
    for row, name in enumerate(NAMES):
        assert mixed[row].tolist() == separate[name][row].tolist(), name


def test_native_heads_of_different_shapes_are_refused():
    form = FORMS[0]
    model = wrap(form)
    add(model, "other", form)
    wrapper = model.base_model.model.classifier
    wrapper.modules_to_save["other"] = torch.nn.Linear(32, 5)
    with pytest.raises(UnsupportedError, match="native heads of one batch have equal shapes: 'other' gives"):
        answer(model, batch_of("bert"), adapter_names=["default", "other", "default"])
