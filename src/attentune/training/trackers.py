"""Where a training run is followed: always a log of its own, and TensorBoard, W&B or MLflow where a recipe says so."""

import json
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback

from attentune import store
from attentune.errors import ConfigError

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Names for `report_to` -> what pip installs."""

Watch = Callable[[int, float], None]


def check_trackers(names: Sequence[str]) -> list[str]:
    """The names, if all are known and installed.

    Raises:
        ConfigError: no such tracker, or its package is missing.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"no tracker {name!r} to report to; there are {', '.join(TRACKERS)}")
        found = find_spec(name)
        # W&B leaves a folder `wandb` where it ran, which would pass for a package without files.
        if found is None or found.origin is None:
            raise ConfigError(f"reporting to {name} needs its package: pip install {TRACKERS[name]}")
    return list(dict.fromkeys(names))


def attach(trainer: Trainer, output: Path) -> None:
    """Let TensorBoard write to `<output>.tensorboard`, which stays, and not beside the checkpoints, which go.

    `TENSORBOARD_LOGGING_DIR`, where it is set, names another folder.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            started = datetime.now().strftime("%Y%m%d-%H%M%S-%f")  # Small runs begin within one second.
            callback.logging_dir = str(output.with_name(f"{output.name}.tensorboard") / started)


def detach(trainer: Trainer) -> None:
    """End the runs that the Trainer leaves open, so that the next one in this process is a run of its own."""
    if "wandb" in (trainer.args.report_to or ()):
        import wandb

        if wandb.run is not None:
            wandb.finish()


class Watcher(TrainerCallback):
    """Tells `watch` the number of each evaluation, from 1 on, and its score."""

    def __init__(self, watch: Watch, metric: str) -> None:
        self.watch, self.metric, self.count = watch, metric, 0

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Tell."""
        self.count += 1
        self.watch(self.count, float(given["metrics"][f"eval_{self.metric}"]))


class RunLog(TrainerCallback):
    """`log.jsonl`: one JSON object an evaluation, with `step`, `epoch`, `seconds`, `loss` (training), `validation`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / store.LOG
        self.begin = time.perf_counter()
        self.loss: float | None = None

    def text(self) -> str:
        """The log so far."""
        return self.path.read_text(encoding="utf-8") if self.path.is_file() else ""

    def _lines(self) -> list[dict[str, Any]]:
        """Up to one that a kill tore."""
        found: list[dict[str, Any]] = []
        for line in self.text().splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return found

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """A resumed run takes its steps after the last checkpoint again: forget what they gave before."""
        if state.is_world_process_zero:
            lines = [line for line in self._lines() if line["step"] <= state.global_step]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            self.begin = time.perf_counter() - (lines[-1]["seconds"] if lines else 0.0)

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Remember the training loss."""
        self.loss = given["logs"].get("loss", self.loss)

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Add a line."""
        if not state.is_world_process_zero:
            return
        speed = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_jit_compilation_time")
        scores = {k.removeprefix("eval_"): v for k, v in given["metrics"].items() if k not in ("epoch", *speed)}
        line = {
            "step": state.global_step,
            "epoch": state.epoch,
            "seconds": round(time.perf_counter() - self.begin, 3),
            "loss": self.loss,
            "validation": scores,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(store.finite(line)) + "\n")
