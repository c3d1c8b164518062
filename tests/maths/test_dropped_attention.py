"""out_t = sum_j keep_tj / (1 - p) w_tj v_j, w_t the softmax of q_t k' / sqrt(w) over what t may attend to."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from attentune.dropout import kept
from attentune.dropped_attention import dropped_attention

from .drawing import Drawer, close, differentiable, few, seeds, small
from .slow import dot, softmax, weighted

CPU = torch.device("cpu")


def slow(q, k, v, allowed, keep, p):
    """One head's q [Tq,w], k [Tk,w], v [Tk,e], allowed, keep [Tq,Tk] -> [Tq,e]"""
    out = []
    for t, query in enumerate(q):
        seen = [j for j in range(len(k)) if allowed[t][j]]
        if not seen:
            out.append([0.0] * len(v[0]))
            continue
        weights = softmax([dot(query, k[j]) / len(query) ** 0.5 for j in seen])
        dropped = [w * keep[t][j] / (1 - p) for w, j in zip(weights, seen, strict=True)]
        out.append(weighted(dropped, [v[j] for j in seen]))
    return out


@few
@given(seeds, small, st.integers(1, 5), small, st.integers(1, 3), st.integers(1, 3), st.floats(0.05, 0.8))
def test_it_is_the_formula_with_the_weights_that_the_seed_drops(seed, batch, length, queries, heads, w, p):
    draw = Drawer(seed, batch)
    q = draw.tensor(batch, heads, queries, w)
    k, v = (draw.tensor(batch, heads, length, w) for _ in range(2))
    for allowed in (draw.flags(batch, 1, 1, length), draw.flags(1, 1, queries, length), None):
        torch.manual_seed(seed)
        found = dropped_attention(q, k, v, allowed, p)
        torch.manual_seed(seed)
        keep = kept(torch.Size((batch, heads, queries, length)), p, CPU).tolist()
        seen = torch.ones(batch, 1, queries, length, dtype=torch.bool) if allowed is None else allowed
        seen = seen.expand(batch, 1, queries, length).tolist()
        wanted = [
            [
                slow(q[b, h].tolist(), k[b, h].tolist(), v[b, h].tolist(), seen[b][0], keep[b][h], p)
                for h in range(heads)
            ]
            for b in range(batch)
        ]
        close(found, wanted)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients(masked):
    draw = Drawer(0, 2)
    allowed = draw.flags(2, 1, 1, 4) if masked else None
    if allowed is not None:
        allowed[0], allowed[1, ..., 0] = False, True  # the first row may attend to nothing

    def attention(q, k, v):
        torch.manual_seed(3)
        return dropped_attention(q, k, v, allowed, 0.4)

    assert differentiable(attention, draw.tensor(2, 2, 3, 2), draw.tensor(2, 2, 4, 2), draw.tensor(2, 2, 4, 2))


def test_with_hardly_any_dropout_it_is_pytorchs_attention():
    draw = Drawer(1, 2)
    q, k, v = (draw.tensor(2, 2, 9, 2) for _ in range(3))
    allowed = draw.flags(2, 1, 1, 9)
    allowed[0] = False
    for mask in (None, allowed):
        close(dropped_attention(q, k, v, mask, 1e-12), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def test_a_byte_a_weight_is_kept_and_no_number():
    sizes: list[tuple[int, int]] = []
    qkv = [Drawer(0, 1).tensor(2, 1, 24, 1).requires_grad_() for _ in range(3)]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append((t.numel(), t.element_size())) or t, lambda t: t
    ):
        dropped_attention(qkv[0], qkv[1], qkv[2], None, 0.5)
    assert [size for numbers, size in sizes if numbers >= 2 * 24**2] == [1]


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_gives_its_own_dtype_and_works_in_float32(autocast):
    draw = Drawer(2, 1)
    q, k, v = (draw.tensor(1, 1, 6, 2).to(torch.bfloat16) for _ in range(3))
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = dropped_attention(q, k, v, None, 0.3)
    torch.manual_seed(5)
    wanted = dropped_attention(q.float(), k.float(), v.float(), None, 0.3)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted.to(torch.bfloat16))


# torch's compiler makes an instance of an autograd function, which torch deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_graph_draws_too():
    compiled = torch.compile(dropped_attention, fullgraph=True, backend="aot_eager")
    q = torch.zeros(1, 1, 50, 1, requires_grad=True)  # equal weights: what is kept of them is counted
    k = Drawer(0, 1).tensor(1, 1, 50, 1).float()
    torch.manual_seed(0)
    found = compiled(q, k, torch.ones_like(k), None, 0.25)
    counts = found.detach() * 0.75 * 50
    torch.testing.assert_close(counts, counts.round())
    assert 34 < counts.mean() < 41
    found.sum().backward()
    assert q.grad is not None
    assert q.grad.count_nonzero() == 50
