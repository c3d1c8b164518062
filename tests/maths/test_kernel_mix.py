"""Every head has its own low-rank change of q, v and o, and all heads share one."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attentune.errors import ConfigError
from attentune.method import Dims, Frame, Site
from attentune.methods.kernel_mix import (
    METHOD,
    Factors,
    KernelMixConfig,
    add,
    edit_output,
    edit_query,
    edit_value,
    from_heads,
    into_sum,
    merge,
    narrow,
    per_head,
    prepare,
)

from .drawing import ROWS, Drawer, close, differentiable, few, rows, seeds, small
from .slow import apply, own, plus, times

heads = st.integers(1, 3)
EDITS = {Site.QUERY: edit_query, Site.VALUE: edit_value, Site.OUTPUT: edit_output}


def added(x: torch.Tensor, factors: Factors) -> torch.Tensor:
    """What one product of x adds to nothing."""
    a, b = factors
    return add(x.new_zeros(*x.shape[:2], b.shape[2]), [narrow(x, a)], b)


def edit(cfg: KernelMixConfig, site: Site, p: Any, x: torch.Tensor, y: torch.Tensor, frame: Frame) -> torch.Tensor:
    """The edit of a site, with its tensors as they are trained."""
    return EDITS[site](cfg, prepare(cfg, site, p), x, y, frame)


def slices(x, count):
    width = len(x) // count
    return [x[i * width : (i + 1) * width] for i in range(count)]


def slow_per_head(x, a, b):
    """X [i], a [H][r][i], b [H][d][r] -> [H*d]"""
    return [v for a_h, b_h in zip(a, b, strict=True) for v in apply(b_h, apply(a_h, x))]


def slow_from_heads(x, a, b):
    """X [H*i] -> [H*d]"""
    return [v for x_h, a_h, b_h in zip(slices(x, len(a)), a, b, strict=True) for v in apply(b_h, apply(a_h, list(x_h)))]


def slow_into_sum(x, a, b):
    """X [H*i] -> [D]"""
    return plus(*(apply(b_h, apply(a_h, x_h)) for x_h, a_h, b_h in zip(slices(x, len(a)), a, b, strict=True)))


def everywhere(function, x, *params):
    """The slow function at every position of every row."""
    return [[function(t, *(own(p.tolist(), b) for p in params)) for t in x[b].tolist()] for b in range(len(x))]


@few
@given(seeds, small, small, heads, small, small, small, rows)
def test_per_head(seed, batch, length, H, d, r, width, how):
    draw = Drawer(seed, batch, how)
    x, a, b = draw.tensor(batch, length, width), draw.params(H, r, width), draw.params(H, d, r)
    close(added(x, per_head(a, b)), everywhere(slow_per_head, x, a, b))


@few
@given(seeds, small, small, heads, small, small, rows)
def test_from_heads(seed, batch, length, H, d, r, how):
    draw = Drawer(seed, batch, how)
    x, a, b = draw.tensor(batch, length, H * d), draw.params(H, r, d), draw.params(H, d, r)
    close(added(x, from_heads(a, b)), everywhere(slow_from_heads, x, a, b))


@few
@given(seeds, small, small, heads, small, small, small, rows)
def test_into_sum(seed, batch, length, H, d, r, width, how):
    draw = Drawer(seed, batch, how)
    x, a, b = draw.tensor(batch, length, H * d), draw.params(H, r, d), draw.params(H, width, r)
    close(added(x, into_sum(a, b)), everywhere(slow_into_sum, x, a, b))


@few
@given(seeds, small, small, small, small, rows)
def test_narrow(seed, batch, length, i, o, how):
    draw = Drawer(seed, batch, how)
    x, w = draw.tensor(batch, length, i), draw.params(o, i)
    found = narrow(x, w).transpose(1, 2).reshape(batch, length, o)
    close(found, everywhere(lambda t, matrix: apply(matrix, t), x, w))


def draw_site(draw, site, cfg, H, d, width):
    """Tensors of one site, and the widths of what it reads and writes."""
    into = H * d if site == Site.OUTPUT else width
    out = width if site == Site.OUTPUT else H * d
    rank, shared = (cfg.q_rank, cfg.q_shared_rank) if site == Site.QUERY else (cfg.v_rank, cfg.v_shared_rank)
    narrow = site == Site.OUTPUT or (site == Site.VALUE and cfg.v_base == "K")
    p = {}
    if rank:
        p["head_a"] = draw.params(H, rank, d if narrow else width)
        p["head_b"] = draw.params(H, width if site == Site.OUTPUT else d, rank)
    if cfg.biases:
        p["head_bias"] = draw.params(width) if site == Site.OUTPUT else draw.params(H, d)
    if shared:
        p["shared_a"], p["shared_b"] = draw.params(shared, into), draw.params(out, shared)
    return p, into, out


def slow_added(cfg, site, p, x, key):
    """What one position of one row gets: x what the projection reads, key what the heads' keys are there."""
    added = []
    if "head_a" in p and site == Site.OUTPUT:
        added.append(slow_into_sum(x, p["head_a"], p["head_b"]))
    elif "head_a" in p and site == Site.VALUE and cfg.v_base == "K":
        added.append(slow_from_heads(key, p["head_a"], p["head_b"]))
    elif "head_a" in p:
        added.append(slow_per_head(x, p["head_a"], p["head_b"]))
    if "head_bias" in p:
        added.append(p["head_bias"] if site == Site.OUTPUT else [v for head in p["head_bias"] for v in head])
    if "shared_a" in p:
        scale = 1.0 if cfg.alpha is None else cfg.alpha / len(p["shared_a"])
        added.append(times(scale, apply(p["shared_b"], apply(p["shared_a"], x))))
    return plus(*added) if added else None


configs = st.builds(
    KernelMixConfig,
    q_rank=st.integers(0, 2),
    v_rank=st.integers(0, 2),
    q_shared_rank=st.integers(1, 2),
    v_shared_rank=st.integers(0, 2),
    v_base=st.sampled_from("KX"),
    alpha=st.sampled_from([None, 3.0]),
    biases=st.booleans(),
)
places = st.sampled_from([Site.QUERY, Site.VALUE, Site.OUTPUT])


@few
@given(seeds, configs, places, heads, small, rows)
def test_edits(seed, cfg, site, H, d, how):
    draw, batch, length = Drawer(seed, 2, how), 2, 3
    p, into, out = draw_site(draw, site, cfg, H, d, 5)
    x, y, key = draw.tensor(batch, length, into), draw.tensor(batch, length, out), draw.tensor(batch, length, H * d)
    slow = []
    for b in range(batch):
        mine = {name: own(value.tolist(), b) for name, value in p.items()}
        added = [slow_added(cfg, site, mine, x[b, t].tolist(), key[b, t].tolist()) for t in range(length)]
        slow.append([plus(y[b, t].tolist(), more) if more else y[b, t].tolist() for t, more in enumerate(added)])
    close(edit(cfg, site, p, x, y, Frame(None, None, length, seen={Site.KEY: key})), slow)


@pytest.mark.parametrize("key_has_bias", [True, False])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("base", ["K", "X"])
@pytest.mark.parametrize("site", EDITS)
def test_merged_weights_do_what_the_edits_do(site, base, rank, biases, key_has_bias):
    cfg = KernelMixConfig(q_rank=rank, v_rank=rank, v_base=base, biases=biases, alpha=3.0)
    draw, width, H, d = Drawer(0, 1), 4, 2, 3
    p, into, out = draw_site(draw, site, cfg, H, d, width)
    key_weight, key_bias = draw.tensor(H * d, width), draw.tensor(H * d) if key_has_bias else None
    weight, bias = merge(cfg, site, p, key_weight, key_bias)
    x, mine = draw.tensor(into).tolist(), {name: value[0].tolist() for name, value in p.items()}
    key = apply(key_weight.tolist(), x, None if key_bias is None else key_bias.tolist()) if into == width else [0.0]
    slow = slow_added(cfg, site, mine, x, key) or [0.0] * out
    full = weight.expand(out, into).double().tolist()
    close(torch.tensor(apply(full, x, None if bias is None else bias.tolist()), dtype=torch.float64), slow)


@pytest.mark.parametrize("site", EDITS)
def test_dropout_acts_in_training_only(site):
    draw, cfg = Drawer(0, 2), KernelMixConfig(dropout=0.5)
    p, into, out = draw_site(draw, site, cfg, 2, 3, 6)
    x, y = draw.tensor(2, 4, into), draw.tensor(2, 4, out)
    seen = {Site.KEY: draw.tensor(2, 4, 6)}
    answers = [edit(cfg, site, p, x, y, Frame(None, None, 4, training=t, seen=seen)) for t in (False, False, True)]
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


def test_sites_that_read_the_same_share_a_mask_of_dropout():
    """With the same x and the same maps q and v add the same; with a copy of x they do not."""
    draw, cfg = Drawer(0, 1), KernelMixConfig(dropout=0.5, biases=False, q_rank=0, v_rank=0, q_shared_rank=4)
    p, _, out = draw_site(draw, Site.QUERY, cfg, 2, 3, 6)
    x, y = draw.tensor(2, 4, 6), draw.tensor(2, 4, out)
    frame = Frame(None, None, 4, training=True)
    query = edit(cfg, Site.QUERY, p, x, y, frame)
    assert torch.equal(query, edit(cfg, Site.VALUE, p, x, y, frame))
    edit(cfg, Site.QUERY, p, x, y, frame)
    assert not torch.equal(query, edit(cfg, Site.VALUE, p, x.clone(), y, frame))


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("ranks", [(0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0)])
@pytest.mark.parametrize("parts", ["q", "k", "v", "o", "qk", "vo", "kv"])
def test_parts_that_have_nothing_to_train_are_refused(parts, ranks, biases):
    """A rank of a part that is not switched on trains nothing."""
    names = ("q_rank", "v_rank", "q_shared_rank", "v_shared_rank")
    options: dict[str, Any] = {**dict(zip(names, ranks, strict=True)), "biases": biases, "v_base": "X"}
    all_parts = KernelMixConfig(parts="qkvo", **options)
    dims = Dims(8, 2, 2, 4, 1, torch.zeros(1, 8), None, ())
    sites = METHOD.sites_of(KernelMixConfig(parts=parts, v_base="X"))
    if any(METHOD.init(all_parts, site, dims) for site in sites):
        assert KernelMixConfig(parts=parts, **options).parts == parts
    else:
        with pytest.raises(ConfigError, match=f"parts='{parts}' has nothing to train"):
            KernelMixConfig(parts=parts, **options)


@pytest.mark.parametrize("how", ROWS)
def test_gradients(how):
    draw = Drawer(1, 2, how)
    assert differentiable(
        lambda *given: added(given[0], per_head(*given[1:])),
        draw.tensor(2, 2, 3),
        draw.params(2, 1, 3),
        draw.params(2, 2, 1),
    )
    assert differentiable(
        lambda *given: added(given[0], from_heads(*given[1:])),
        draw.tensor(2, 2, 4),
        draw.params(2, 1, 2),
        draw.params(2, 2, 1),
    )
    assert differentiable(
        lambda *given: added(given[0], into_sum(*given[1:])),
        draw.tensor(2, 2, 4),
        draw.params(2, 1, 2),
        draw.params(2, 3, 1),
    )
