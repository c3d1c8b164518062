"""Law 8: attention implementations, precisions and the compiler change nothing but the last bits."""

import copy
from typing import Any

import pytest
import torch

from tests.laws.cells import CELLS, FORMS, NO_INTERFACE, Form, adapted, cells
from tests.laws.zoo import answer, batch_of, model_of

TWO = [cell for cell in CELLS if cell.values[1] not in NO_INTERFACE or cell.values[1] in ("t5", "mpnet")]
COMPILED = [cell for cell in CELLS if cell.values[1] != "longformer"]
"""Longformer breaks the graph itself, without any adapter: it counts global tokens."""


@pytest.mark.parametrize(("form", "kind"), TWO)
def test_eager_equals_sdpa(form: Form, kind: str) -> None:
    found = []
    for implementation in ("eager", "sdpa"):
        base: Any = model_of(kind)
        try:
            base.set_attn_implementation(implementation)
        except ValueError:
            return  # The architecture has one implementation only.
        found.append(answer(adapted(form, kind, model=base), batch_of(kind)))
    real = batch_of(kind)["attention_mask"].bool() if found[0].shape[1] == 12 else slice(None)
    torch.testing.assert_close(found[0][real], found[1][real], atol=1e-4, rtol=1e-4)


@cells
def test_bfloat16_base_with_float32_adapters(form: Form, kind: str) -> None:
    base = model_of(kind).to(torch.bfloat16)
    model = adapted(form, kind, model=base)
    assert {p.dtype for n, p in model.named_parameters() if f"_{form.method}." in n} == {torch.float32}
    out = answer(model, batch_of(kind))
    assert out.dtype == torch.bfloat16
    expected = answer(adapted(form, kind), batch_of(kind))
    real = batch_of(kind)["attention_mask"].bool() if out.shape[1] == 12 else torch.ones(3, 5, dtype=torch.bool)
    # The same function up to the base's precision: rounding of 8 bits through two random blocks.
    a, b = out[real].float().flatten(), expected[real].flatten()
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.97


@pytest.mark.parametrize(("form", "kind"), COMPILED)
def test_compiles_without_graph_breaks(form: Form, kind: str) -> None:
    torch.compiler.reset()
    model, batch = adapted(form, kind), batch_of(kind)
    expected = answer(model, batch)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(answer(compiled, batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", [f for i, f in enumerate(FORMS) if f.method not in {g.method for g in FORMS[:i]}],
                         ids=lambda f: f.method)  # fmt: skip
def test_inductor(form: Form) -> None:
    torch.compiler.reset()
    model, batch = adapted(form, "bert"), batch_of("bert")
    expected = answer(model, batch)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(answer(compiled, batch), expected, atol=1e-5, rtol=1e-5)
