"""Law 11: Trainer keeps the best checkpoint, and a run that was cut off and resumed equals one that never was."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from attentune import HeadConfig, TaskModel
from laws.cells import FORMS, Form
from laws.zoo import batch_of, model_of


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Twelve rows with labels."""

    def __init__(self) -> None:
        self.batch = batch_of("bert", (9,) * 12)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {**{key: value[i] for key, value in self.batch.items()}, "labels": torch.tensor(i % 3)}


def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs["logits"], labels)


def trainer_of(form: Form, folder: Path) -> Trainer:
    torch.manual_seed(0)
    head = HeadConfig(num_labels=3, pooling="mean", dropout=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(TaskModel(model_of("bert")), form.config(head=head))
    args = TrainingArguments(
        str(folder), max_steps=6, per_device_train_batch_size=4, learning_rate=1e-2, save_steps=1, eval_steps=1,
        eval_strategy="steps", load_best_model_at_end=True, remove_unused_columns=False, label_names=["labels"],
        report_to="none", disable_tqdm=True, seed=3, use_cpu=True,
    )  # fmt: skip
    return Trainer(model, args, train_dataset=Rows(), eval_dataset=Rows(), compute_loss_func=loss)


def trained(trainer: Trainer) -> dict[str, torch.Tensor]:
    assert trainer.model is not None
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.feature("resumed", kind="bert")
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.label)
def test_resumed_equals_never_cut_off(form: Form, tmp_path: Path) -> None:
    whole = trainer_of(form, tmp_path / "run")
    whole.train()
    expected = trained(whole)
    assert whole.state.best_model_checkpoint is not None
    for step in (1, 4):
        again = trainer_of(form, tmp_path / "run")
        again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        found = trained(again)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5, msg=f"{name} after step {step}")
