"""One run -> one record, in the columns of peft's `method_comparison` where they exist.

    run_info     created_at, total_time, experiment_name, train_config, peft_config, error_msg, peft_branch (null)
    train_info   status, train_time, file_size, num_trainable_params, num_total_params, accelerator_memory_*, metrics
    meta_info    model_info, dataset_info, package_info, system_info, pytorch_info
    attentune    the key, the backbone's fingerprint (`weights`), scores of validation and test, statistics by test row,
                 latency, memory of the process

`metrics` has an entry an evaluation, and last one with "test accuracy", which is the main score of the kind of task.
Seconds, bytes, milliseconds.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from safetensors.torch import save
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer_utils import SaveStrategy

from attentune.backbones import fingerprint, hub_id, load_backbone, load_tokenizer, revision
from attentune.comparison import measure, probe
from attentune.comparison.contenders import build, contender, recipe_for
from attentune.comparison.plain import Plain
from attentune.comparison.plan import Run
from attentune.comparison.records import Record
from attentune.comparison.sets import load_set
from attentune.confidence import Labelled, calibrate, stated
from attentune.errors import DataError
from attentune.evaluation import calibration
from attentune.model import TaskModel
from attentune.store import LOG
from attentune.tasks import Data, Task, task_of
from attentune.tasks.by_row import by_row
from attentune.tasks.task import Logits, pad_inputs
from attentune.training.loop import TaskTrainer, arguments, build_trainer, logits_of
from attentune.training.recipe import Recipe


def execute(run: Run) -> Record:
    """Do one run. What goes wrong in it is written into the record, as one sentence; other runs go on."""
    begin, created = time.perf_counter(), time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    try:
        record = _succeed(run)
    except (Exception, SystemExit) as error:  # whatever a contender's own library raises is the result of this run
        record = _failed(error)
    info = {
        "created_at": created,
        "total_time": round(time.perf_counter() - begin, 2),
        "experiment_name": run.name,
        "peft_branch": None,
        "train_config": {"model_id": hub_id(run.conditions.backbone), "seed": run.seed, **run.key},
        **record.pop("run_info"),
    }
    return {"run_info": info, **record, "attentune": {"key": run.key, **record["attentune"]}}


def _failed(error: BaseException) -> Record:
    text = " ".join(str(error).split()) or type(error).__name__
    return {
        "run_info": {"peft_config": None, "error_msg": text},
        "train_info": {"status": "failed", "metrics": []},
        "meta_info": measure.where(),
        "attentune": {"validation": None},
    }


def _succeed(run: Run) -> Record:
    chosen, conditions = load_set(run.source, run.reading), run.conditions
    if chosen.fingerprint != run.rows:
        raise DataError(f"the rows at {run.source} are not those that the comparison began with")
    data = chosen.fold(run.fold, conditions.rows, conditions.test_rows)
    recipe = recipe_for(run.contender, data.kind, data.pair, conditions)
    changes: dict[str, Any] = {"training.seed": run.seed}
    if run.rate is not None:
        changes["training.learning_rate"] = run.rate
    with TemporaryDirectory(prefix="attentune-run-") as folder:
        task = task_of(data, recipe.task.stride, recipe.task.answer_length)
        record = _Fit(run, data, task, recipe.override(changes)).record(Path(folder))
    return {**record, "attentune": {**record["attentune"], "set_size": chosen.size}}


@dataclass
class Best(TrainerCallback):
    """What is trained, as it was at its best evaluation: in memory, as nobody resumes a run of minutes."""

    metric: str
    sign: float
    score: float = float("-inf")

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Remember."""
        value = self.sign * given["metrics"][f"eval_{self.metric}"]
        if value > self.score:
            self.score = value
            self.kept = {n: p.detach().clone() for n, p in given["model"].named_parameters() if p.requires_grad}

    def restore(self, model: torch.nn.Module) -> None:
        """Put it back."""
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in self.kept:
                    p.copy_(self.kept[name])


class _Fit:
    """A contender on one fold."""

    def __init__(self, run: Run, data: Data, task: Task, recipe: Recipe) -> None:
        set_seed(run.seed)
        self.run, self.data, self.task, self.recipe = run, data, task, recipe
        self.base, self.tokenizer = self._backbone()
        self.weights = fingerprint(self.base)
        self.tuned = build(run.contender, self.base, self.tokenizer, task, recipe)
        self.train, self.validation, self.test = (
            task.encode(self.tokenizer, rows, self.tuned.max_length)
            for rows in (data.train, data.validation, data.test)
        )

    def _backbone(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        name = self.run.backbone_at or self.run.conditions.backbone
        dropout = self.run.conditions.attention_dropout
        base = load_backbone(name, getattr(torch, self.run.conditions.frozen), attention_dropout=dropout)
        return base, load_tokenizer(name, base)

    def _peft_config(self) -> dict[str, Any] | None:
        """With the backbone's name in place of where it lies on this machine."""
        given = self.tuned.peft_config
        return given and {**given, "base_model_name_or_path": hub_id(self.run.conditions.backbone)}

    def record(self, folder: Path) -> Record:
        """Train, answer, measure."""
        trained = measure.parameters(self.tuned.model)
        trainer = self._trainer(folder)
        wall, cpu = time.perf_counter(), time.process_time()
        with measure.Memory() as memory:
            note = self._learn(trainer)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        scored = self._scored(trainer)
        # The Trainer leaves its mixed precision around the model, which the bare backbone beside it does not have.
        trainer.accelerator.unwrap_model(self.tuned.model, keep_fp32_wrapper=False)
        size = len(save({name: p.detach().cpu().contiguous() for name, p in self.tuned.kept().items()}))
        return {
            "run_info": {"peft_config": self._peft_config(), "error_msg": ""},
            "train_info": {
                **memory.accelerator(),
                "train_time": round(wall, 3),
                "file_size": size,
                **trained,
                "status": "success",
                "metrics": self._metrics(folder / LOG, scored["test"]),
            },
            "meta_info": {
                "model_info": {"sha": revision(self.base), "created_at": None},
                "dataset_info": {self.run.task: {"sha": self.run.rows, "created_at": None}},
                **measure.where(),
            },
            "attentune": {
                "weights": self.weights,
                **scored,
                "sizes": {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)},
                "note": note,
                "cpu_time": round(cpu, 3),
                "memory_max": max(memory.resident),
                "latency_ms": self._latency(),
            },
        }

    def _scored(self, trainer: TaskTrainer) -> Record:
        """What the answers of validation and test are worth."""
        main = self.task.main_metric
        known, logits = (logits_of(trainer, self.task, features) for features in (self.validation, self.test))
        task = self.task.fitted(known, self.validation, self.data.validation)
        validation = task.score(task.decode(known, self.validation), self.data.validation)
        answers = task.decode(logits, self.test)
        test = task.score(answers, self.data.test)
        form, statistics = by_row(task, answers, self.data.test)
        return {
            "metric": main,
            "validation": validation[main],
            "validation_scores": validation,
            "test": test[main],
            "test_scores": test,
            "calibration": _calibration(
                task,
                Labelled(known, self.validation, self.data.validation),
                Labelled(logits, self.test, self.data.test),
            ),
            "rows": {"form": form, "values": [[float(f"{x:.9g}") for x in row] for row in statistics]},
        }

    def _metrics(self, log: Path, test: float) -> list[Record]:
        """The columns of peft: an entry an evaluation, and one for the test."""
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        entries: list[Record] = [
            {
                "step": entry["step"],
                "valid accuracy": entry["validation"][self.task.main_metric],
                "train loss": entry["loss"],
                "elapsed time": entry["seconds"],
            }
            for entry in map(json.loads, lines)
        ]
        last = {
            "test accuracy": test,
            "train loss": entries[-1]["train loss"] if entries else None,
            "train samples": len(self.train),
            "train total tokens": sum(map(len, self.train)),
        }
        return [*entries, last]

    def _trainer(self, folder: Path) -> TaskTrainer:
        args = arguments(folder, self.recipe.training, self.task.main_metric)
        args.save_strategy, args.load_best_model_at_end = SaveStrategy.NO, False
        return build_trainer(
            model=self.tuned.model,
            task=self.task,
            tokenizer=self.tokenizer,
            train=self.train,
            validation=(self.validation, self.data.validation),
            args=args,
            training=self.recipe.training,
            report=lambda line: None,
        )

    def _learn(self, trainer: TaskTrainer) -> str:
        """Train in place; the note says what a probe chose."""
        if not contender(self.run.contender).trained:

            def judge(logits: list[Logits]) -> float:
                task = self.task.fitted(logits, self.validation, self.data.validation)
                return task.score(task.decode(logits, self.validation), self.data.validation)[task.main_metric]

            return probe.fit(
                cast("Plain", trainer.model), self.task, self.tokenizer, self.train, self.validation, judge
            )
        best = Best(self.task.main_metric, 1.0 if trainer.args.greater_is_better else -1.0)
        trainer.add_callback(best)
        trainer.train()
        best.restore(cast("torch.nn.Module", trainer.model))
        return ""

    def _latency(self) -> dict[str, Any]:
        """Milliseconds of a batch of 1 and of 32 middling test texts, and their ratio to those of the bare backbone."""
        device = next(self.tuned.model.parameters()).device
        name = self.run.backbone_at or self.run.conditions.backbone
        bare = TaskModel(load_backbone(name, getattr(torch, self.run.conditions.frozen))).backbone
        bare, tuned = bare.to(device), self.tuned.model.eval()
        rows = [sequence for features in self.test for sequence in features.sequences]
        lengths = [len(row["input_ids"]) for row in rows]
        chosen = {f"batch_{n}": [rows[i] for i in measure.middle(lengths, n)] for n in (1, 32)}
        batches = {
            name: {key: x.to(device) for key, x in pad_inputs(some, self.tokenizer).items()}
            for name, some in chosen.items()
        }
        models = {"tuned": lambda b: tuned(**b), "bare": lambda b: bare(**b)}
        return measure.latency(models, batches, {"batch_1": 30, "batch_32": 10})


def _calibration(task: Task, validation: Labelled, test: Labelled) -> dict[str, float] | None:
    """Expected calibration error of the test, before and after the temperature that validation asks for."""
    before = stated(task, test, 1.0)
    if before is None:
        return None
    temperature = calibrate(task, validation).temperature
    after = stated(task, test, temperature)
    assert after is not None
    ece, ece_after = (calibration.scores(*events)["ece"] for events in (before, after))
    return {"temperature": temperature, "ece": ece, "ece_after": ece_after}
