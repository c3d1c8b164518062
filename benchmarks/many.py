"""Many adapters, batches of messages, traffic over tasks, and timing in turn: what the serving benchmarks share."""

import multiprocessing
import os
import random
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from attentune import METHODS, HeadConfig, TaskModel, demo, store
from attentune.backbones import fingerprint
from attentune.card import Backbone, TaskCard
from attentune.tasks import Classification, load_data
from attentune.tasks.columns import Columns

T = TypeVar("T")
Figures = dict[str, Any]
"""What a part of a benchmark found, by name."""
LABELS = 4
OPTIONS: dict[str, dict[str, Any]] = {
    "pasta": {},
    "kernel_mix": {"parts": "qv"},
    "tiny_attention": {},
    "prefix_propagation": {"length": 8},
    "attempt": {"length": 8, "sources": 6, "bottleneck": 16},
}
PROMPTS = {"prefix_propagation": 8, "attempt": 8}


@dataclass(frozen=True)
class Batch:
    """Ids and mask [B,T]."""

    ids: Tensor
    mask: Tensor


@lru_cache
def texts() -> list[str]:
    """The demo's messages."""
    data = load_data(demo.path("intent", "train").parent)
    return [row["text"] for row in (*data.train, *data.test)]


def batches(tokenizer: Any, rows: int, count: int, length: int) -> list[Batch]:
    """Batches of `rows` messages, cut and padded to exactly `length` tokens."""
    draw = random.Random(0)
    found: list[Batch] = []
    for _ in range(count):
        chosen = [" ".join(draw.sample(texts(), 4)) for _ in range(rows)]
        encoded = tokenizer(chosen, truncation=True, max_length=length, padding="max_length", return_tensors="pt")
        found.append(Batch(encoded["input_ids"], encoded["attention_mask"]))
    return found


DIFFERENT = 10_000
"""Of more adapters the tensors repeat: they cost the same, and making them takes less time."""


def make_adapters(base: Any, folder: Path, method: str, count: int) -> list[Path]:
    """`count` adapter folders of one method: one made by peft, the others with its tensors moved a little."""
    origin = Backbone("minilm", fingerprint(base))
    head = HeadConfig("sequence", LABELS, "mean")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model: Any = get_peft_model(TaskModel(base), METHODS[method].config(head=head, **OPTIONS[method]))
    task = Classification(tuple(f"class {i}" for i in range(LABELS)))
    card = TaskCard(method, method, task, Columns(("text",), "label"), origin, 128, "mean")
    first = store.write(folder / f"{method}-0", model, card, "", {})
    model.unload()
    tensors = load_file(first / store.WEIGHTS)
    frozen = METHODS[method].frozen(METHODS[method].config(**OPTIONS[method]))
    made = [first]
    for i in range(1, count):
        made.append(folder / f"{method}-{i}")
        made[-1].mkdir()
        for name in (store.CONFIG, store.CARD):
            shutil.copyfile(first / name, made[-1] / name)
        if i >= DIFFERENT:
            os.link(made[i % DIFFERENT] / store.WEIGHTS, made[-1] / store.WEIGHTS)
            continue
        draw = torch.Generator().manual_seed(i)
        moved = {
            name: value
            if name.rsplit(".", 1)[-1] in frozen
            else value + 0.01 * torch.randn(value.shape, generator=draw)
            for name, value in tensors.items()
        }
        save_file(moved, made[-1] / store.WEIGHTS)
    return made


def alone(measure: Callable[..., T], *arguments: Any) -> T:
    """What a function of a module gives in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def in_turn(
    contenders: Mapping[str, Callable[[int], Any]],
    rounds: int,
    warm: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each, round by round, A B C A B C, after some rounds to warm up; round i gets batch i.

    `time.process_time` as the clock leaves out what other programs on the machine take.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + warm):
        for name, run in contenders.items():
            begin = clock()
            run(i)
            if i >= warm:
                times[name].append(clock() - begin)
    return times


def medians(contenders: Mapping[str, Callable[[int], Any]], rounds: int, warm: int = 3) -> dict[str, float]:
    """The median seconds of each, without gradients."""
    with torch.inference_mode():
        return {name: median(each) for name, each in in_turn(contenders, rounds, warm).items()}


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Median of the rounds' ratios."""
    return median(a / b for a, b in zip(times, others, strict=True))


def traffic(names: Sequence[str], rows: int, kind: str, seed: int) -> list[str]:
    """A task for each row: all tasks alike, or by rank as 1 / rank (Zipf)."""
    draw = random.Random(seed)
    return draw.choices(names, cum_weights=None if kind == "uniform" else zipf(len(names)), k=rows)


@lru_cache
def zipf(count: int) -> list[float]:
    """Sums of 1 / rank."""
    return list(accumulate(1 / (rank + 1) for rank in range(count)))
