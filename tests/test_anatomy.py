"""The table of architectures: rows from outside, and what is refused."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from laws.cells import FORMS, adapted, refused
from laws.zoo import ZOO
from transformers import EuroBertConfig, EuroBertModel

from attentune import METHODS, TaskModel, register_architecture
from attentune.anatomy import ANATOMIES
from attentune.errors import ConfigError, UnsupportedError
from attentune.sites import Stack, stacks_in

ROW = replace(ANATOMIES["llama"][0], causal=False)


@pytest.fixture
def row() -> Iterator[None]:
    register_architecture("eurobert", ROW)
    yield
    del ANATOMIES["eurobert"]


def eurobert() -> Any:
    torch.manual_seed(0)
    config = EuroBertConfig(
        vocab_size=140, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=96, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    return EuroBertModel(config).eval()


def batch() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[0, 17, 33, 90, 2], [0, 45, 2, 1, 1]])
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_acts_on_a_row_from_outside(name: str, row: None) -> None:
    model: Any = TaskModel(eurobert())
    plain = model.backbone(**batch()).last_hidden_state
    model.add_adapter("moved", METHODS[name].config(init_weights=False))
    moved = model.backbone(**batch()).last_hidden_state
    assert moved.shape == plain.shape
    assert not torch.allclose(moved, plain, atol=1e-3)
    short = {key: value[1:, :3] for key, value in batch().items()}
    alone = model.backbone(**short).last_hidden_state
    torch.testing.assert_close(alone[0], moved[1, :3], atol=1e-5, rtol=1e-4)


def test_without_a_row_it_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no anatomy for model type 'eurobert'"):
        TaskModel(eurobert())


def test_the_same_row_again_is_no_error_and_another_is(row: None) -> None:
    register_architecture("eurobert", ROW)
    with pytest.raises(ConfigError, match="'eurobert' has a row already; known are bart, "):
        register_architecture("eurobert", replace(ROW, causal=True))


def test_a_row_names_every_place() -> None:
    places = {site: place for site, place in ROW.places.items() if site != "value"}
    with pytest.raises(ConfigError, match="missing or unknown are value"):
        register_architecture("other", replace(ROW, places=places))
    with pytest.raises(ConfigError, match="missing or unknown are mlp"):
        register_architecture("other", replace(ROW, places={**ROW.places, "mlp": ROW.places["output"]}))
    with pytest.raises(ConfigError, match="found none"):
        register_architecture("other")
    assert "other" not in ANATOMIES


@pytest.mark.parametrize("kind", ZOO)
def test_all_stacks_are_found_without_looking_into_the_blocks(kind: str) -> None:
    model = adapted(next(form for form in FORMS if not refused(form, kind)), kind)
    found = stacks_in(model)
    assert found
    assert found == [module for module in model.modules() if isinstance(module, Stack)]
