"""The Trainer of a task: arguments, optimiser, loss, scores while training, and its checkpoints."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from attentune.batches import in_batches, logits_by_row
from attentune.evaluation.metrics import LOWER_IS_BETTER, Scores
from attentune.quantised import on_cpu_only
from attentune.tasks import Features, Task
from attentune.tasks.generate import Generation
from attentune.tasks.sources import Row
from attentune.tasks.task import Logits, collate, pack
from attentune.training.frozen import FrozenPart, NoInputGradients
from attentune.training.optimiser import optimiser
from attentune.training.order import ByLength, Examples, by_length
from attentune.training.recipe import TrainingOptions
from attentune.training.trackers import RunLog, check_trackers
from attentune.writing import Writes, write


class Reporter(TrainerCallback):
    """One line after each evaluation, and one where training ends before its last epoch."""

    def __init__(self, report: Callable[[str], None], metric: str, patience: int) -> None:
        self.report, self.metric, self.patience, self.loss = report, metric, patience, math.nan

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

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Say why it ends early."""
        if state.is_world_process_zero and self.patience and state.global_step < state.max_steps:
            times = "evaluation" if self.patience == 1 else f"{self.patience} evaluations"
            self.report(f"stopped: validation {self.metric} was no better for {times}; the best is kept")


def arguments(folder: Path, training: TrainingOptions, metric: str, name: str | None = None) -> TrainingArguments:
    """Our options as the Trainer's; trackers show the run under `name`."""
    rhythm = "steps" if training.eval_steps else "epoch"
    every = training.eval_steps or 1
    cuda = torch.cuda.is_available()
    bf16 = training.precision == "bfloat16" or (
        training.precision == "auto" and cuda and torch.cuda.is_bf16_supported()
    )
    args = TrainingArguments(
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
        use_cpu=on_cpu_only(training.quantise) or not torch.accelerator.is_available(),
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
        greater_is_better=metric not in LOWER_IS_BETTER,
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
    # Where it sees several GPUs and there is no launcher, the Trainer makes nn.DataParallel, whose replicas would share
    # hooks that belong to the stack of one model.
    args._n_gpu = min(args.n_gpu, 1)  # pyright: ignore[reportPrivateUsage]
    return args


def _checkpointing(on: bool) -> dict[str, Any]:
    """The Trainer's options for it, which older transformers call gradient checkpointing."""
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: on, f"{name}_kwargs": {"use_reentrant": False}}


Write = Callable[[Sequence[Features]], list[str]]
"""Write a text for each row."""


@dataclass(frozen=True)
class Share:
    """What one task brings to a step that several tasks take together."""

    trainer: "TaskTrainer"
    inputs: dict[str, Tensor]
    """Its next batch, as `tasks.task.collate` made it, on the device."""

    def loss(self, logits: Tensor) -> Tensor:
        """Its sequences' logits -> its loss, divided as its own step would."""
        loss = self.trainer.loss_of(by_row(logits, self.inputs), self.inputs)
        return loss / self.trainer.current_gradient_accumulation_steps


JointStep = Callable[[Share], Tensor]
"""Takes a task's batch, puts the gradients on its parameters, and gives back its loss."""


class TaskTrainer(Trainer):
    """The Trainer of a task, with batches of rows of like length."""

    loss_is_scaled_for_ga = False
    """Our loss is the mean of one batch; the Trainer divides it by the batches that make a step."""

    def __init__(
        self,
        task: Task,
        validation: tuple[Sequence[Features], Sequence[Row]],
        write: Write | None,
        step: JointStep | None,
        frozen: FrozenPart | None,
        **given: Any,
    ) -> None:
        self.task, self.validation, self.write, self.step, self.frozen = task, validation, write, step, frozen
        super().__init__(**given)

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over rows; with `return_outputs` also the logits, a row each."""
        labels = {"labels": inputs["labels"]} if self.task.head == "language" else {}
        # The model shifts them into what its decoder reads; ATTEMPT learns from them which tokens are the answer.
        logits = by_row(model(**model_inputs(inputs), **labels).logits, inputs)
        loss = self.loss_of(logits, inputs)
        return (loss, {"logits": logits}) if return_outputs else loss

    def loss_of(self, logits: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """The mean over the rows of a batch; logits [B,C] or [B,L,C]."""
        return self.task.loss(logits, inputs["labels"]).mean()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """A forward and a backward: its own, or its share of those that several tasks take together."""
        if self.step is None:
            return super().training_step(model, inputs, num_items_in_batch)
        # accelerate keeps this for the whole process, and the other tasks' Trainers run meanwhile.
        state = self.accelerator.gradient_state
        syncs = state.sync_gradients
        loss = self.step(Share(self, cast("Any", self._prepare_inputs(inputs))))
        state._set_sync_gradients(syncs)  # pyright: ignore[reportPrivateUsage]
        return loss

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


def model_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model reads of a batch."""
    return {name: value for name, value in inputs.items() if name not in ("labels", "rows")}


def by_row(logits: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits of a batch's sequences -> of its rows."""
    rows = inputs.get("rows")
    return logits if rows is None else pack(logits, inputs["attention_mask"], rows)


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
    step: JointStep | None = None,
    frozen: FrozenPart | None = None,
) -> TaskTrainer:
    """A Trainer that learns the task and scores it on the validation rows after each epoch."""
    order = by_length(validation[0])
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
        step,
        frozen,
        model=cast("Any", model),
        args=args,
        data_collator=lambda batch: collate(task, batch, tokenizer),
        train_dataset=Examples(train),
        eval_dataset=Examples(features),
        compute_metrics=None if writes else cast("Any", scores),
        optimizers=(optimiser(model, training, attention), cast("Any", None)),
        callbacks=[
            Reporter(report, cast("str", args.metric_for_best_model), training.patience),
            RunLog(Path(cast("str", args.output_dir))),
            NoInputGradients(),
        ],
    )
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)
    if training.patience:
        trainer.add_callback(EarlyStoppingCallback(training.patience))
    return trainer


def logits_of(trainer: TaskTrainer, task: Task, features: Sequence[Features]) -> list[Logits]:
    """The logits of each row with the model as it is, on every process; the text, for a task that writes."""
    if not features:
        return []
    if trainer.write is not None:
        return cast("list[Logits]", trainer.write(features))
    order = by_length(features)
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
