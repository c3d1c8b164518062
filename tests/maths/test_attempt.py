"""sum_j a_j P_j + P_target, a = softmax_j(max over rows of P_j . g / T), g from the max over the text's embeddings."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attentune.errors import UnsupportedError
from attentune.method import Frame
from attentune.methods.attempt import ATTENTIONS, AttemptConfig, edit_prompt, max_pool, mix, query_linear, query_sub

from .drawing import ROWS, Drawer, close, differentiable, few, rows, seeds, small
from .slow import apply, dot, layer_norm, own, plus, silu, softmax, weighted


def slow_pool(x, mask):
    """x [T,E], mask [T] -> [E]"""
    kept = [row for row, real in zip(x, mask, strict=True) if real]
    return [max(column) for column in zip(*kept, strict=True)] if kept else [0.0] * len(x[0])


def slow_sub(x, down, up, weight, bias):
    return layer_norm(apply(up, [silu(v) for v in apply(down, x)]), weight, bias)


def slow_prompt(cfg, p, x, mask, target):
    """One row: p its tensors, x [T,E], mask [T], target [m,E] -> ([m,E], weights)"""
    if cfg.attention == "none" or (cfg.sources == 0 and not cfg.ignore_target):
        return target, None
    prompts = p["source_prompts"] + ([] if cfg.ignore_target else [target])
    pooled = slow_pool(x, [True] * len(x) if cfg.paper_exact else mask)
    if cfg.attention == "sub":
        pooled = slow_sub(pooled, p["attn_down"], p["attn_up"], p["norm_weight"], p["norm_bias"])
    elif cfg.attention == "linear":
        pooled = layer_norm(apply(p["attn_linear"], pooled), p["norm_weight"], p["norm_bias"])
    keys = [[max(column) for column in zip(*prompt, strict=True)] for prompt in prompts]
    scores = [0.0 if cfg.attention == "constant" else dot(key, pooled) / cfg.temperature for key in keys]
    weights = softmax(scores)
    mixed = [weighted(weights, [prompt[i] for prompt in prompts]) for i in range(cfg.length)]
    return mixed if cfg.ignore_target else [plus(a, b) for a, b in zip(mixed, target, strict=True)], weights


@few
@given(seeds, small, st.integers(1, 6), small, st.booleans())
def test_max_pool(seed, batch, length, width, masked):
    draw = Drawer(seed, batch)
    x, mask = draw.tensor(batch, length, width) - 3, draw.flags(batch, length, chance=0.4) if masked else None
    real = [[True] * length] * batch if mask is None else mask.tolist()
    close(max_pool(x, mask), [slow_pool(x[b].tolist(), real[b]) for b in range(batch)])


def test_max_pool_of_nothing_is_zero():
    assert not max_pool(torch.ones(1, 3, 2), torch.zeros(1, 3, dtype=torch.bool)).any()


@few
@given(seeds, small, st.integers(2, 5), st.integers(1, 4), rows)
def test_query_sub(seed, batch, e, r, how):
    draw = Drawer(seed, batch, how)
    x, p = draw.tensor(batch, e), [draw.params(r, e), draw.params(e, r), draw.params(e), draw.params(e)]
    close(query_sub(x, *p), [slow_sub(x[b].tolist(), *(own(t.tolist(), b) for t in p)) for b in range(batch)])


@few
@given(seeds, small, st.integers(2, 5), rows)
def test_query_linear(seed, batch, e, how):
    draw = Drawer(seed, batch, how)
    x, p = draw.tensor(batch, e), [draw.params(e, e), draw.params(e), draw.params(e)]
    slow = []
    for b in range(batch):
        weight, norm_weight, norm_bias = (own(t.tolist(), b) for t in p)
        slow.append(layer_norm(apply(weight, x[b].tolist()), norm_weight, norm_bias))
    close(query_linear(x, *p), slow)


@few
@given(seeds, small, small, small, small, rows)
def test_mix(seed, batch, prompts, m, e, how):
    draw = Drawer(seed, batch, how)
    weights, stack = draw.tensor(batch, prompts), draw.params(prompts, m, e)
    slow = [
        [weighted(weights[b].tolist(), [prompt[i] for prompt in own(stack.tolist(), b)]) for i in range(m)]
        for b in range(batch)
    ]
    close(mix(weights, stack), slow)


@few
@given(
    seeds,
    st.sampled_from(ATTENTIONS),
    rows,
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["one task", "by config", "by row"]),
)
def test_the_prompt_of_a_text(seed, attention, how, sources, ignore_target, exact, causal, choice):
    draw, batch, length, e, m = Drawer(seed, 3, how), 3, 4, 5, 2
    ignore_target = ignore_target and sources > 0 and attention != "none"
    tasks = 1 if choice == "one task" else 3
    cfg = AttemptConfig(
        attention=attention,
        length=m,
        sources=sources,
        bottleneck=3,
        temperature=1.7,
        ignore_target=ignore_target,
        paper_exact=exact,
        tasks=tasks,
        task=tasks - 1,
    )
    p = {
        "target_prompts": draw.params(tasks, m, e),
        "source_prompts": draw.params(sources, m, e),
        "attn_down": draw.params(3, e),
        "attn_up": draw.params(e, 3),
        "attn_linear": draw.params(e, e),
        "norm_weight": draw.params(e),
        "norm_bias": draw.params(e),
    }
    x, mask, source = draw.tensor(batch, length, e), draw.flags(batch, length), draw.flags(batch, length)
    task_ids = draw.integers(tasks, batch) if choice == "by row" else None
    frame = Frame(None, mask, length, width=m, prompt=m, task_ids=task_ids, source=source if causal else None)
    found = edit_prompt(cfg, p, torch.zeros(batch, length), x, frame)
    seen = (mask & source if causal else mask).tolist()
    slow = []
    for b in range(batch):
        mine = {key: own(value.tolist(), b) for key, value in p.items()}
        target = mine["target_prompts"][cfg.task if task_ids is None else int(task_ids[b])]
        slow.append(slow_prompt(cfg, mine, x[b].tolist(), seen[b], target))
    close(found, [prompt for prompt, _ in slow])
    if slow[0][1] is not None:
        close(frame.memo["prompt_attention"], [weights for _, weights in slow])
        close(frame.memo["prompt_attention"].sum(1), [1.0] * batch)


def test_nothing_is_put_in_front_while_decoding():
    x = torch.ones(2, 1, 4)
    assert edit_prompt(AttemptConfig(), {}, torch.zeros(2, 1), x, Frame(None, None, 1, past=9)).shape == (2, 0, 4)


@pytest.mark.parametrize("task", [2, -1])
def test_a_task_that_does_not_exist_is_refused(task):
    frame = Frame(None, None, 1, width=8, prompt=8, task_ids=torch.tensor([0, task]))
    p = {"target_prompts": torch.zeros(1, 2, 8, 4)}
    with pytest.raises(UnsupportedError, match=f"task_ids run from 0 to 1; the batch has {task}"):
        edit_prompt(AttemptConfig(attention="none", tasks=2), p, torch.zeros(2, 1), torch.ones(2, 1, 4), frame)


@pytest.mark.parametrize("how", ROWS)
def test_gradients(how):
    draw = Drawer(1, 2, how)
    sub = draw.params(2, 3), draw.params(3, 2), draw.params(3), draw.params(3)
    assert differentiable(query_sub, draw.tensor(2, 3), *sub)
    assert differentiable(mix, draw.tensor(2, 2), draw.params(2, 2, 3))
