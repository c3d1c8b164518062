"""Only the adapter learns."""

import pytest
import torch

from attentune.errors import ConfigError

from .kit import KINDS, NATIVE_HEAD, Form, answer, base_of, batch_of, every_cell, every_form, same, tensors_of, wrap


def loss_of(model, batch):
    return model(**batch).logits.float().square().mean()


def batch_to_learn(kind):
    """Language models are told which tokens are an answer: here none is."""
    batch = batch_of(kind)
    if KINDS[kind][1] == "CAUSAL_LM":
        batch["labels"] = torch.full_like(batch["input_ids"], -100)
    return batch


def gradients(model, batch):
    """Of the last of two steps, so that nothing that was kept from the first may be missing in the second."""
    torch.manual_seed(0)
    for _ in range(2):
        model.zero_grad()
        loss_of(model, batch).backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


@every_cell
def test_a_step_updates_the_adapter_and_nothing_else(form, kind):
    model, batch = wrap(form, kind).train(), batch_to_learn(kind)
    base, before = base_of(model), {key: p.detach().clone() for key, p in tensors_of(model).items()}
    frozen = {key for key, p in tensors_of(model).items() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    after = tensors_of(model)
    assert same(base_of(model), base)
    for key, value in before.items():
        assert torch.equal(after[key], value) == (key in frozen), key
    assert frozen == {key for key in before if "source_prompts" in key}


@every_cell
def test_only_the_adapter_requires_gradients(form, kind):
    model = wrap(form, kind)
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    assert trained == {key for key in tensors_of(model) if "source_prompts" not in key}
    count, total = model.get_nb_trainable_parameters()
    assert count == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert total == sum(p.numel() for p in model.parameters())
    head = NATIVE_HEAD.get(kind)
    assert any("modules_to_save" in key for key in trained) == (head is not None)


@every_form
@pytest.mark.parametrize("blocks", [[0], [1], 1])
def test_layers_to_transform(form, blocks):
    model = wrap(form, layers_to_transform=blocks)
    found = {key.split("layer.")[1].split(".")[0] for key in tensors_of(model) if "encoder.layer." in key}
    wanted = {str(block) for block in ([blocks] if isinstance(blocks, int) else blocks)}
    assert found == (set() if form.method == "attempt" else wanted)
    answer(model, batch_of("bert"))


@every_form
def test_blocks_that_do_not_exist(form):
    with pytest.raises(ConfigError, match=r"layers_to_transform names \[2\]; the blocks are 0 to 1"):
        wrap(form, layers_to_transform=[0, 2])


@every_form
def test_inputs_require_gradients_when_checkpointing_is_on(form):
    """peft switches them on for a model that checkpoints already, and by prepare_model_for_gradient_checkpointing."""
    seen = []
    model = wrap(form)
    model.prepare_model_for_gradient_checkpointing(model.get_base_model())
    embeddings = model.get_base_model().get_input_embeddings()
    embeddings.register_forward_hook(lambda module, args, out: seen.append(out.requires_grad))
    answer_with_grad = model(**batch_of("bert")).logits
    assert set(seen) == {True}
    assert answer_with_grad.requires_grad


@every_cell
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])
def test_checkpointed_gradients_are_the_same(form, kind, reentrant):
    batch = batch_to_learn(kind)
    wanted = gradients(without_dropout(form, kind), batch)
    model = without_dropout(form, kind)
    model.prepare_model_for_gradient_checkpointing(model.get_base_model())
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients(model, batch)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, atol=1e-5, rtol=1e-3, msg=lambda m, key=key: f"{key}: {m}")
    assert {key for key, g in found.items() if g.any()} == {key for key, g in wanted.items() if g.any()}


def without_dropout(form, kind="bert"):
    """In training mode, but the same in every forward."""
    options = {"dropout": 0.0} if hasattr(form.config(), "dropout") else {}
    model = wrap(Form(form.label, form.method, {**form.options, **options}), kind).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


@every_form
def test_an_evaluation_between_two_steps_changes_no_gradient(form):
    batch, found = batch_of("bert"), []
    for evaluate in (False, True):
        model = without_dropout(form)
        loss_of(model, batch).backward()
        model.zero_grad()
        if evaluate:
            answer(model.eval(), batch)
            model.train()
        loss_of(model, batch).backward()
        found.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert same(*found)


@every_form
def test_every_trained_tensor_gets_a_gradient(form):
    for key, grad in gradients(wrap(form), batch_of("bert")).items():
        assert grad.any(), key
