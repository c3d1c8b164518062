"""Laws 3 and 4: who gets gradients, and that checkpointing does not change them."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from laws.cells import Form, adapted, cells
from laws.matrix import APART, Says
from laws.zoo import ZOO, answer, batch_of


def is_silent(form: Form, name: str) -> bool:
    """Trained tensors whose gradient may be zero, each for a reason that holds for every input."""
    options = dict(form.options)
    if "source_prompts" in name:
        return True  # frozen
    # One label's worth of softmax: with the values' map at a random start all are non-zero, but attention weights of
    # ATTEMPT go through a temperature that makes them nearly uniform; non-zero still.
    return bool(options.get("ignore_target")) and "target_prompts" in name


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
    model, batch = adapted(form, kind), batch_of(kind)
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
    batch = {**batch_of(kind)}
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
