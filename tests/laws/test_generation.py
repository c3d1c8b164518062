"""Law 7: with a cache or without, one beam or several, alone or mixed: the same tokens."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, RobertaConfig, RobertaForCausalLM

from attentune.errors import UnsupportedError
from attentune.sites import memory
from laws.cells import GENERATING, Form, adapted, add, generating
from laws.zoo import CACHE, ZOO, answer, batch_of

DECODERS = [cell for cell in GENERATING if cell.values[1] not in ("t5", "bart")]


def prompt_of(kind: str, side: str) -> dict[str, Tensor]:
    batch = batch_of(kind, (8, 5, 6), side=side)
    batch.pop("decoder_input_ids", None)
    return batch


def tokens(model: Any, kind: str, **options: Any) -> Tensor:
    side = "left" if ZOO[kind].causal else "right"
    torch.manual_seed(0)
    return model.generate(
        **prompt_of(kind, side),
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        pad_token_id=ZOO[kind].pad,
        **options,
    )


@pytest.mark.feature("cached")
@generating
def test_cached_equals_uncached(form: Form, kind: str) -> None:
    model = adapted(form, kind)
    assert torch.equal(tokens(model, kind, use_cache=True), tokens(model, kind, use_cache=False))


@pytest.mark.feature("beams")
@generating
def test_beam_search_cached_equals_uncached(form: Form, kind: str) -> None:
    model = adapted(form, kind)
    cached = tokens(model, kind, num_beams=3, use_cache=True)
    assert torch.equal(cached, tokens(model, kind, num_beams=3, use_cache=False))


@pytest.mark.feature("mixed writing")
@generating
@pytest.mark.parametrize("beams", [1, 3])
def test_mixed_rows_generate_what_each_does_alone(form: Form, kind: str, beams: int) -> None:
    model = adapted(form, kind)
    add(model, "other", form, 2)
    names = ["other", "__base__", "default"]
    mixed = tokens(model, kind, num_beams=beams, adapter_names=names)
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                alone = tokens(model, kind, num_beams=beams)
        else:
            model.set_adapter(name)
            alone = tokens(model, kind, num_beams=beams)
        assert torch.equal(mixed[row], alone[row]), f"row {row} of {name}"


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(("form", "kind"), DECODERS)
def test_rows_that_all_name_one_adapter_write_what_it_writes(form: Form, kind: str, beams: int) -> None:
    model = adapted(form, kind)
    add(model, "other", form, 2)
    named = tokens(model, kind, num_beams=beams, adapter_names=["other"] * 3)
    model.set_adapter("other")
    assert torch.equal(named, tokens(model, kind, num_beams=beams))


@pytest.mark.feature("cached")
@pytest.mark.parametrize(("form", "kind"), DECODERS)
def test_a_step_with_the_cache_equals_the_whole(form: Form, kind: str) -> None:
    """Step by step without generate, with an attention mask and without, whoever makes the cache."""
    model, batch = adapted(form, kind), batch_of(kind, (9, 9))
    whole = answer(model, batch)
    for masked, past, use in ((True, None, {"use_cache": True}), (False, None, {}), (False, DynamicCache(), {})):
        steps: list[Tensor] = []
        for start, stop in ((0, 5), (5, 6), (6, 9)):
            mask = {"attention_mask": batch["attention_mask"][:, :stop]} if masked else {}
            out = model(input_ids=batch["input_ids"][:, start:stop], **{CACHE: past}, **use, **mask)
            past, steps = out[CACHE], [*steps, out.logits]
        found = torch.cat(steps, 1)
        if form.method == "attempt":
            # An input-dependent prompt is made from what the first call sees.
            assert found.shape == whole.shape
            continue
        torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@pytest.mark.parametrize("form", [Form("pasta"), Form("prefix_propagation", (("length", 3),))])
def test_a_cache_may_come_by_its_older_name(form: Form) -> None:
    """Who wrote a loop before transformers 5.24 passes it so; what is remembered goes on, whatever it is called."""
    model, batch = adapted(form, "gpt2"), batch_of("gpt2", (9, 9))["input_ids"]
    cache = DynamicCache()
    first = model(input_ids=batch[:, :5], past_key_values=cache, use_cache=True)
    rest = model(input_ids=batch[:, 5:], past_key_values=cache, use_cache=True)
    found = torch.cat([first.logits, rest.logits], 1)
    torch.testing.assert_close(found, model(input_ids=batch).logits, atol=1e-4, rtol=1e-4)


def test_a_cache_is_found_where_transformers_looks_for_it() -> None:
    assert [memory.name_of(names) for names in (["cache", "use_cache"], ["past_key_values"], [])] == [
        "cache", "past_key_values", "past_key_values",
    ]  # fmt: skip
    old, new = DynamicCache(), DynamicCache()
    assert memory.given_in({"past_key_values": old}, "cache") is old
    assert memory.given_in({"past_key_values": old, "cache": new}, "cache") is new
    assert memory.given_in({"past_key_values": old, "cache": None}, "cache") is None
    assert memory.given_in({"cache": new}, "past_key_values") is None
    call: dict[str, Any] = {"past_key_values": None}
    memory.put_into(call, "cache", new)
    assert call == {"cache": new}


@pytest.mark.parametrize("method", ["tiny_attention", "pasta"])
def test_static_caches_are_refused(method: str) -> None:
    model = adapted(Form(method), "llama")
    with pytest.raises(UnsupportedError, match="DynamicCache"):
        tokens(model, "llama", cache_implementation="static")


def test_static_caches_have_no_room_for_a_prompt_s_mask() -> None:
    with pytest.raises(UnsupportedError, match=r"attention_mask is \[B,T\]"):
        tokens(adapted(Form("attempt"), "llama"), "llama", cache_implementation="static")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_prefix_tuning_writes_the_same_with_a_static_cache(kind: str) -> None:
    model = adapted(Form("prefix_propagation", (("mode", "tune"), ("length", 3))), kind)
    assert torch.equal(tokens(model, kind, cache_implementation="static"), tokens(model, kind))


@pytest.mark.parametrize("form", [Form("prefix_propagation", (("length", 3),)), Form("kernel_mix")])
def test_positions_that_skip_padding_go_on_behind_the_cache(form: Form) -> None:
    """RoBERTa counts positions from its padding token, also as a decoder."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=140, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=48, is_decoder=True,
    )  # fmt: skip
    model = adapted(form, "roberta", model=RobertaForCausalLM(config).eval())
    batch = batch_of("roberta", (9, 9))["input_ids"]
    first = model(input_ids=batch[:, :5], use_cache=True)
    rest = model(input_ids=batch[:, 5:], **{CACHE: first[CACHE]}, use_cache=True)
    found = torch.cat([first.logits, rest.logits], 1)
    torch.testing.assert_close(found, model(input_ids=batch, use_cache=False).logits, atol=1e-5, rtol=1e-5)
