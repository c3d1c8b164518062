"""Blocks in int8 and in 4 bits: the formula of int8, close to the float backbone, rows that ignore each other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws.zoo import batch_of, model_of, rows_of
from safetensors.torch import load_file
from serving.kit import adapter

import attentune
from attentune import store
from attentune.backbones import fingerprint, load_backbone
from attentune.errors import ConfigError
from attentune.quantised import int8, quantise
from attentune.quantised.int8 import Int8Linear, product
from attentune.serving import Ask, Bank, Engine

KINDS = ("bert", "deberta-v2", "modernbert", "longformer", "t5", "gpt2", "llama")
FORMS: dict[str, dict[str, Any]] = {
    "pasta": {},
    "kernel_mix": {},
    "prefix_propagation": {"length": 3},
    "tiny_attention": {},
}


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 5), width=st.integers(2, 9), out=st.integers(1, 7), seed=st.integers(0, 999))
def test_the_product_is_that_of_the_formula(rows: int, width: int, out: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x, w, b = (torch.randn(*shape, generator=draw) for shape in ((rows, width), (out, width), (out,)))
    x[0] = 0
    found = Int8Linear(w, b)(x[None])
    for i in range(rows):
        for j in range(out):
            sx, sw = max(map(abs, x[i].tolist())) / 127 or 1, max(map(abs, w[j].tolist())) / 127
            steps = [round(p / sx) * round(q / sw) for p, q in zip(x[i].tolist(), w[j].tolist(), strict=True)]
            # A number on the edge of two steps may fall to either side.
            edge = 127 * sx * sw * sum(abs((p / sx) % 1 - 0.5) < 1e-4 for p in x[i].tolist())
            edge += 127 * sx * sw * sum(abs((q / sw) % 1 - 0.5) < 1e-4 for q in w[j].tolist())
            assert found[0, i, j].item() == pytest.approx(sum(steps) * sx * sw + b[j].item(), abs=1e-4 + edge)


def test_a_row_is_the_same_bit_for_bit_beside_any_other() -> None:
    torch.manual_seed(0)
    layer, x = Int8Linear(torch.randn(8, 16), None), torch.randn(5, 16)
    x[3] *= 1000
    together = layer(x)
    assert all(together[i].equal(layer(x[i : i + 1])[0]) for i in range(5))
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_a_large_batch_is_multiplied_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = Int8Linear(torch.randn(8, 16), torch.randn(8)), torch.randn(2, 11, 16)
    whole, taken = layer(x), list[int]()
    monkeypatch.setattr(int8, "PART", 5)
    monkeypatch.setattr(int8, "product", lambda a, w: taken.append(len(a)) or product(a, w))
    assert layer(x).equal(whole)
    assert taken == [5, 5, 5, 5, 2]


def backbone(kind: str) -> Any:
    model = model_of(kind)
    return model if kind == "t5" else model.base_model


@pytest.mark.parametrize("how", ["int8", "nf4"])
@pytest.mark.parametrize("kind", KINDS)
def test_mixed_rows_equal_rows_alone_in_fewer_bits_too(kind: str, how: str, tmp_path: Path) -> None:
    exact, rounded = Bank(backbone(kind)), Bank(backbone(kind), quantise=how)
    assert rounded.fingerprint == exact.fingerprint
    assert not any(
        isinstance(m, torch.nn.Linear) for m in rounded.model.backbone.get_submodule(_blocks(kind)).modules()
    )
    names = [name for name in FORMS if (kind, name) not in {("t5", "pasta")}]
    for i, name in enumerate(names):
        folder = adapter(backbone(kind), tmp_path / name, name, i, **FORMS[name])
        exact.add(name, folder)
        rounded.add(name, folder)
    inputs: dict[str, Any] = batch_of(kind, (9, 12, 7, 8)[: len(names)])
    inputs = {key: value for key, value in inputs.items() if not key.startswith("decoder")}
    mixed, wanted = (bank(adapter_names=names, **inputs).logits for bank in (rounded, exact))
    assert mixed is not None
    assert wanted is not None
    assert not mixed.equal(wanted)
    if how == "int8":
        assert (mixed - wanted).abs().max() < 0.05 * wanted.abs().max()
    for i, name in enumerate(names):
        row: dict[str, Any] = rows_of(inputs, [i])
        alone = rounded(adapter_names=[name], **row).logits
        torch.testing.assert_close(mixed[i : i + 1], alone, atol=1e-5, rtol=1e-5, msg=name)


def _blocks(kind: str) -> str:
    from attentune.anatomy import stacks_of

    model = Bank(backbone(kind)).model.backbone
    return stacks_of(model)[0][2].blocks


@pytest.mark.parametrize(
    "options", [{"quantise": "int8"}, {"quantise": "nf4"}, {"dtype": torch.bfloat16}, {"dtype": torch.float16}]
)
def test_loaded_and_banked_answers_agree(tiny_bert: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    folder = adapter(load_backbone(str(tiny_bert)), tmp_path / "tone", "kernel_mix")
    texts = ["good film", "bad rain the plot is not good"]
    plain = attentune.load(folder, str(tiny_bert)).predict(texts)
    loaded = attentune.load(folder, str(tiny_bert), **options)
    layers = [p for n, p in loaded.predictor.model.named_parameters() if "kernel_mix" in n or "heads" in n]
    assert layers
    assert {p.dtype for p in layers} == {torch.float32}
    with Engine.load(str(tiny_bert), **options) as engine:
        engine.bank.add("tone", folder)
        served = engine.answer([Ask("tone", text) for text in texts])
    tolerance = 1e-5 if "quantise" in options else 1e-2
    for one, other, exact in zip(loaded.predict(texts), served, plain, strict=True):
        assert list(one["probabilities"].values()) == pytest.approx(
            list(other["probabilities"].values()), abs=tolerance
        )
        assert list(one["probabilities"].values()) == pytest.approx(list(exact["probabilities"].values()), abs=0.05)
        assert one != exact


def test_what_cannot_be_quantised_is_refused(tiny_bert: Path) -> None:
    base = load_backbone(str(tiny_bert))
    with pytest.raises(ConfigError, match="no quantisation 'int4'; there is int8, nf4"):
        quantise(base, "int4")
    before = fingerprint(base)
    quantise(base, "int8")
    assert fingerprint(base) != before


def test_the_gradient_passes_over_the_rounding_of_the_inputs() -> None:
    torch.manual_seed(0)
    layer, x, slope = Int8Linear(torch.randn(8, 16), torch.randn(8)), torch.randn(2, 5, 16), torch.randn(2, 5, 8)
    y = layer(x.requires_grad_())
    assert y.equal(layer(x.detach()))
    y.backward(slope)
    weight = layer.weight.float() * layer.scale[:, None]
    torch.testing.assert_close(x.grad, slope @ weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["pasta", "tiny_attention", "prefix_propagation", "attempt", "kernel_mix"])
@pytest.mark.parametrize(
    "options", [{"quantise": "int8", "checkpointing": True}, {"quantise": "nf4"}, {"dtype": "bfloat16"}]
)
def test_adapters_learn_on_a_backbone_in_other_numbers(
    tiny_bert: Path, tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    """What is trained is float32, fits the backbone of the file, and answers there nearly the same."""
    rows = [
        {"text": text, "label": tone} for text, tone in (("good film", "up"), ("bad rain", "down")) for _ in range(8)
    ]
    data = {"train": rows, "validation": rows}
    done = attentune.train(data, method, tmp_path / "tone", str(tiny_bert), epochs=2, max_length=16, **options)
    assert done.card.backbone.fingerprint == fingerprint(load_backbone(str(tiny_bert)))
    assert {tensor.dtype for tensor in load_file(done.folder / store.WEIGHTS).values()} == {torch.float32}
    how: dict[str, Any] = {"dtype": torch.bfloat16} if "dtype" in options else {"quantise": options["quantise"]}
    same, plain = (attentune.load(done.folder, str(tiny_bert), **chosen) for chosen in (how, {}))
    for one, other in zip(same.predict(["good film"]), plain.predict(["good film"]), strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=0.05)
