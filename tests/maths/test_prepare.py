"""What a bank prepares for all blocks at once is what every block would prepare for itself."""

from typing import Any

import pytest
import torch
from laws.cells import FORMS, Form

from attentune import METHODS
from attentune.method import Dims

DIMS = Dims(8, 2, 2, 4, 3, torch.randn(20, 8), None, (0, 2))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.label)
def test_all_blocks_at_once(form: Form, rows: int) -> None:
    method, blocks = METHODS[form.method], 3
    cfg = form.config(**({"alpha": 3.0} if form.method == "kernel_mix" else {}))
    for site in method.sites_of(cfg):
        shapes = {key: value.shape for key, value in method.init(cfg, site, DIMS).items()}
        p: dict[str, Any] = {key: torch.randn(rows, blocks, *shape) for key, shape in shapes.items()}
        whole = method.prepare(cfg, site, p)
        for block in range(blocks):
            alone = method.prepare(cfg, site, {key: value[:, block] for key, value in p.items()})
            assert alone.keys() == whole.keys()
            for key, value in alone.items():
                torch.testing.assert_close(whole[key][:, block], value)
