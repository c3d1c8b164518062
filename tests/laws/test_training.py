"""Laws 3 and 4: who gets gradients, and that checkpointing does not change them."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from laws.cells import CELLS, ONE_A_METHOD, Form, adapted, add, cells
from laws.matrix import APART, Says
from laws.zoo import ZOO, answer, batch_of, rows_of, to_learn


def is_silent(form: Form, name: str) -> bool:
    """Trained tensors whose gradient may be zero, each for a reason that holds for every input."""
    options = dict(form.options)
    if "source_prompts" in name:
        return True  # frozen
    # One label's worth of softmax: with the values' map at a random start all are non-zero, but attention weights of
    # ATTEMPT go through a temperature that makes them nearly uniform; non-zero still.
    return bool(options.get("ignore_target")) and "target_prompts" in name


def real(batch: dict[str, Tensor]) -> Tensor:
    """[B,T] the positions of the answer that count."""
    mask = batch["attention_mask"]
    return torch.ones_like(batch["decoder_input_ids"]) if "decoder_input_ids" in batch else mask


def gradients(model: Any, batch: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    model.zero_grad()
    out = answer(model, batch)
    torch.manual_seed(seed)
    (out * torch.randn_like(out)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.feature("gradients")
@cells
def test_only_adapters_get_gradients_and_all_of_them(form: Form, kind: str) -> None:
    """At step 1, and at step 2 after an evaluation pass."""
    model, batch = adapted(form, kind), to_learn(kind, batch_of(kind))
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(f"_{form.method}." in name for name in trained)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        model.train()
        found = gradients(model, batch)
        assert set(found) == trained
        zero = {name for name, grad in found.items() if not grad.any()}
        assert not {name for name in zero if not is_silent(form, name)}
        optimizer.step()
        model.eval()
        with torch.no_grad():
            answer(model, batch)
    for name, value in frozen.items():
        assert torch.equal(dict(model.named_parameters())[name], value)


UNLIKE = ("deberta-v2", "modernbert", "longformer", "t5", "gpt2")
"""Architectures whose blocks are built in other ways than BERT's."""
MIXED = [c for c in CELLS if c.values[1] == "bert" or (c.values[1] in UNLIKE and c.values[0] in ONE_A_METHOD)]


@pytest.mark.parametrize(("form", "kind"), MIXED)
def test_gradients_of_mixed_rows_are_those_of_each_row_alone(form: Form, kind: str) -> None:
    model, batch = adapted(form, kind), batch_of(kind, (9, 12, 7))
    add(model, "other", form, 2)
    tuner: Any = model.base_model
    tuner.set_requires_grad(["default", "other"], True)
    names = ["other", "default", "__base__"]
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(answer(model, batch).shape, generator=generator) * real(batch)[..., None]

    def found(rows: list[int]) -> dict[str, Tensor]:
        model.zero_grad()
        out = answer(model, rows_of(batch, rows), adapter_names=[names[row] for row in rows])
        (out * weights[rows][:, : out.shape[1]]).sum().backward()
        return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}

    mixed, alone = found([0, 1, 2]), {**found([0]), **found([1])}
    assert set(mixed) == set(alone)
    for key, grad in mixed.items():
        torch.testing.assert_close(grad, alone[key], atol=1e-4, rtol=1e-4, msg=key)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("method", ["tiny_attention", "kernel_mix"])
def test_checkpointed_blocks_run_again_with_the_batch_that_they_first_ran_with(method: str, kind: str) -> None:
    """Two batches forward, with masks and adapters of their own, then both backward."""
    batches = [batch_of(kind, (12, 7, 9), 1), batch_of(kind, (12, 10, 5), 2)]
    names = [["default", "other", "default"], ["other", "default", "other"]]
    found: list[dict[str, Tensor]] = []
    for checkpointed in (False, True):
        model = adapted(Form(method), kind, dropout=0.0)
        add(model, "other", Form(method), 2, dropout=0.0)
        tuner: Any = model.base_model
        tuner.set_requires_grad(["default", "other"], True)
        if checkpointed:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                tuner.model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in model.train().modules():
            for field in ("p", "dropout_prob"):
                if isinstance(getattr(module, field, None), float):
                    setattr(module, field, 0.0)
        options = {"use_cache": False} if ZOO[kind].causal else {}
        outs = [answer(model, b, adapter_names=n, **options) for b, n in zip(batches, names, strict=True)]
        (outs[0].square().sum() + 2 * outs[1].square().sum()).backward()
        found.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert set(found[0]) == set(found[1])
    for key, grad in found[0].items():
        torch.testing.assert_close(found[1][key], grad, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize("kind", [kind for kind in ZOO if kind != "mpnet"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not"])
def test_checkpointing_draws_the_same_dropout_again(kind: str, reentrant: bool) -> None:
    """Kernel-mix hands dropped inputs from one site to another; a block that is run again must hand on the same."""
    base: Any = adapted(Form("kernel_mix"), kind, dropout=0.5).train()
    batch: dict[str, Any] = {**batch_of(kind), **({"use_cache": False} if ZOO[kind].causal else {})}
    torch.manual_seed(0)
    expected = gradients(base, batch)
    model = base.get_base_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    torch.manual_seed(0)
    found = gradients(base, batch)
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.feature("checkpointed")
@cells
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not"])
def test_checkpointing_gives_equal_gradients(form: Form, kind: str, reentrant: bool, record_property: Says) -> None:
    base: Any = adapted(form, kind, dropout=0.0) if hasattr(form.config(), "dropout") else adapted(form, kind)
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    config = base.get_base_model().config
    for field in ("dropout", "attention_dropout", "attention_probs_dropout_prob", "activation_dropout"):
        if hasattr(config, field):
            setattr(config, field, 0.0)
    for module in base.modules():
        for field in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, field, None), float):
                setattr(module, field, 0.0)
    base.train()
    batch = to_learn(kind, batch_of(kind))
    if ZOO[kind].causal:
        batch["use_cache"] = False  # pyright: ignore[reportArgumentType]
    expected = gradients(base, batch)
    model = base.get_base_model()
    if not model.supports_gradient_checkpointing:
        assert kind == "mpnet", "only MPNet has no checkpointing in transformers"
        record_property(APART, "transformers has no checkpointing for this architecture")
        return
    with warnings.catch_warnings():
        # transformers renames it; both names must work over the versions that attentune supports.
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    found = gradients(base, batch)
    assert set(found) == set(expected)
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=1e-4)
