"""Attention of width 1 in linear time: the certified bound, gradients, masks, causal rows, and when it is chosen."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from attentune import scalar_attention
from attentune.dropped_attention import dropped_attention
from attentune.method import Frame
from attentune.methods.tiny_attention import attend as tiny
from attentune.scalar_attention import Plan, attend, bound, faster, plan, product_of

KEYS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "gaussian": lambda n, g: torch.randn(n, generator=g, dtype=torch.float64),
    "two clusters": lambda n, g: 9.0 * (torch.arange(n) % 2) + 0.01 * torch.randn(n, generator=g, dtype=torch.float64),
    "one outlier": lambda n, g: torch.cat([torch.full((1,), 20.0), torch.randn(n - 1, generator=g)]).double(),
    "all equal": lambda n, g: torch.full((n,), -3.0, dtype=torch.float64),
    "ties": lambda n, g: torch.randint(-2, 3, (n,), generator=g).double(),
    "wide": lambda n, g: 40 * torch.randn(n, generator=g, dtype=torch.float64),
}


def exact(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None, causal: bool = False) -> Tensor:
    """From the formula: weights, then their mean."""
    scores = q.double() @ k.double().transpose(-1, -2)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    return scores.softmax(-1) @ v.double()


def draw(form: str, count: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [2,1,count,1]; the second row has other ones than the first."""
    g = torch.Generator().manual_seed(seed)
    q, v = (torch.randn(2, 1, count, 1, generator=g, dtype=torch.float64) for _ in range(2))
    keys = torch.stack([KEYS[form](count, g), KEYS["gaussian"](count, g)])[:, None, :, None]
    return scale * q, keys, v


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(KEYS)), st.integers(1, 40), st.floats(0.01, 4), st.sampled_from([1e-3, 1e-6, 1e-9]))
def test_the_error_is_below_its_bound(form: str, count: int, scale: float, error: float) -> None:
    q, k, v = draw(form, count, seed=count, scale=scale)
    product = product_of(q, k, None)
    found = plan(product, error)
    if found is None:
        assert product > 500 or error < 1e-6
        return
    assert bound(product, found.panels, found.nodes) <= error
    distance = (attend(q, k, v, None, found) - exact(q, k, v)).abs().max()
    assert distance <= error * v.abs().max() + 1e-12


@pytest.mark.parametrize("product", [1.0, 5.0, 50.0])
def test_the_bound_is_not_far_from_the_truth(product: float) -> None:
    """Two clusters at both ends have their poles nearest: the bound may not be loose by orders there."""
    k = torch.tensor([0.0, 1.0]).double()[None, None, :, None]
    q = torch.linspace(-product / 2, product / 2, 2001, dtype=torch.float64)[None, None, :, None]
    v = torch.tensor([-1.0, 1.0]).double()[None, None, :, None]
    for panels, nodes in ((1, 8), (2, 8), (4, 6)):
        certified = bound(product, panels, nodes)
        distance = float((attend(q, k, v, None, Plan(panels, nodes)) - exact(q, k, v)).abs().max())
        assert distance <= certified
        if 1e-10 < certified < 1:
            assert distance > certified / 1000


@pytest.mark.parametrize("form", KEYS)
def test_masked_keys_have_no_say(form: str) -> None:
    q, k, v = draw(form, 30, seed=1, scale=0.1)
    allowed = torch.rand(2, 1, 1, 30, generator=torch.Generator().manual_seed(2)) < 0.5
    allowed[0, ..., 3], allowed[1] = True, False
    allowed[1, ..., 7] = True  # all but one are masked
    found = plan(product_of(q, k, allowed), 1e-9)
    assert found is not None
    distance = (attend(q, k, v, allowed, found) - exact(q, k, v, allowed)).abs().max()
    assert distance <= 1e-9 * v.abs().max() + 1e-12
    far = torch.where(allowed.transpose(-1, -2), k, 1e6)
    assert product_of(q, far, allowed) == product_of(q, k, allowed)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("form", ["gaussian", "two clusters", "ties", "all equal"])
def test_causal_rows_see_no_later_key(form: str, masked: bool) -> None:
    q, k, v = draw(form, 30, seed=3)
    allowed = None
    if masked:
        allowed = torch.ones(2, 1, 1, 30, dtype=torch.bool)
        allowed[0, ..., :5] = False
    found = plan(product_of(q, k, allowed), 1e-8)
    assert found is not None
    got, wanted = attend(q, k, v, allowed, found, causal=True), exact(q, k, v, allowed, causal=True)
    if masked:
        assert (got[0, :, :5] == 0).all()  # nothing to attend to
        wanted[0, :, :5] = 0
    assert (got - wanted).abs().max() <= 1e-8 * v.abs().max() + 1e-10


@pytest.mark.parametrize("causal", [False, True])
def test_gradients(causal: bool) -> None:
    q, k, v = (t[:, :, :6].clone().requires_grad_() for t in draw("gaussian", 8, seed=4))
    found = plan(4 * product_of(q.detach(), k.detach(), None), 1e-11)
    assert found is not None

    def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # The ends of the range stay where they are, as numeric differences would move the panels with them.
        ends = torch.tensor([-6.0, 6.0], dtype=q.dtype).expand(2, 1, 2)[..., None]
        more = [torch.cat([t, part], -2) for t, part in ((q, ends), (k, k[:, :, -2:] * 0 - 50), (v, v[:, :, -2:] * 0))]
        allowed = torch.tensor([True] * 6 + [False] * 2).expand(2, 1, 1, 8)
        return attend(more[0], more[1], more[2], allowed, found, causal)[:, :, :6]

    torch.autograd.gradcheck(attended, (q, k, v), atol=1e-6)
    (attended(q, k, v) * torch.arange(6)[:, None]).sum().backward()
    got = [t.grad.clone() for t in (q, k, v) if t.grad is not None]
    wanted = torch.autograd.grad((exact(q, k, v, causal=causal) * torch.arange(6)[:, None]).sum(), (q, k, v))
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).abs().max() < 1e-7


@pytest.mark.parametrize("apart", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize("others", [True, False])
def test_nearly_equal_queries_have_their_gradient(apart: float, others: bool) -> None:
    """Beside rows whose queries differ, whose plan they share, and alone."""
    q, k, v = (t.float() for t in draw("gaussian", 300, seed=9))
    q[0] = 0.7 + apart * q[0]
    if not others:
        q[1] = 0.7 + apart * q[1]
    q.requires_grad_()
    found = plan(product_of(q.detach(), k, None))
    assert found is not None
    got = torch.autograd.grad(attend(q, k, v, None, found).sum(), q)[0]
    wanted = torch.autograd.grad(exact(q, k, v).sum(), q)[0]
    assert (got - wanted).abs().max() < 2e-4
    assert wanted[0].abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_costs_no_more_than_in_attention_itself(dtype: torch.dtype, autocast: bool) -> None:
    q, k, v = (t.to(torch.float32 if autocast else dtype) for t in draw("gaussian", 2048, seed=5, scale=4.0))
    with torch.autocast("cpu", dtype, enabled=autocast):
        found = plan(product_of(q, k, None))
        assert found is not None
        got = attend(q, k, v, None, found)
        itself = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    wanted = exact(q, k, v)
    assert (got - wanted).abs().max() <= 1.5 * (itself - wanted).abs().max()


def test_it_is_trained_after_it_has_answered() -> None:
    """What is kept from one call to the next was made in inference mode."""
    by = Plan(3, 11)  # of no other test
    q, k, v = (torch.randn(1, 1, 9, 1) for _ in range(3))
    with torch.inference_mode():
        attend(q, k, v, None, by)
    for t in (q, k, v):
        t.requires_grad_()
    attend(q, k, v, None, by).sum().backward()
    assert all(t.grad is not None for t in (q, k, v))


def test_float32_is_as_exact_as_attention_itself() -> None:
    for form in ("gaussian", "two clusters", "one outlier", "all equal"):
        q, k, v = (t.float() for t in draw(form, 2048, seed=5))
        found = plan(product_of(q, k, None))
        assert found is not None
        error = (attend(q, k, v, None, found) - exact(q, k, v)).abs().max() / v.abs().max()
        assert error < 5e-6, form


def test_it_is_chosen_where_it_takes_fewer_steps() -> None:
    q, k, _ = draw("gaussian", 4096, seed=6)
    found = faster(q, k, None)
    assert found is not None
    assert scalar_attention.MARGIN * found.steps(4096, 4096) < 4096**2
    assert faster(q[:, :, :512], k, None) is None  # few queries
    assert faster(40 * q, 40 * k, None) is None  # keys spread too far
    assert faster(q, k[:, :, :2048], None, causal=True) is None  # a row that continues another
    q, k, _ = draw("gaussian", 32768, seed=6)
    assert faster(q, k, None, causal=True) is not None
    assert faster(q + 200, k, None, causal=True) is None  # float64 does not reach so far
    assert faster(q.index_fill(-2, torch.tensor([3]), torch.inf), k, None) is None  # no number
    assert faster(3e4 * q[:, :, :2048].half(), 3e4 * k[:, :, :2048].half(), None) is None  # a product beyond float16
    compiled = torch.compile(lambda q, k: faster(q, k, None) is None, backend="eager", fullgraph=True)
    assert compiled(q, k)


@pytest.mark.parametrize("causal", [False, True])
def test_tiny_attention_uses_it(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scalar_attention, "PREFIX", 0)  # causal rows would have to be longer than a test likes
    torch.manual_seed(7)
    q, k, v = (torch.randn(2, 2, 2048, 1) for _ in range(3))
    mask = torch.ones(2, 2048, dtype=torch.bool)
    mask[1, 1500:] = False
    frame = Frame(None, mask, 2048, causal=causal)
    there = mask[:, None, None]
    assert faster(q, k, there, causal) is not None
    got = tiny(q, k, v, frame, 0.0)
    assert (got - exact(q, k, v, there, causal)).abs().max() < 2e-5
    # With dropout there is a weight a pair, and all of them are made.
    torch.manual_seed(8)
    dropped = tiny(q, k, v, frame, 0.5)
    torch.manual_seed(8)
    assert torch.equal(dropped, dropped_attention(q, k, v, frame.allowed(q, k), 0.5))
    if causal:
        # Of rows without padding PyTorch's attention needs no mask, and is faster still.
        frame = Frame(None, mask | True, 2048, causal=True)
        itself = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        assert torch.equal(tiny(q, k, v, frame, 0.0), itself)
        assert (itself - exact(q, k, v, None, causal)).abs().max() < 2e-5
