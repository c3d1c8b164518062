"""h[b,t] + e[b,s], t the s-th special token of row b."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attentune.errors import UnsupportedError
from attentune.method import Frame
from attentune.methods.pasta import PastaConfig, edit, one_hot, places, shift_special

from .drawing import ROWS, Drawer, close, differentiable, few, rows, seeds, small
from .slow import own, plus


def slot_numbers(special, slots):
    """Row by row, which slot (from 0) every position has; None for none."""
    found = []
    for row in special:
        count, numbers = 0, []
        for is_special in row:
            numbers.append(count if is_special and count < slots else None)
            count += bool(is_special)
        found.append(numbers)
    return found


def as_one_hot(numbers, slots):
    return [[[n == s for s in range(slots)] for n in row] for row in numbers]


def shifted(h, e, numbers):
    return [
        [x if n is None else plus(x, own(e, b)[n]) for x, n in zip(h[b], numbers[b], strict=True)]
        for b in range(len(h))
    ]


@few
@given(seeds, small, st.integers(1, 9), small)
def test_one_hot_counts_from_the_left(seed, batch, length, slots):
    special = Drawer(seed, batch).flags(batch, length)
    assert one_hot(special, slots).tolist() == as_one_hot(slot_numbers(special.tolist(), slots), slots)


@few
@given(seeds, small, st.integers(1, 6), small, small, rows)
def test_shift_special(seed, batch, length, slots, width, how):
    draw = Drawer(seed, batch, how)
    h, e, special = draw.tensor(batch, length, width), draw.params(slots, width), draw.flags(batch, length)
    numbers = slot_numbers(special.tolist(), slots)
    at, wanted = places(one_hot(special, slots)), shifted(h.tolist(), e.tolist(), numbers)
    close(shift_special(h, e, at), wanted)
    close(shift_special(h.clone(), e, at, overwrite=True), wanted)


@few
@given(seeds, small, st.integers(1, 5), st.integers(0, 2), st.integers(0, 2), rows)
def test_edit_leaves_prompts_in_front_and_padding_behind_alone(seed, batch, length, front, behind, how):
    draw = Drawer(seed, batch, how)
    tokens = draw.integers(4, batch, length)
    tokens[:, 0] = 1
    mask = torch.cat([torch.ones(batch, front + 1, dtype=torch.bool), draw.flags(batch, length - 1)], 1)
    h, p = draw.tensor(batch, front + length + behind, 3), {"shift": draw.params(2, 3)}
    special = (tokens == 1) & mask[:, front:]
    numbers = [[None] * front + row + [None] * behind for row in slot_numbers(special.tolist(), 2)]
    frame = Frame(tokens, mask, length, width=front)
    found = edit(PastaConfig(slots=2, special_ids=[1]), p, h, h, frame)
    close(found, shifted(h.tolist(), p["shift"].tolist(), numbers))


@pytest.mark.parametrize("how", ROWS)
def test_dropout_keeps_an_element_scaled_or_drops_it(how):
    draw = Drawer(0, 2, how)
    h, p = draw.tensor(2, 40, 30), {"shift": draw.params(40, 30)}
    frame = Frame(torch.ones(2, 40, dtype=torch.long), None, 40, training=True)
    torch.manual_seed(0)
    added = edit(PastaConfig(slots=40, special_ids=[1], dropout=0.25), p, h, h, frame) - h
    kept = torch.isclose(added, p["shift"] / 0.75)
    assert (kept | (added == 0)).all()
    assert 0.7 < kept.double().mean() < 0.8
    assert not torch.equal(kept[0], kept[1])


def test_a_row_without_special_tokens_is_refused():
    tokens = torch.tensor([[1, 5], [5, 5]])
    h = torch.zeros(2, 2, 3)
    with pytest.raises(UnsupportedError, match="row 1 of the batch has none of"):
        edit(PastaConfig(special_ids=[1]), {"shift": torch.zeros(1, 4, 3)}, h, h, Frame(tokens, None, 2))
    with pytest.raises(UnsupportedError, match="not inputs_embeds"):
        edit(PastaConfig(special_ids=[1]), {"shift": torch.zeros(1, 4, 3)}, h, h, Frame(None, None, 2))


@pytest.mark.parametrize("how", ROWS)
def test_gradients(how):
    draw = Drawer(1, 2, how)
    at = places(one_hot(draw.flags(2, 4), 3))
    assert differentiable(lambda h, e: shift_special(h, e, at), draw.tensor(2, 4, 3), draw.params(3, 3))
