"""Dropout of our own on a CPU does what torch's does, with fewer random bits."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attentune.dropout import dropout, kept

CPU = torch.device("cpu")


@given(shape=st.lists(st.integers(0, 7), min_size=1, max_size=3), p=st.floats(0.01, 0.95), seed=st.integers(0, 2**31))
def test_each_number_is_dropped_or_scaled_in_values_and_gradients(shape: list[int], p: float, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.rand(shape, dtype=torch.float64).add(1).requires_grad_()
    y = dropout(x, p)
    y.sum().backward()
    assert x.grad is not None
    there = y != 0
    torch.testing.assert_close(y, torch.where(there, x / (1 - p), 0.0))
    torch.testing.assert_close(x.grad, there.double() / (1 - p))


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9, 0.9999999])
def test_the_share_that_is_dropped_is_p(p: float) -> None:
    torch.manual_seed(0)
    share, count = 1 - kept(torch.Size([1000, 1000]), p, CPU).double().mean().item(), 10**6
    assert abs(share - p) < 4 * (p * (1 - p) / count) ** 0.5 + 2**-16


def test_neighbours_that_share_a_draw_are_independent() -> None:
    torch.manual_seed(0)
    quads = kept(torch.Size([250_000, 4]), 0.5, CPU)
    for pattern in product([False, True], repeat=4):
        share = (quads == torch.tensor(pattern)).all(1).double().mean().item()
        assert share == pytest.approx(1 / 16, abs=0.003)


def test_the_seed_decides_and_bfloat16_stays() -> None:
    x = torch.ones(3, 50, dtype=torch.bfloat16)
    drawn: list[torch.Tensor] = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(dropout(x, 0.3))
    assert drawn[0].dtype == torch.bfloat16
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_backward_pass_keeps_a_byte_a_number() -> None:
    sizes: list[int] = []

    def pack(saved: torch.Tensor) -> torch.Tensor:
        sizes.append(saved.untyped_storage().nbytes())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        dropout(torch.ones(64, requires_grad=True), 0.1)
    assert sum(sizes) == 64


def test_a_compiled_graph_draws_too() -> None:
    torch.manual_seed(0)
    compiled = torch.compile(dropout, fullgraph=True, backend="eager")
    y = compiled(torch.ones(1000), 0.25)
    torch.testing.assert_close(y.unique(), torch.tensor([0.0, 4 / 3]))
