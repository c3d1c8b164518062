"""delta(h) = W2 (Wo softmax(q k' / sqrt(a / heads)) v + bo) + b2 with q, k, v from LN(h), two maps each."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from attentune.method import Frame, Site
from attentune.methods.tiny_attention import (
    STRUCTURES,
    TinyAttentionConfig,
    add_delta,
    attend,
    average_experts,
    edit_attention,
    edit_input,
    edit_output,
    prepare,
    project,
    sites,
    taps,
    widen,
)

from .drawing import ROWS, Drawer, close, differentiable, few, rows, seeds, small
from .slow import apply, dot, layer_norm, own, plus, softmax, times, weighted

SHAPES = {  # of one expert
    "norm_weight": lambda d, a: (d,),
    "norm_bias": lambda d, a: (d,),
    "down_weight": lambda d, a: (3 * a, d),
    "down_bias": lambda d, a: (3 * a,),
    "in_weight": lambda d, a: (3, a, a),
    "in_bias": lambda d, a: (3, a),
    "out_weight": lambda d, a: (a, a),
    "out_bias": lambda d, a: (a,),
    "up_weight": lambda d, a: (d, a),
    "up_bias": lambda d, a: (d,),
}


def draw_params(draw, d, a, experts=None):
    axis = () if experts is None else (experts,)
    return {key: draw.params(*axis, *shape(d, a)) for key, shape in SHAPES.items()}


def prepared(p, experts=1):
    """What the edits are given; any number of axes before those of a tensor."""
    return prepare(TinyAttentionConfig(experts=experts), Site.ATTENTION_OUTPUT, p)


def row_of(p, b, expert=None):
    """One row's tensors as lists."""
    one = {key: own(value.tolist(), b) for key, value in p.items()}
    return one if expert is None else {key: value[expert] for key, value in one.items()}


def slow_project(h, p):
    """h [T,D] of one row -> three lists [T,a]."""
    a = len(p["in_bias"][0])
    found = ([], [], [])
    for x in h:
        inner = apply(p["down_weight"], layer_norm(x, p["norm_weight"], p["norm_bias"]), p["down_bias"])
        for s in range(3):
            found[s].append(apply(p["in_weight"][s], inner[s * a : (s + 1) * a], p["in_bias"][s]))
    return found


def slow_attention(q, k, v, allowed, heads):
    """Q [Tq,a], k, v [Tk,a], allowed [Tq][Tk] -> [Tq,a], head after head."""
    w, out = len(q[0]) // heads, []
    for t, query in enumerate(q):
        row = []
        for h in range(heads):
            part = slice(h * w, (h + 1) * w)
            seen = [j for j in range(len(k)) if allowed[t][j]]
            weights = softmax([dot(query[part], k[j][part]) / w**0.5 for j in seen])
            row += weighted(weights, [v[j][part] for j in seen])
        out.append(row)
    return out


def slow_widen(o, p):
    return [apply(p["up_weight"], apply(p["out_weight"], x, p["out_bias"]), p["up_bias"]) for x in o]


def slow_delta(h, p, allowed, heads):
    q, k, v = slow_project(h, p)
    return slow_widen(slow_attention(q, k, v, allowed, heads), p)


def draw_mask(draw, batch, length):
    """[B,T] with at least the first position real."""
    mask = draw.flags(batch, length)
    mask[:, 0] = True
    return mask


def may_see(mask, causal):
    """[B][Tq][Tk]"""
    length = len(mask[0])
    return [[[bool(row[j]) and (j <= t or not causal) for j in range(length)] for t in range(length)] for row in mask]


@few
@given(seeds, small, small, st.integers(2, 5), st.integers(1, 3), rows)
def test_project(seed, batch, length, d, a, how):
    draw = Drawer(seed, batch, how)
    h, p = draw.tensor(batch, length, d), draw_params(draw, d, a)
    one = prepared(p)
    found = project(h, one["inner"], one["inner_bias"])
    slow = [slow_project(h[b].tolist(), row_of(p, b)) for b in range(batch)]
    for s in range(3):
        close(found[s], [row[s] for row in slow])


@few
@given(seeds, small, small, st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_attend(seed, batch, length, heads, w, causal):
    draw = Drawer(seed, batch)
    q, k, v = (draw.tensor(batch, length, heads * w) for _ in range(3))
    mask = draw_mask(draw, batch, length)
    allowed = may_see(mask.tolist(), causal)
    by_head = [t.unflatten(-1, (heads, w)).transpose(1, 2) for t in (q, k, v)]
    frame = Frame(None, mask, length, causal=causal)
    found = attend(by_head[0], by_head[1], by_head[2], frame, 0.0).transpose(1, 2).flatten(2)
    close(found, [slow_attention(q[b].tolist(), k[b].tolist(), v[b].tolist(), allowed[b], heads) for b in range(batch)])


@few
@given(seeds, small, small, st.integers(1, 5), st.integers(1, 3), rows)
def test_widen(seed, batch, length, d, a, how):
    draw = Drawer(seed, batch, how)
    o, y, p = draw.tensor(batch, length, a), draw.tensor(batch, length, d), draw_params(draw, d, a)
    slow = [
        [plus(t, u) for t, u in zip(y[b].tolist(), slow_widen(o[b].tolist(), row_of(p, b)), strict=True)]
        for b in range(batch)
    ]
    outer = prepared(p)["outer"]
    close(widen(o, outer, y), slow)
    close(widen(o, outer, y.clone(), overwrite=True), slow)


@few
@given(seeds, small, small, st.integers(1, 2), st.integers(1, 2), rows, st.booleans(), st.booleans())
def test_delta_sees_what_the_mask_allows(seed, batch, length, heads, w, how, causal, masked):
    draw = Drawer(seed, batch, how)
    h, p = draw.tensor(batch, length, 4), draw_params(draw, 4, heads * w, experts=1)
    mask = draw_mask(draw, batch, length) if masked else None
    allowed = may_see([[True] * length] * batch if mask is None else mask.tolist(), causal)
    frame = Frame(None, mask, length, causal=causal)
    found = add_delta(TinyAttentionConfig(width=heads * w, heads=heads), prepared(p), h, torch.zeros_like(h), frame)
    close(found, [slow_delta(h[b].tolist(), row_of(p, b, 0), allowed[b], heads) for b in range(batch)])


def slow_edit(structure, experts, h, u, y, p, allowed):
    """One row: the block's input h, after the attention u, what stands at the site y -> [T,D]."""
    one_after_the_other = structure in ("m0", "seq", "double_seq")
    read = {"s0": h, "s1": h, "m1": u}.get(structure)
    for j in range(experts):
        added = slow_delta(y if one_after_the_other else read, p[j], allowed, 1)
        y = [plus(a, times(1 / experts, b)) for a, b in zip(y, added, strict=True)]
    return y


@few
@given(seeds, st.sampled_from(STRUCTURES), st.integers(1, 3), rows)
def test_structures(seed, structure, experts, how):
    draw, batch, length, d = Drawer(seed, 2, how), 2, 3, 4
    cfg = TinyAttentionConfig(structure=structure, experts=experts)
    h, u, y = (draw.tensor(batch, length, d) for _ in range(3))
    p, mask = draw_params(draw, d, 1, experts), draw_mask(draw, batch, length)
    made = prepared(p, experts)
    edits = {Site.BLOCK_INPUT: edit_input, Site.ATTENTION_OUTPUT: edit_attention, Site.BLOCK_OUTPUT: edit_output}
    for site in sites(cfg):
        frame = Frame(None, mask, length)
        frame.seen = {tap: {Site.BLOCK_INPUT: h, Site.ATTENTION_OUTPUT: u}[tap] for tap in taps(cfg)}
        slow = [
            slow_edit(
                structure,
                experts,
                h[b].tolist(),
                u[b].tolist(),
                y[b].tolist(),
                [row_of(p, b, j) for j in range(experts)],
                may_see(mask.tolist(), False)[b],
            )
            for b in range(batch)
        ]
        close(edits[site](cfg, made, y, y, frame), slow)
        frame.fresh = True
        close(edits[site](cfg, made, y, y.clone(), frame), slow)


@pytest.mark.parametrize("how", ROWS)
def test_position_by_position_with_a_cache_equals_all_at_once(how):
    draw = Drawer(3, 2, how)
    cfg, p = TinyAttentionConfig(width=2, heads=2, experts=2), draw_params(draw, 4, 2, experts=2)
    h, cache = draw.tensor(2, 5, 4), DynamicCache()
    whole = edit_attention(cfg, prepared(p, 2), h, h, Frame(None, None, 5, causal=True))
    steps = []
    for t in range(5):
        frame = Frame(None, None, 1, past=t, causal=True, cache=cache, batch=2, here="site")
        steps.append(edit_attention(cfg, prepared(p, 2), h[:, t : t + 1], h[:, t : t + 1], frame))
    close(torch.cat(steps, 1), whole)


@few
@given(seeds, st.integers(1, 4), small)
def test_average_experts(seed, experts, a):
    draw = Drawer(seed, experts, "different")
    p = draw_params(draw, 3, a)
    for key, value in average_experts(p).items():
        mean = [sum(column) / experts for column in zip(*p[key].flatten(1).tolist(), strict=True)]
        assert value.shape == (1, *p[key].shape[1:])
        close(value.flatten(), mean)


def test_equal_experts_average_to_one_of_them():
    draw = Drawer(0, 3, "repeated")
    p = draw_params(draw, 4, 2)
    for key, value in average_experts(p).items():
        close(value, p[key][:1])


@pytest.mark.parametrize("how", ROWS)
def test_gradients(how):
    draw = Drawer(1, 2, how)
    p = draw_params(draw, 3, 2)
    names, values = list(p), list(p.values())

    def projected(h, *tensors):
        one = prepared(dict(zip(names, tensors, strict=True)))
        return torch.cat(project(h, one["inner"], one["inner_bias"]), -1)

    assert differentiable(projected, draw.tensor(2, 3, 3), *values)
    y = draw.tensor(2, 3, 3)
    assert differentiable(
        lambda o, y, *t: widen(o, prepared(dict(zip(names, t, strict=True)), 2)["outer"], y),
        draw.tensor(2, 3, 2),
        y,
        *values,
    )
