"""4 bits a weight: the levels and the packing from their formula, exact products and gradients, little kept."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws.zoo import batch_of, model_of
from scipy.stats import norm
from transformers.pytorch_utils import Conv1D

from attentune.quantised import quantise
from attentune.quantised.nf4 import BLOCK, NF4Linear, levels


def test_the_levels_are_quantiles_of_a_normal_distribution() -> None:
    """Appendix E of QLoRA (arXiv:2305.14314) has these numbers; formed here as it says, with scipy."""
    tail = 1 - (1 / 32 + 1 / 30) / 2
    above = [float(norm.ppf(tail + i * (0.5 - tail) / 8)) for i in range(8)]
    below = [-float(norm.ppf(tail + i * (0.5 - tail) / 7)) for i in range(7)]
    wanted = np.array(sorted([*below, 0.0, *above])) / max(above)
    np.testing.assert_allclose(levels().numpy(), wanted, atol=1e-7)
    assert levels()[[0, 7, 15]].tolist() == [-1, 0, 1]
    assert levels()[1].item() == pytest.approx(-0.6961928, abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(out=st.integers(1, 9), width=st.integers(1, 70), seed=st.integers(0, 999), empty=st.booleans())
def test_every_number_becomes_the_nearest_level_of_its_block(out: int, width: int, seed: int, empty: bool) -> None:
    w = torch.randn(out, width, generator=torch.Generator().manual_seed(seed))
    if empty:
        w.flatten()[:BLOCK] = 0
    found = NF4Linear(w, None).unpacked(torch.float32).flatten()
    for at in range(0, w.numel(), BLOCK):
        block, scale = w.flatten()[at : at + BLOCK], w.flatten()[at : at + BLOCK].abs().max()
        distance = (block[:, None] - levels() * scale).abs().min(1).values
        torch.testing.assert_close((found[at : at + BLOCK] - block).abs(), distance, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "modernbert", "longformer", "t5", "gpt2", "llama"])
def test_a_backbone_computes_with_its_unpacked_weights(kind: str) -> None:
    base = model_of(kind)
    twin, before = deepcopy(base), base.get_memory_footprint()
    quantise(base, "nf4")
    assert base.get_memory_footprint() < before
    for name, layer in base.named_modules():
        if isinstance(layer, NF4Linear):
            host = twin.get_submodule(name)
            weight = layer.unpacked(torch.float32)
            host.weight.data = weight.T if isinstance(host, Conv1D) else weight
    batch = batch_of(kind)
    with torch.inference_mode():
        found, wanted = base(**batch)[0], twin(**batch)[0]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_and_gradients_are_those_of_the_unpacked_weight(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = NF4Linear(torch.randn(8, 16), torch.randn(8).to(dtype))
    x, slope = torch.randn(2, 5, 16).to(dtype).requires_grad_(), torch.randn(2, 5, 8).to(dtype)
    assert layer.bias is not None
    y = layer(x)
    assert y.dtype == dtype
    assert y.equal(torch.nn.functional.linear(x, layer.unpacked(dtype), layer.bias))
    with torch.inference_mode():
        assert layer(x).equal(y)
    y.backward(slope)
    torch.testing.assert_close(x.grad, slope @ layer.unpacked(dtype))


def test_autocast_trains_through_it() -> None:
    layer, x = NF4Linear(torch.randn(8, 16), None), torch.randn(2, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    torch.testing.assert_close(x.grad, layer.unpacked(torch.float32).sum(0).expand(2, -1), atol=0.05, rtol=0.05)


def test_a_weight_takes_four_and_a_half_bits_and_is_not_kept_unpacked() -> None:
    layer, x = NF4Linear(torch.randn(64, 128), None), torch.randn(3, 128, requires_grad=True)
    assert layer.weight.nbytes + layer.scale.nbytes == 64 * 128 * 4.5 / 8
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        layer(x)
    assert sum(kept) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the bits of a GPU cannot be compared")
def test_a_gpu_packs_and_multiplies_as_a_cpu_does() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(48, 80), torch.randn(3, 80)
    here, there = NF4Linear(weight, None), NF4Linear(weight.cuda(), None)
    assert there.weight.cpu().equal(here.weight)
    torch.testing.assert_close(there(x.cuda()).cpu(), here(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(here.cuda()(x.cuda()).cpu(), there(x.cuda()).cpu())
