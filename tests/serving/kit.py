"""Adapter folders with random tensors, made quickly: what they answer does not matter, that it is theirs does."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

from attentune import METHODS, HeadConfig, TaskModel, store
from attentune.backbones import fingerprint
from attentune.card import Backbone, TaskCard
from attentune.confidence import Calibration
from attentune.tasks import Classification, Tagging, Task
from attentune.tasks.columns import Columns

UNCALIBRATED = Calibration()
COLUMNS = {
    "question_answering": Columns(("question", "context"), "answers"),
    "multiple_choice": Columns(("text",), "label", choices=("choices",)),
}


def adapter(
    base: Any,
    folder: Path,
    method: str = "pasta",
    seed: int = 0,
    labels: int = 3,
    kind: str = "sequence",
    task: Task | None = None,
    calibration: Calibration = UNCALIBRATED,
    **options: Any,
) -> Path:
    """A folder of an adapter at a random start, its head included; `task` says what `labels` and `kind` else do."""
    origin = Backbone("tiny", fingerprint(base))
    torch.manual_seed(seed)
    pooling = options.pop("pooling", "mean")
    if task is None:
        names = tuple(f"class {i}" for i in range(labels))
        task = Classification(names) if kind == "sequence" else Tagging(("O", *(f"B-{name}" for name in names[1:])))
    head = HeadConfig(task.head, task.num_outputs, pooling)  # pyright: ignore[reportArgumentType]
    config = METHODS[method].config(head=head, init_weights=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model: Any = get_peft_model(TaskModel(base), config)
    for name, p in model.named_parameters():
        if ".heads." in name:
            torch.nn.init.normal_(p)
    columns = COLUMNS.get(task.kind, Columns(("text", "text_pair") if task.pair else ("text",), "label"))
    card = TaskCard(folder.name, method, task, columns, origin, 32, pooling, calibration)
    store.write(folder, model, card, "", {})
    model.unload()
    return folder
