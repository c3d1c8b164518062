"""The Trainer of a task: arguments, optimiser, loss, scores while training, and its checkpoints."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from attentune.batches import in_batches, logits_by_row
from attentune.errors import ConfigError
from attentune.evaluation.metrics import Scores
from attentune.tasks import Features, Task
from attentune.tasks.generate import Generation
from attentune.tasks.sources import Row
from attentune.tasks.task import Logits, collate, pack
from attentune.training.recipe import TrainingOptions
from attentune.training.trackers import RunLog, check_trackers
from attentune.writing import Writes, write


class Examples(Dataset[Features]):
    """Features as the Trainer wants them."""

    def __init__(self, features: Sequence[Features]) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Features:
        return self.features[index]


class Reporter(TrainerCallback):
    """One line after each evaluation."""

    def __init__(self, report: Callable[[str], None], metric: str) -> None:
        self.report, self.metric, self.loss = report, metric, math.nan

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Remember the training loss."""
        self.loss = given["logs"].get("loss", self.loss)

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Say how far it is and how good."""
        if state.is_world_process_zero:
            value = given["metrics"][f"eval_{self.metric}"]
            self.report(
                f"epoch {state.epoch or 0:.1f} of {state.num_train_epochs}: loss {self.loss:.4f}, "
                f"validation {self.metric} {value:.4f}"
            )


def arguments(folder: Path, training: TrainingOptions, metric: str, name: str | None = None) -> TrainingArguments:
    """Our options as the Trainer's; trackers show the run under `name`."""
    rhythm = "steps" if training.eval_steps else "epoch"
    every = training.eval_steps or 1
    cuda = torch.cuda.is_available()
    bf16 = training.precision == "bfloat16" or (
        training.precision == "auto" and cuda and torch.cuda.is_bf16_supported()
    )
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size * 2,
        gradient_accumulation_steps=training.accumulate,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup,
        max_grad_norm=training.clip,
        bf16=bf16,
        use_cpu=not torch.accelerator.is_available(),
        eval_strategy=rhythm,
        eval_steps=every,
        save_strategy=rhythm,
        save_steps=every,
        logging_strategy=rhythm,
        logging_steps=every,
        save_total_limit=1,
        load_best_model_at_end=True,
        restore_callback_states_from_checkpoint=True,
        metric_for_best_model=metric,
        greater_is_better=metric not in ("mse", "loss"),
        **_checkpointing(training.checkpointing),
        seed=training.seed,
        label_names=["labels"],
        remove_unused_columns=False,
        average_tokens_across_devices=False,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
        report_to=check_trackers(training.report_to),
        run_name=name,
    )


def _checkpointing(on: bool) -> dict[str, Any]:
    """The Trainer's options for it, which older transformers call gradient checkpointing."""
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: on, f"{name}_kwargs": {"use_reentrant": False}}


class ByLength(Sampler[int]):
    """Rows in an order where neighbours are of like length, another one each epoch.

    On a CPU padding is what training waits for. Drawn from seed and epoch alone, so that a resumed run sees the same.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=draw))

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch


Write = Callable[[Sequence[Features]], list[str]]
"""Write a text for each row."""


class TaskTrainer(Trainer):
    """The Trainer of a task, with batches of rows of like length."""

    loss_is_scaled_for_ga = False
    """Our loss is the mean of one batch; the Trainer divides it by the batches that make a step."""

    def __init__(
        self, task: Task, validation: tuple[Sequence[Features], Sequence[Row]], write: Write | None, **given: Any
    ) -> None:
        self.task, self.validation, self.write = task, validation, write
        super().__init__(**given)

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over rows; with `return_outputs` also the logits, a row each."""
        inputs = dict(inputs)
        labels, rows = inputs.pop("labels"), inputs.pop("rows", None)
        if self.task.head == "language":
            # The model shifts them into what its decoder reads; ATTEMPT learns from them which tokens are the answer.
            inputs["labels"] = labels
        logits: Tensor = model(**inputs).logits
        if rows is not None:
            logits = pack(logits, inputs["attention_mask"], rows)
        loss = self.task.loss(logits, labels).mean()
        return (loss, {"logits": logits}) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """With the scores of written texts too, where one of them chooses the epoch."""
        output = super().evaluation_loop(*args, **kwargs)
        if self.write is not None and self.args.metric_for_best_model != "loss":
            features, rows = self.validation
            scores = self.task.score(self.task.decode(cast("Any", self.write(features)), features), rows)
            assert output.metrics is not None
            output.metrics.update({f"eval_{name}": value for name, value in scores.items()})
        return output

    def _get_train_sampler(self, train_dataset: Any = None) -> ByLength:
        examples = cast("Examples", self.train_dataset if train_dataset is None else train_dataset)
        return ByLength([len(f) for f in examples.features], self.args.train_batch_size, self.args.seed)


def build_trainer(
    *,
    model: nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Features],
    validation: tuple[Sequence[Features], Sequence[Row]],
    args: TrainingArguments,
    training: TrainingOptions,
    report: Callable[[str], None],
    attention: Sequence[str] = (),
) -> TaskTrainer:
    """A Trainer that learns the task and scores it on the validation rows after each epoch."""
    order = _by_length(validation[0])
    features, rows = [validation[0][i] for i in order], [validation[1][i] for i in order]

    def scores(prediction: EvalPrediction) -> Scores:
        each = logits_by_row(cast("Any", prediction.predictions), features, task)
        fitted = task.fitted(each, features, rows)
        return fitted.score(fitted.decode(each, features), rows)

    def write_all(features: Sequence[Features]) -> list[str]:
        return written(model, tokenizer, cast("Generation", task), features, training.batch_size)

    writes = isinstance(task, Generation)
    trainer = TaskTrainer(
        task,
        (features, rows),
        write_all if writes else None,
        model=cast("Any", model),
        args=args,
        data_collator=lambda batch: collate(task, batch, tokenizer),
        train_dataset=Examples(train),
        eval_dataset=Examples(features),
        compute_metrics=None if writes else cast("Any", scores),
        optimizers=(optimiser(model, training, attention), cast("Any", None)),
        callbacks=[
            Reporter(report, cast("str", args.metric_for_best_model)),
            RunLog(Path(cast("str", args.output_dir))),
        ],
    )
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)
    if training.patience:
        trainer.add_callback(EarlyStoppingCallback(training.patience))
    return trainer


def optimiser(model: nn.Module, training: TrainingOptions, attention: Sequence[str] = ()) -> torch.optim.Optimizer:
    """AdamW with a rate for the method's tensors, one for the head, and one for the tensors named in `attention`.

    Raises:
        ConfigError: a rate for the attention of a method that has none.
    """
    if training.attention_learning_rate is not None and not attention:
        raise ConfigError("attention_learning_rate was given, and this method has no attention over prompts")
    rates = {
        "method": training.learning_rate,
        "head": training.head_learning_rate or training.learning_rate,
        "attention": training.attention_learning_rate or training.learning_rate,
    }
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts = set(name.split("."))
            group = "head" if "heads" in parts else "method" if parts.isdisjoint(attention) else "attention"
            groups[group].append(parameter)
    listed = [{"params": groups[name], "lr": rate} for name, rate in rates.items() if groups[name]]
    return torch.optim.AdamW(listed, weight_decay=training.weight_decay)


def logits_of(trainer: TaskTrainer, task: Task, features: Sequence[Features]) -> list[Logits]:
    """The logits of each row with the model as it is, on every process; the text, for a task that writes."""
    if not features:
        return []
    if trainer.write is not None:
        return cast("list[Logits]", trainer.write(features))
    order = _by_length(features)
    ordered = [features[i] for i in order]
    trainer.compute_metrics = None
    found = cast("Any", trainer.predict(cast("Any", Examples(ordered))).predictions)
    back = dict(zip(order, logits_by_row(found, ordered, task), strict=True))
    return [back[i] for i in range(len(features))]


def written(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: Generation,
    features: Sequence[Features],
    batch_size: int,
) -> list[str]:
    """A text for each row, by the active adapter."""
    training = model.training
    model.eval()
    try:
        return in_batches(
            [f.sequences[0]["input_ids"] for f in features],
            len,
            lambda prompts: write(cast("Writes", model), tokenizer, task, prompts),
            batch_size,
        )
    finally:
        model.train(training)


def _by_length(features: Sequence[Features]) -> list[int]:
    """An order with rows of like length next to each other: scores do not depend on it, padding does."""
    return sorted(range(len(features)), key=lambda i: -len(features[i]))
