"""Law 8: attention implementations, precisions and the compiler change nothing but the last bits."""

from typing import Any, cast

import pytest
import torch
from torch import nn

from attentune.anatomy import stacks_of
from laws.cells import CELLS, NO_INTERFACE, ONE_A_METHOD, Form, adapted, cells
from laws.matrix import APART, Says
from laws.zoo import answer, batch_of, model_of

TWO = [cell for cell in CELLS if cell.values[1] not in NO_INTERFACE or cell.values[1] in ("t5", "mpnet")]
COMPILED = [cell for cell in CELLS if cell.values[1] == "bert" or cell.values[0] in ONE_A_METHOD]
COMPILED = [cell for cell in COMPILED if cell.values[1] != "longformer"]
"""Every form once and every method on every architecture, but for Longformer: it counts its global tokens and so breaks
the graph itself, without any adapter."""


UNLIKE = ("modernbert", "t5")
"""Their second block has a norm and a window, or takes over the position bias."""


def one_block(model: Any) -> Any:
    """The model without all blocks but the first of each stack."""
    for _, stack, anatomy in stacks_of(model):
        del cast("nn.ModuleList", stack.get_submodule(anatomy.blocks))[1:]
        for config in (model.config, stack.config):
            setattr(config, anatomy.sizes.get("layers", "num_hidden_layers"), 1)
    return model


@pytest.mark.feature("sdpa")
@pytest.mark.parametrize(("form", "kind"), TWO)
def test_eager_equals_sdpa(form: Form, kind: str, record_property: Says) -> None:
    found = []
    for implementation in ("eager", "sdpa"):
        base: Any = model_of(kind)
        try:
            base.set_attn_implementation(implementation)
        except ValueError:
            record_property(APART, "the architecture has one implementation of attention only")
            return
        found.append(answer(adapted(form, kind, model=base), batch_of(kind)))
    real = batch_of(kind)["attention_mask"].bool() if found[0].shape[1] == 12 else slice(None)
    torch.testing.assert_close(found[0][real], found[1][real], atol=1e-4, rtol=1e-4)


@pytest.mark.feature("bfloat16")
@cells
def test_bfloat16_base_with_float32_adapters(form: Form, kind: str) -> None:
    batch = batch_of(kind)
    model = adapted(form, kind, model=model_of(kind).to(torch.bfloat16))
    assert {p.dtype for n, p in model.named_parameters() if f"_{form.method}" in n} == {torch.float32}
    out = answer(model, batch)
    assert out.dtype == torch.bfloat16
    real = batch["attention_mask"].bool() if out.shape[1] == 12 else torch.ones(3, 5, dtype=torch.bool)

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a[real].float() - b[real]).norm() / b[real].norm())

    with torch.no_grad():
        bare = distance(answer(model_of(kind).to(torch.bfloat16), batch), answer(model_of(kind), batch))
        # As far from float32 as the bare backbone in bfloat16 is, not further.
        assert distance(out, answer(adapted(form, kind), batch)) < 3 * bare + 0.05


@pytest.mark.feature("compiled")
# torch's compiler still uses a deprecated part of torch, below transformers' masks and in its own code generator.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("form", "kind"), COMPILED)
def test_compiles_without_graph_breaks(form: Form, kind: str) -> None:
    torch.compiler.reset()
    # The compiler goes through block after block, which is most of the time: a second one that is like the first is
    # compiled for one architecture only.
    base = model_of(kind) if kind in ("bert", *UNLIKE) else one_block(model_of(kind))
    model, batch = adapted(form, kind, model=base), batch_of(kind)
    expected = answer(model, batch)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(answer(compiled, batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.feature("compiled", kind="bert")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", ONE_A_METHOD, ids=lambda form: form.method)
def test_inductor(form: Form) -> None:
    torch.compiler.reset()
    model, batch = adapted(form, "bert"), batch_of("bert")
    with torch.no_grad():
        expected = answer(model, batch)
        compiled = torch.compile(model, fullgraph=True)
        torch.testing.assert_close(answer(compiled, batch), expected, atol=1e-5, rtol=1e-5)
