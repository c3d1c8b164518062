"""a X^T and y + L R, for one adapter and for one a row."""

import pytest
import torch
from hypothesis import given

from attentune.products import add_product, narrow

from .drawing import ROWS, Drawer, close, differentiable, few, rows, seeds, small


@few
@given(seeds, small, small, small, small, rows)
def test_narrow(seed, batch, length, width, rank, how):
    draw = Drawer(seed, batch, how)
    x, a = draw.tensor(batch, length, width), draw.params(rank, width)
    wanted = torch.einsum("bti,bri->brt", x, a.expand(batch, -1, -1))
    found = narrow(x, a)
    close(found if how != "one" else found[0].view(rank, batch, length).transpose(0, 1), wanted)
    with torch.no_grad():
        close(narrow(x, a), found)


@pytest.mark.parametrize("how", ROWS)
def test_gradients_of_narrow_lie_as_x_lies(how):
    draw = Drawer(0, 2, how)
    x, a = draw.tensor(2, 3, 4).requires_grad_(), draw.params(2, 4)
    assert differentiable(narrow, x, a)
    (grad,) = torch.autograd.grad(narrow(x, a).sum(), x)
    assert grad.stride() == x.stride()


@few
@given(seeds, small, small, small, small, rows)
def test_add_product(seed, batch, length, width, rank, how):
    draw = Drawer(seed, batch, how)
    y, right = draw.tensor(batch, length, width), draw.params(rank, width)
    left = draw.tensor(len(right), batch * length // len(right), rank)
    wanted = y + torch.bmm(left, right).view_as(y)
    close(add_product(y, left, right), wanted)
    mine = y.clone()
    close(add_product(mine, left, right, overwrite=True), wanted)
    close(mine, wanted)


def test_under_autocast_y_keeps_its_precision():
    draw = Drawer(0, 2)
    y, left, right = draw.tensor(2, 3, 4).float(), draw.tensor(1, 6, 2).float(), draw.tensor(1, 2, 4).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = add_product(y, left, right)
    torch.testing.assert_close(found, add_product(y, left, right))
