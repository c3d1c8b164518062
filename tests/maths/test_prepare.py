"""What a bank prepares for all blocks of a task at once is what every block would prepare for itself."""

from typing import Any

import pytest
import torch
from laws.cells import FORMS, Form

from attentune import METHODS
from attentune.method import Dims

BLOCKS = 3
PREPARED = [form for form in FORMS if form.method in ("kernel_mix", "tiny_attention")]
PREPARED += [
    Form("kernel_mix", (("parts", "qkvo"), ("v_base", "X"), ("alpha", 3.0))),
    Form("kernel_mix", (("q_rank", 0), ("q_shared_rank", 0), ("v_shared_rank", 0))),
    Form("kernel_mix", (("parts", "qkvo"), ("v_base", "X"), ("q_shared_rank", 0), ("biases", False))),
]


def test_forms_are_of_all_methods_that_prepare() -> None:
    default = METHODS["pasta"].prepare
    methods = {form.method for form in FORMS}
    assert {name for name in methods if METHODS[name].prepare is not default} == {form.method for form in PREPARED}


@pytest.mark.parametrize("form", PREPARED, ids=lambda form: form.label)
def test_all_blocks_at_once(form: Form) -> None:
    torch.manual_seed(0)
    method, cfg = METHODS[form.method], form.config()
    dims = Dims(8, 2, 2, 4, BLOCKS, torch.randn(20, 8), None, (0, 2))
    for site in method.sites_of(cfg):
        shapes = {key: value.shape for key, value in method.init(cfg, site, dims).items()}
        p: dict[str, Any] = {key: torch.randn(1, BLOCKS, *shape) for key, shape in shapes.items()}
        whole = method.prepare(cfg, site, p)
        assert bool(whole) == bool(p)
        for block in range(BLOCKS):
            alone = method.prepare(cfg, site, {key: value[:, block] for key, value in p.items()})
            assert alone.keys() == whole.keys()
            for key, value in alone.items():
                torch.testing.assert_close(whole[key][:, block], value)
