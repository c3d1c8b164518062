"""Law 10: merged equals unmerged, and unmerging leaves the base as it was, bit for bit."""

import pytest
import torch

from attentune import METHODS
from attentune.errors import UnsupportedError
from laws.cells import CELLS, Form, adapted
from laws.matrix import REFUSED, Says
from laws.zoo import answer, batch_of

NO_BIASES = ("llama", "qwen2", "qwen3", "modernbert", "t5")
"""Architectures some of whose projections have no bias to merge one into."""
MERGING = [cell for cell in CELLS if METHODS[cell.values[0].method].merge is not None]  # pyright: ignore
OTHERS = [cell for cell in CELLS if METHODS[cell.values[0].method].merge is None]  # pyright: ignore


@pytest.mark.feature("merged")
@pytest.mark.parametrize(("form", "kind"), MERGING)
def test_merged_equals_unmerged(form: Form, kind: str) -> None:
    batch = batch_of(kind)
    model = adapted(form, kind, biases=kind not in NO_BIASES and form.config().biases)
    base = {n: p.clone() for n, p in model.named_parameters() if f"{form.method}_" not in n and "_kernel_mix" not in n}
    expected = answer(model, batch)
    model.merge_adapter()
    merged = answer(model, batch)
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-4)
    model.unmerge_adapter()
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in base.items())
    assert torch.equal(answer(model, batch), expected)
    bare = model.merge_and_unload()
    assert torch.equal(answer(bare, batch), merged)


@pytest.mark.feature("merged")
@pytest.mark.parametrize(("form", "kind"), [(Form("kernel_mix"), kind) for kind in NO_BIASES])
def test_a_bias_with_nothing_to_merge_into_is_refused(form: Form, kind: str, record_property: Says) -> None:
    model, batch = adapted(form, kind), batch_of(kind)
    expected = answer(model, batch)
    with pytest.raises(UnsupportedError, match="biases=False") as error:
        model.merge_adapter()
    record_property(REFUSED, str(error.value))
    assert torch.equal(answer(model, batch), expected)


@pytest.mark.feature("merged")
@pytest.mark.parametrize(("form", "kind"), OTHERS)
def test_other_methods_say_that_they_do_not_merge(form: Form, kind: str, record_property: Says) -> None:
    model, batch = adapted(form, kind), batch_of(kind)
    expected = answer(model, batch)
    with pytest.raises(UnsupportedError, match="no merged form") as error:
        model.merge_adapter()
    record_property(REFUSED, str(error.value))
    assert torch.equal(answer(model, batch), expected)
