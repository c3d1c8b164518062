"""Many tasks from one backbone, beside the bare backbone and peft: medians of one run, as ratios.

    python benchmarks/serving.py            # minutes on one CPU core
    python benchmarks/serving.py --quick

All contenders get the same batches of the demo's messages in turn, A B C A B C, after a warm-up of each. Adapters have
random tensors, which cost what trained ones cost.
"""

import argparse
import json
import random
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from methods import RESULTS, where
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertForSequenceClassification, logging

from attentune import METHODS, HeadConfig, TaskModel, demo, store
from attentune.backbones import fingerprint, load_backbone, load_tokenizer
from attentune.card import Backbone, TaskCard
from attentune.serving import Ask, Bank, Engine
from attentune.tasks import Classification, load_data
from attentune.tasks.columns import Columns

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
            shutil.copy(first / name, made[-1] / name)
        draw = torch.Generator().manual_seed(i)
        moved = {
            name: value
            if name.rsplit(".", 1)[-1] in frozen
            else value + 0.01 * torch.randn(value.shape, generator=draw)
            for name, value in tensors.items()
        }
        save_file(moved, made[-1] / store.WEIGHTS)
    return made


def in_turn(contenders: dict[str, Callable[[int], Any]], rounds: int, warm: int = 3) -> dict[str, float]:
    """Seconds of each, the median over rounds; round i gets batch i."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with torch.inference_mode():
        for i in range(rounds + warm):
            for name, run in contenders.items():
                begin = time.perf_counter()
                run(i)
                if i >= warm:
                    times[name].append(time.perf_counter() - begin)
    return {name: median(each) for name, each in times.items()}


def traffic(names: Sequence[str], rows: int, kind: str, seed: int) -> list[str]:
    """A task for each row: all tasks alike, or by rank as 1 / rank (Zipf)."""
    draw = random.Random(seed)
    weights = None if kind == "uniform" else [1 / (rank + 1) for rank in range(len(names))]
    return draw.choices(names, weights, k=rows)


def throughput(folder: Path, sizes: argparse.Namespace, results: dict[str, Any]) -> None:
    """Rows of K tasks in mixed batches against the bare backbone at the same batches."""
    base, tokenizer = load_backbone("minilm", torch.float32), load_tokenizer("minilm")
    given = batches(tokenizer, sizes.rows, sizes.rounds + 3, sizes.length)
    table: dict[str, dict[str, float]] = {}
    for method in sizes.methods:
        prompt = PROMPTS.get(method, 0)
        wide = batches(tokenizer, sizes.rows, sizes.rounds + 3, sizes.length + prompt)
        bank, bare = Bank(load_backbone("minilm", torch.float32)), load_backbone("minilm", torch.float32)
        made = make_adapters(base, folder, method, max(sizes.tasks))
        begin = time.perf_counter()
        entries = [bank.add(path.name, path) for path in made]
        added = (time.perf_counter() - begin) / len(made)

        def bare_run(i: int, model: Any = bare) -> None:
            model(input_ids=given[i].ids, attention_mask=given[i].mask)

        def bare_wide(i: int, model: Any = bare, wide: list[Batch] = wide) -> None:
            model(input_ids=wide[i].ids, attention_mask=wide[i].mask)

        contenders: dict[str, Callable[[int], Any]] = {"bare": bare_run}
        if prompt:
            contenders["bare at T + m"] = bare_wide
        for count in sizes.tasks:
            for kind in ("uniform", "zipf"):
                if count == 1 and kind == "zipf":
                    continue
                names = bank.names[:count]

                def bank_run(i: int, names: list[str] = names, kind: str = kind, bank: Bank = bank) -> None:
                    bank(given[i].ids, given[i].mask, traffic(names, sizes.rows, kind, i))

                contenders[f"{count} tasks, {kind}"] = bank_run
        seconds = in_turn(contenders, sizes.rounds)
        reference = seconds["bare at T + m" if prompt else "bare"]
        table[method] = {name: reference / value for name, value in seconds.items()}
        results[f"{method}: ms to add a task"] = 1000 * added
        results[f"{method}: bytes a task"] = entries[0].bytes
        results[f"{method}: seconds of a bare batch"] = seconds["bare"]
        for path in made:
            shutil.rmtree(path)
    results["throughput against the backbone"] = table


def against_peft(folder: Path, sizes: argparse.Namespace, results: dict[str, Any]) -> None:
    """32 tasks: batches of the engine against one row after another with set_adapter, and against LoRA's own loop."""
    count = 32
    tokenizer = load_tokenizer("minilm")
    given = batches(tokenizer, count, sizes.rounds + 3, sizes.length)
    bank = Bank(load_backbone("minilm", torch.float32))
    for path in make_adapters(load_backbone("minilm", torch.float32), folder, "kernel_mix", count):
        bank.add(path.name, path)
    alone: Any = TaskModel(load_backbone("minilm", torch.float32)).eval()
    for i in range(count):
        alone.load_adapter(f"t{i}", folder / f"kernel_mix-{i}")
    base: Any = load_backbone("minilm", torch.float32)
    classifier = BertForSequenceClassification(base.config)
    classifier.config.num_labels = LABELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings: dict[str, Any] = {"r": 8, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
        lora: Any = get_peft_model(classifier, LoraConfig(**settings), adapter_name="t0")
        times: list[float] = []
        for i in range(1, sizes.peft_adapters):
            begin = time.perf_counter()
            lora.add_adapter(f"t{i}", LoraConfig(**settings))
            times.append(time.perf_counter() - begin)
    lora.eval()
    names = [f"t{i}" for i in range(count)]

    def mixed(i: int) -> None:
        bank(given[i].ids, given[i].mask, bank.names)

    def one_by_one(i: int) -> None:
        for row, name in enumerate(names):
            alone.set_adapter(name)
            alone(given[i].ids[row : row + 1], given[i].mask[row : row + 1])

    def set_adapter(i: int) -> None:
        for row, name in enumerate(names):
            lora.set_adapter(name)
            lora(input_ids=given[i].ids[row : row + 1], attention_mask=given[i].mask[row : row + 1])

    def loop(i: int) -> None:
        lora(input_ids=given[i].ids, attention_mask=given[i].mask, adapter_names=names)

    contenders = {"bank": mixed, "set_adapter": one_by_one, "peft set_adapter": set_adapter, "peft LoRA loop": loop}
    seconds = in_turn(contenders, sizes.rounds)
    results["32 tasks in 32 rows, times as fast as"] = {
        name: value / seconds["bank"] for name, value in seconds.items() if name != "bank"
    }
    results[f"peft: ms to add adapter {sizes.peft_adapters}"] = 1000 * median(times[-5:])


def engine(folder: Path, sizes: argparse.Namespace, results: dict[str, Any]) -> None:
    """Texts in, answers out, against the bare backbone on batches of the same texts, sorted by length."""
    loaded = Engine.load("minilm", dtype=torch.float32)
    count = min(1000, max(sizes.tasks))
    for path in make_adapters(load_backbone("minilm", torch.float32), folder, "pasta", count):
        loaded.bank.add(path.name, path)
    bare, tokenizer = load_backbone("minilm", torch.float32), load_tokenizer("minilm")
    draw = random.Random(1)
    asked = [draw.choices(texts(), k=512) for _ in range(sizes.rounds)]

    def answer(i: int) -> None:
        names = traffic(loaded.bank.names, 512, "zipf", i)
        loaded.answer([Ask(name, text) for name, text in zip(names, asked[i % sizes.rounds], strict=True)])

    def backbone(i: int) -> None:
        encoded: Any = tokenizer(asked[i % sizes.rounds], truncation=True, max_length=128)
        order = sorted(range(512), key=lambda j: len(encoded["input_ids"][j]))
        for start in range(0, 512, 64):
            rows = [{k: encoded[k][j] for k in encoded} for j in order[start : start + 64]]
            bare(**tokenizer.pad(rows, return_tensors="pt"))

    seconds = in_turn({"engine": answer, "backbone": backbone}, max(sizes.rounds // 4, 2), 1)
    results["engine: texts a second, of the bare backbone's"] = seconds["backbone"] / seconds["engine"]
    results["engine: texts a second"] = 512 / seconds["engine"]
    loaded.close()


def markdown(results: dict[str, Any]) -> str:
    """The tables."""
    table = results["throughput against the backbone"]
    columns = list(dict.fromkeys(name for row in table.values() for name in row if not name.startswith("bare")))
    lines = ["# Measured: many tasks from one backbone", ""]
    lines += [f"Throughput of mixed batches, of the bare backbone's ({results['batch']}); methods that put a prompt in"]
    lines += ["front are measured against the backbone at T + m.", ""]
    lines += [f"| method | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    lines += [f"| {name} | " + " | ".join(f"{row[c]:.2f}" for c in columns) + " |" for name, row in table.items()]
    lines += ["", "| figure | value |", "| --- | --- |"]
    for name, value in results.items():
        if isinstance(value, int | float):
            lines.append(f"| {name} | {value:,.3f} |" if isinstance(value, float) else f"| {name} | {value:,} |")
        elif name.startswith("32 tasks"):
            lines += [f"| {name} {other} | {ratio:.2f} |" for other, ratio in value.items()]
    about = results["where"]
    lines += ["", f"{about['machine']}, {about['threads']} thread(s), torch {about['torch']}, transformers "]
    lines[-1] += f"{about['transformers']}, peft {about['peft']}, {results['date']}."
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few tasks and rounds, nothing is written")
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 8, 64, 1000])
    parser.add_argument("--methods", nargs="+", choices=list(OPTIONS), default=list(OPTIONS))
    parser.add_argument("--rows", type=int, default=32, help="rows of a batch")
    parser.add_argument("--length", type=int, default=64, help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peft-adapters", type=int, default=200, help="adapters that peft gets")
    parser.add_argument("--threads", type=int, default=1)
    sizes = parser.parse_args()
    if sizes.quick:
        sizes.tasks, sizes.methods, sizes.rounds, sizes.peft_adapters, sizes.rows = [1, 8], ["pasta"], 2, 33, 8
    logging.set_verbosity_error()
    torch.set_num_threads(sizes.threads)
    results: dict[str, Any] = {"where": where(), "date": time.strftime("%Y-%m-%d %H:%M")}
    results["batch"] = f"{sizes.rows} rows of {sizes.length} tokens, minilm, float32"
    for part in (throughput, against_peft, engine):
        with TemporaryDirectory() as scratch:
            part(Path(scratch), sizes, results)
        print(json.dumps(results), file=sys.stderr)
    print(markdown(results))
    if not sizes.quick:
        (RESULTS / "serving.json").write_text(json.dumps(results, indent=2) + "\n")
        (RESULTS / "serving.md").write_text(markdown(results))


if __name__ == "__main__":
    main()
