"""Prefix rows steered before every block; prefix keys and values; a kernel beside the softmax."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attentune.method import Frame, Site
from attentune.methods.prefix_propagation import (
    KERNELS,
    PrefixPropagationConfig,
    edit_context,
    edit_input,
    edit_key_value,
    edit_prompt,
    fold,
    kernel_weights,
    perceptron,
    steer,
)

from .drawing import ROWS, Drawer, close, differentiable, few, rows, seeds, small
from .slow import apply, dot, own, plus, softmax, times, weighted

kernels = st.sampled_from(KERNELS)


def slow_steer(h, prefix, start, scale):
    out = [list(x) for x in h]
    for i, shift in enumerate(prefix):
        row = out[start + i] if scale is None else [x * s for x, s in zip(out[start + i], scale[i], strict=True)]
        out[start + i] = plus(row, shift)
    return out


def slow_kernel(query, keys, kind, lengthscale, offset):
    """One query, all prefix keys -> weights that sum to one."""
    if kind == "exp":
        return softmax([dot(query, k) / math.sqrt(len(query)) for k in keys])
    if kind == "rbf":
        raw = [math.exp(-sum((a - b) ** 2 for a, b in zip(query, k, strict=True)) / (2 * lengthscale**2)) for k in keys]
    else:
        raw = [(dot(query, k) + offset) ** 2 for k in keys]
    return [x / sum(raw) for x in raw]


@few
@given(seeds, small, st.integers(0, 3), small, st.integers(0, 3), rows, st.booleans())
def test_steer(seed, batch, start, m, text, how, scaled):
    draw = Drawer(seed, batch, how)
    h, prefix = draw.tensor(batch, start + m + text, 3), draw.params(m, 3)
    scale = draw.params(m, 3) if scaled else None
    slow = [
        slow_steer(h[b].tolist(), own(prefix.tolist(), b), start, None if scale is None else own(scale.tolist(), b))
        for b in range(batch)
    ]
    close(steer(h, prefix, start, scale), slow)


@few
@given(seeds, small, small, small, st.integers(1, 3), kernels, rows)
def test_kernel_weights(seed, batch, length, m, heads, kind, how):
    draw = Drawer(seed, batch, how)
    q, k = draw.tensor(batch, heads, length, 3), draw.params(heads, m, 3)
    offset = draw.params()
    slow = [
        [
            [slow_kernel(x, own(k.tolist(), b)[h], kind, 1.5, own(offset.tolist(), b)) for x in q[b, h].tolist()]
            for h in range(heads)
        ]
        for b in range(batch)
    ]
    close(kernel_weights(q, k, kind, 1.5, offset), slow)


def test_rbf_far_from_every_key_still_has_weights():
    """exp of the squared distance underflows there; the ratio of two such kernels does not."""
    q, k = torch.tensor([100.0], dtype=torch.float64), torch.tensor([0.0, 0.01], dtype=torch.float64)
    found = kernel_weights(q.view(1, 1, 1, 1), k.view(1, 1, 2, 1), "rbf", 1.0)
    ratio = math.exp((100.0**2 - 99.99**2) / 2)
    close(found.flatten(), [1 / (1 + ratio), ratio / (1 + ratio)])


@few
@given(seeds, small, small, st.integers(1, 3), st.integers(1, 4), rows)
def test_perceptron(seed, batch, m, hidden, d, how):
    draw = Drawer(seed, batch, how)
    p = {"x_seed": draw.params(m, d), "x_down_weight": draw.params(hidden, d), "x_down_bias": draw.params(hidden)}
    r = len(p["x_seed"])
    slow = [
        [
            [math.tanh(v) for v in apply(p["x_down_weight"][i].tolist(), e, p["x_down_bias"][i].tolist())]
            for e in p["x_seed"][i].tolist()
        ]
        for i in range(r)
    ]
    close(perceptron(p, "x"), slow)


@few
@given(seeds, small, st.integers(1, 3), st.integers(0, 2), rows, st.booleans())
def test_propagate_edits_the_last_prefix_columns(seed, batch, m, fill, how, scaled):
    """Rows with shorter prompts have fill in front of them."""
    draw, length = Drawer(seed, batch, how), 2
    cfg = PrefixPropagationConfig(length=m, scale_rows=scaled)
    h, prefix = draw.tensor(batch, fill + m + length, 3), draw.params(m, 6 if scaled else 3)
    frame = Frame(None, None, length, width=fill + m, prompt=m)
    slow = []
    for b in range(batch):
        vectors = own(prefix.tolist(), b)
        scale = [v[3:] for v in vectors] if scaled else None
        slow.append(slow_steer(h[b].tolist(), [v[:3] for v in vectors], fill, scale))
    close(edit_input(cfg, {"prefix": prefix}, h, h, frame), slow)


def test_nothing_is_edited_where_no_prefix_stands():
    h = torch.ones(2, 1, 3)
    later = Frame(None, None, 1, past=4)
    assert edit_input(PrefixPropagationConfig(), {"prefix": torch.ones(1, 8, 3)}, h, h, later) is h


@few
@given(seeds, small, small, st.integers(1, 3), st.integers(1, 3), rows)
def test_tune_gives_every_head_its_keys_and_values(seed, batch, m, heads, d, how):
    draw = Drawer(seed, batch, how)
    past, text = draw.params(m, 2 * heads * d), draw.tensor(batch, heads, 2, d)
    cfg = PrefixPropagationConfig(mode="tune", length=m)
    found = edit_key_value(cfg, {"past": past}, None, text, Frame(None, None, 2))
    for start, part in zip((0, heads * d), found, strict=True):
        slow = [
            [[row[start + h * d : start + (h + 1) * d] for row in own_past] for h in range(heads)]
            for own_past in past.tolist()
        ]
        close(part, slow)


@few
@given(seeds, small, small, small, st.integers(1, 3), kernels, rows)
def test_kernel_adds_to_what_every_head_gives(seed, batch, length, m, heads, kind, how):
    draw, d = Drawer(seed, batch, how), 2
    cfg = PrefixPropagationConfig(mode="kernel", length=m, kernel=kind, lengthscale=2.0, heads=heads, query_scale=0.7)
    p = {"past": draw.params(m, 2 * heads * d), "scale": draw.params(1), "raw_offset": draw.params(1)}
    q, y = draw.tensor(batch, length, heads * d), draw.tensor(batch, length, heads * d)
    frame = Frame(None, None, length, seen={Site.QUERY: q})
    slow = []
    for b in range(batch):
        past, scale = own(p["past"].tolist(), b), own(p["scale"].tolist(), b)[0]
        offset = math.log1p(math.exp(own(p["raw_offset"].tolist(), b)[0]))
        out = []
        for t in range(length):
            row = []
            for h in range(heads):
                part = slice(h * d, (h + 1) * d)
                query = times(0.7, q[b, t].tolist()[part])
                keys = [x[part] for x in past]
                values = [x[heads * d :][part] for x in past]
                weights = slow_kernel(query, keys, kind, 2.0, offset)
                row += plus(y[b, t].tolist()[part], times(scale, weighted(weights, values)))
            out.append(row)
        slow.append(out)
    close(edit_context(cfg, p, y, y, frame), slow)


def slow_mlp(entrance, p, name):
    """[m,width] of R = 1."""
    (seed,), (down,), (bias,) = (entrance[f"{name}_{part}"].tolist() for part in ("seed", "down_weight", "down_bias"))
    (up,), (up_bias,) = (p[f"{name}_up_{part}"].tolist() for part in ("weight", "bias"))
    return [apply(up, [math.tanh(v) for v in apply(down, e, bias)], up_bias) for e in seed]


@few
@given(seeds, st.sampled_from(["propagate", "tune", "combine", "kernel"]))
def test_an_mlp_makes_the_vectors_and_folds_to_them(seed, mode):
    draw, m, d, hidden = Drawer(seed, 2), 3, 4, 5
    cfg = PrefixPropagationConfig(mode=mode, length=m, mlp=hidden, heads=2, query_scale=1.0)
    plain = PrefixPropagationConfig(mode=mode, length=m, heads=2, query_scale=1.0)
    names = ["prefix"] * cfg.propagates + ["past"] * cfg.has_keys
    entrance, p = {}, {"scale": draw.params(1)}
    for name in names:
        entrance[f"{name}_seed"] = draw.params(m, d)
        entrance[f"{name}_down_weight"] = draw.params(hidden, d)
        entrance[f"{name}_down_bias"] = draw.params(hidden)
        width = d if name == "prefix" else 2 * d
        p[f"{name}_up_weight"], p[f"{name}_up_bias"] = draw.params(width, hidden), draw.params(width)
    frame = Frame(None, None, 2, width=m, prompt=m, seen={Site.QUERY: draw.tensor(2, m + 2, d)})
    words, h = draw.tensor(2, 2, d), draw.tensor(2, m + 2, d)
    assert not edit_prompt(cfg, entrance, words, words, frame).any()
    for name in names:
        site = Site.BLOCK_INPUT if name == "prefix" else Site.CONTEXT if mode == "kernel" else Site.KEY_VALUE
        folded = fold(cfg, site, p, entrance)
        assert list(folded) == [name, "scale"]
        close(folded[name], slow_mlp(entrance, p, name))
        one = {key: value[None] for key, value in folded.items()}
        text = h.unflatten(-1, (2, -1)).transpose(1, 2) if site == Site.KEY_VALUE else h
        edit = {Site.BLOCK_INPUT: edit_input, Site.KEY_VALUE: edit_key_value, Site.CONTEXT: edit_context}[site]
        made, kept = edit(cfg, p, h, text, frame), edit(plain, one, h, text, frame)
        for a, b in zip(made, kept, strict=True):
            close(a, b)
    assert fold(cfg, Site.PROMPT, {}, {}) == {}


@pytest.mark.parametrize("how", ROWS)
@pytest.mark.parametrize("kind", KERNELS)
def test_gradients(kind, how):
    draw = Drawer(1, 2, how)
    h, prefix, scale = draw.tensor(2, 4, 3), draw.params(2, 3), draw.params(2, 3)
    assert differentiable(lambda h, p, s: steer(h, p, 1, s), h, prefix, scale)
    q, k, offset = draw.tensor(2, 1, 2, 3), draw.params(1, 2, 3), draw.params()
    if kind == "poly":
        assert differentiable(lambda q, k, c: kernel_weights(q, k, kind, 1.5, c), q, k, offset)
    else:
        assert differentiable(lambda q, k: kernel_weights(q, k, kind, 1.5), q, k)
