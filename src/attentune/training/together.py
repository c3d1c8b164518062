"""Several tasks under shared tensors, trained in mixed batches: the model, its batches, its Trainer.

Every task has an adapter of its own with its own head; the tensors that the method shares are one and the same
Parameter in all of them, so that each row's gradient reaches it. Nothing else is different from serving: a batch names
the adapter of each row.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys  # pyright: ignore[reportPrivateUsage]
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments

from attentune import store
from attentune.card import TaskCard
from attentune.evaluation.metrics import Scores
from attentune.model import Adapted, LanguageModel
from attentune.predict import Job, Predictor
from attentune.sites import AdapterLayer
from attentune.tasks import Features, Task
from attentune.tasks.sources import Row
from attentune.tasks.task import own_logits, pack, pad_inputs
from attentune.training.frozen import NoInputGradients
from attentune.training.loop import Reporter
from attentune.training.optimiser import optimiser
from attentune.training.recipe import TrainingOptions
from attentune.training.trackers import RunLog


def share(model: nn.Module, adapters: Sequence[str], tensors: Sequence[str]) -> None:
    """Make these tensors of all adapters one and the same: that of the first one."""
    for layer in (module for module in model.modules() if isinstance(module, AdapterLayer)):
        for held in (getattr(layer, key) for key in tensors if key in layer.adapter_layer_names):
            for name in adapters:
                held[name] = held[adapters[0]]


class Together(nn.Module):
    """What the Trainer trains. Its state is what is trained, every shared tensor once."""

    def __init__(self, model: Adapted) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        """As the model's own."""
        return self.model(**inputs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The trained tensors by name; the frozen ones come with the backbone and the library of sources."""
        return {name: tensor.detach() for name, tensor in self.named_parameters() if tensor.requires_grad}

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Set the trained tensors."""
        missing = sorted(set(self.state_dict()) - set(state_dict))
        found = super().load_state_dict(state_dict, strict=False, assign=assign)
        return _IncompatibleKeys(missing, found.unexpected_keys)


@dataclass(frozen=True)
class Part:
    """One of the tasks: its adapter, and its rows."""

    adapter: str
    card: TaskCard
    features: Mapping[str, Sequence[Features]]
    """By split."""
    validation: Sequence[Row]

    @property
    def task(self) -> Task:
        """What is learned."""
        return self.card.task

    @property
    def writes(self) -> bool:
        """Whether the backbone's own head answers."""
        return self.task.head == "language"


def epoch_score(parts: Iterable[Part]) -> str:
    """What chooses the best epoch: the mean of the tasks' main scores, or the mean loss of those that write texts."""
    return "loss" if any(part.writes for part in parts) else "mean"


class Jobs(Dataset[Job]):
    """Rows of all tasks."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> Job:
        return self.jobs[index]


def collate_mixed(parts: Mapping[str, Part], jobs: Sequence[Job], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Rows of any tasks -> one batch [S,T] of every input, `adapter_names` of S, and `parts`: by task the tensors

    `at` [s] which of the S sequences are its own, `rows` [s] the row of each (counted within the task), and `targets`.
    Where texts are written, which the model has to know, `labels` [S,T'] are the targets of all.
    """
    features = [parts[job.task].task.with_answer(job.features) for job in jobs]
    sequences = [(sequence, i) for i, row in enumerate(features) for sequence in row.sequences]
    batch: dict[str, Any] = dict(pad_inputs([sequence for sequence, _ in sequences], tokenizer))
    length = batch["input_ids"].shape[1]
    batch["adapter_names"] = [parts[jobs[i].task].adapter for _, i in sequences]
    first = parts[jobs[0].task]
    if first.writes:
        batch["labels"] = first.task.target_tensor([row.target for row in features], length)
    batch["parts"] = {}
    for name in dict.fromkeys(job.task for job in jobs):
        mine, task = [i for i, job in enumerate(jobs) if job.task == name], parts[name].task
        longest = max(len(features[i]) for i in mine) if task.several else length
        batch["parts"][name] = {
            "at": torch.tensor([s for s, (_, i) in enumerate(sequences) if jobs[i].task == name]),
            "rows": torch.tensor([mine.index(i) for _, i in sequences if jobs[i].task == name]),
            "targets": batch["labels"][mine]
            if first.writes
            else task.target_tensor([features[i].target for i in mine], longest),
        }
    return batch


def row_losses(task: Task, logits: Tensor, mask: Tensor, part: Mapping[str, Tensor]) -> Tensor:
    """The loss [b] of each row of one task; logits [S,C'] or [S,T,C'] and mask [S,T] of the whole mixed batch."""
    if task.head == "language":
        return task.loss(logits[part["at"]], part["targets"])
    own = own_logits(task, logits[part["at"]], mask.shape[1])
    if task.several:
        own = pack(own, mask[part["at"]], part["rows"])
    return task.loss(own, part["targets"])


class MixedTrainer(Trainer):
    """The Trainer of several tasks. Rows are drawn from all of them alike, so every batch is mixed."""

    loss_is_scaled_for_ga = False
    """Our loss is the mean of one batch; the Trainer divides it by the batches that make a step."""

    def __init__(self, parts: Mapping[str, Part], predictor: Predictor, **given: Any) -> None:
        self.parts, self.predictor = parts, predictor
        super().__init__(**given)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over all rows, whatever their tasks."""
        inputs = dict(inputs)
        found: Mapping[str, Mapping[str, Tensor]] = inputs.pop("parts")
        outputs = model(**inputs)
        losses = [
            row_losses(self.parts[name].task, outputs.logits, inputs["attention_mask"], part)
            for name, part in found.items()
        ]
        loss = torch.cat(losses).mean()
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Main scores of all tasks on their validation rows, as prediction answers them, and their mean.

        Of tasks that write texts the losses, since writing them all can take longer than training.
        """
        metrics: dict[str, float] = {}
        for name, part in self.parts.items():
            metric = "loss" if part.writes else part.task.main_metric
            # No task's name has a slash: whatever it is, this is not the key of the mean or of a time.
            metrics[f"eval_{name}/{metric}"] = self.loss(name) if part.writes else self.scores(name)[metric]
        metrics[f"eval_{epoch_score(self.parts.values())}"] = sum(metrics.values()) / len(metrics)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def loss(self, name: str) -> float:
        """One task's mean loss on its validation rows."""
        rows = Jobs([Job(features, name) for features in self.parts[name].features["validation"]])
        loader = self.get_eval_dataloader(cast("Any", rows))
        found = self.evaluation_loop(loader, "Evaluation", prediction_loss_only=True)
        return cast("dict[str, float]", found.metrics)["eval_loss"]

    def scores(self, name: str) -> Scores:
        """One task's scores on its validation rows."""
        part = self.parts[name]
        features, rows = part.features["validation"], list(part.validation)
        logits = self.logits(name, "validation")
        fitted = part.task.fitted(logits, features, rows)
        return fitted.score(fitted.decode(logits, features), rows)

    def logits(self, name: str, split: str) -> list[Any]:
        """The logits of one task's rows with the model as it is."""
        self.predictor.model.eval()
        jobs = [Job(features, name) for features in self.parts[name].features[split]]
        return self.predictor.logits(jobs, self.args.eval_batch_size) if jobs else []


def build_mixed_trainer(
    model: Adapted,
    parts: Mapping[str, Part],
    tokenizer: PreTrainedTokenizerBase,
    args: TrainingArguments,
    training: TrainingOptions,
    report: Callable[[str], None],
    attention: Sequence[str],
) -> MixedTrainer:
    """A Trainer that learns all tasks at once and scores each on its validation rows after each epoch."""
    together = Together(model)
    # A batch may hold no row of some task.
    args.ddp_find_unused_parameters = True
    jobs = [Job(features, name) for name, part in parts.items() for features in part.features["train"]]
    trainer = MixedTrainer(
        parts,
        Predictor(
            model,
            tokenizer,
            {name: part.card for name, part in parts.items()},
            model if isinstance(model, LanguageModel) else None,
        ),
        model=cast("Any", together),
        args=args,
        data_collator=lambda batch: collate_mixed(parts, batch, tokenizer),
        train_dataset=Jobs(jobs),
        eval_dataset=Jobs(jobs[:1]),  # `evaluate` knows the rows; the Trainer asks that there be some
        optimizers=(optimiser(together, training, attention), cast("Any", None)),
        callbacks=[
            Reporter(report, epoch_score(parts.values()), training.patience),
            RunLog(Path(cast("str", args.output_dir))),
            NoInputGradients(),
        ],
    )
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)
    if training.patience:
        trainer.add_callback(EarlyStoppingCallback(training.patience))
    return trainer


class OneOf:
    """One adapter of a model, saved as plain peft saves it."""

    def __init__(self, model: Adapted, adapter: str, backbone: str) -> None:
        self.model, self.adapter, self.backbone = model, adapter, backbone

    def save_pretrained(self, save_directory: str, **options: Any) -> None:
        """Write adapter_config.json and adapter_model.safetensors."""
        config = cast("Any", self.model).peft_config[self.adapter]
        config.base_model_name_or_path, config.inference_mode = self.backbone, True
        host = self.model.host
        if config.task_type is None:
            kind = type(host)
            config.auto_mapping = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
        config.save_pretrained(save_directory)
        tensors = {
            f"base_model.model.{path}.{key}": tensor.detach().cpu().contiguous()
            for path, layer in host.named_modules()
            if isinstance(layer, AdapterLayer)
            for key, tensor in layer.tensors(self.adapter).items()
        }
        save_file(tensors, Path(save_directory) / store.WEIGHTS, metadata={"format": "pt"})
