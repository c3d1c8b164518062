"""Many tasks from one backbone, beside the bare backbone and peft: medians of one run, as ratios.

    python benchmarks/serving.py            # some twenty minutes on two CPU cores, 5 GB of scratch
    python benchmarks/serving.py --quick
    python benchmarks/serving.py --parts tiers server

All contenders get the same batches of the demo's messages in turn, A B C A B C, after a warm-up of each. Adapters have
random tensors, which cost what trained ones cost. A part that is measured again replaces its figures only.
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from load import server
from many import LABELS, PROMPTS, Batch, Figures, batches, in_turn, make_adapters, medians, ratio, texts, traffic
from many import OPTIONS as METHODS
from pages import RESULTS, closing, save, stamp
from peft import LoraConfig, get_peft_model
from transformers import BertForSequenceClassification, logging

from attentune import TaskModel, store
from attentune.allocator import give_back_freed_memory, keep_freed_memory
from attentune.backbones import load_backbone, load_tokenizer
from attentune.serving import Ask, Bank, Engine

MANY = ("pasta", "kernel_mix")
"""Measured with more than a thousand tasks, too."""
CLOCK = time.perf_counter if torch.cuda.is_available() else time.process_time
"""Of throughput: that of the processor leaves out what other programs on the machine take."""
MIXED = "all five"
"""Tasks of the methods in turn, so that batches mix them."""


def throughput(folder: Path, sizes: argparse.Namespace) -> Figures:
    """Rows of K tasks in mixed batches against the bare backbone at the same batches."""
    base, tokenizer = load_backbone("minilm", torch.float32), load_tokenizer("minilm")
    given = batches(tokenizer, sizes.rows, sizes.rounds + 3, sizes.length)
    found: Figures = {}
    for method in sizes.methods:
        prompt = max(PROMPTS.values()) if method == MIXED else PROMPTS.get(method, 0)
        wide = batches(tokenizer, sizes.rows, sizes.rounds + 3, sizes.length + prompt)
        bank, bare = Bank(load_backbone("minilm", torch.float32)), load_backbone("minilm", torch.float32)
        least, most = len(METHODS) if method == MIXED else 1, max(sizes.tasks) if method in MANY else 1000
        counts = [count for count in sizes.tasks if least <= count <= most]
        made = adapters_of(method, base, folder, max(counts))
        times: list[float] = []
        for path in made:
            begin = time.perf_counter()
            bank.add(path.name, path)
            times.append(time.perf_counter() - begin)

        def bare_run(i: int, model: Any = bare) -> None:
            model(input_ids=given[i].ids, attention_mask=given[i].mask)

        def bare_wide(i: int, model: Any = bare, wide: list[Batch] = wide) -> None:
            model(input_ids=wide[i].ids, attention_mask=wide[i].mask)

        contenders: dict[str, Callable[[int], Any]] = {"bare": bare_run}
        if prompt:
            contenders["bare at T + m"] = bare_wide
        for count in counts:
            for kind in ("uniform", "zipf"):
                if count == 1 and kind == "zipf":
                    continue
                names = bank.names[:count]

                def bank_run(i: int, names: list[str] = names, kind: str = kind, bank: Bank = bank) -> None:
                    bank(given[i].ids, given[i].mask, traffic(names, sizes.rows, kind, i))

                contenders[f"{count:,} tasks, {kind}"] = bank_run
        with torch.inference_mode():
            seconds = in_turn(contenders, sizes.rounds, clock=CLOCK)
        reference = seconds["bare at T + m" if prompt else "bare"]
        found[method] = {
            **{name: ratio(reference, each) for name, each in seconds.items() if not name.startswith("bare")},
            "bytes a task": round(mean(bank.entry(path.name).bytes for path in made)),
            "ms to add the last task": 1000 * median(times[-25:]),
            "ms of a bare batch": 1000 * median(seconds["bare"]),
        }
        for path in folder.iterdir():
            shutil.rmtree(path)
    return found


def adapters_of(method: str, base: Any, folder: Path, count: int) -> list[Path]:
    """Adapter folders of one method, or of all in turn."""
    if method != MIXED:
        return make_adapters(base, folder, method, count)
    each = [make_adapters(base, folder, name, -(-count // len(METHODS))) for name in METHODS]
    return [path for group in zip(*each, strict=True) for path in group][:count]


def against_peft(folder: Path, sizes: argparse.Namespace) -> Figures:
    """32 tasks: one mixed batch against one row after another with set_adapter, and against LoRA's own loop."""
    count = 32
    tokenizer = load_tokenizer("minilm")
    bank = Bank(load_backbone("minilm", torch.float32))
    alone: Any = TaskModel(load_backbone("minilm", torch.float32)).eval()
    for i, path in enumerate(make_adapters(load_backbone("minilm", torch.float32), folder, "kernel_mix", count)):
        bank.add(path.name, path)
        alone.load_adapter(f"t{i}", path)
    lora, added = _lora(sizes.peft_adapters)
    names = [f"t{i}" for i in range(count)]
    found: Figures = {f"ms to add peft's adapter {sizes.peft_adapters}": 1000 * median(added[-5:])}
    for length in (sizes.length, sizes.length // 4):
        given = batches(tokenizer, count, sizes.rounds + 3, length)

        def mixed(i: int, given: Sequence[Batch] = given) -> None:
            bank(given[i].ids, given[i].mask, bank.names)

        def one_by_one(i: int, given: Sequence[Batch] = given) -> None:
            for row, name in enumerate(names):
                alone.set_adapter(name)
                alone(given[i].ids[row : row + 1], given[i].mask[row : row + 1])

        def set_adapter(i: int, given: Sequence[Batch] = given) -> None:
            for row, name in enumerate(names):
                lora.set_adapter(name)
                lora(input_ids=given[i].ids[row : row + 1], attention_mask=given[i].mask[row : row + 1])

        def loop(i: int, given: Sequence[Batch] = given) -> None:
            lora(input_ids=given[i].ids, attention_mask=given[i].mask, adapter_names=names)

        seconds = medians(
            {
                "mixed batch": mixed,
                "our set_adapter, row by row": one_by_one,
                "peft LoRA set_adapter, row by row": set_adapter,
                "peft LoRA adapter_names": loop,
            },
            sizes.rounds,
        )
        for name, value in seconds.items():
            if name != "mixed batch":
                found[f"{length} tokens: times as fast as {name}"] = value / seconds["mixed batch"]
    return found


def one_text(folder: Path, sizes: argparse.Namespace) -> Figures:
    """One text of 16 tokens at a time, where all that is no product counts most: times what the bare backbone takes."""
    base, tokenizer = load_backbone("minilm", torch.float32), load_tokenizer("minilm")
    given, wide = (batches(tokenizer, 1, 10 * sizes.rounds + 3, length) for length in (16, 16 + max(PROMPTS.values())))
    bank = Bank(load_backbone("minilm", torch.float32))
    for method in METHODS:
        for path in make_adapters(base, folder, method, 8):
            bank.add(path.name, path)
    lora, _ = _lora(1)

    def bare(i: int, given: list[Batch] = given) -> None:
        base(input_ids=given[i].ids, attention_mask=given[i].mask)

    contenders: dict[str, Callable[[int], Any]] = {
        "bare": bare,
        "bare at T + m": lambda i: bare(i, wide),
        "peft LoRA": lambda i: lora(input_ids=given[i].ids, attention_mask=given[i].mask),
    }
    for method in METHODS:
        contenders[method] = lambda i, method=method: bank(given[i].ids, given[i].mask, [f"{method}-{i % 8}"])
    with torch.inference_mode():
        seconds = in_turn(contenders, 10 * sizes.rounds, clock=CLOCK)
    reference = seconds.pop("bare")
    found: Figures = {"ms of the bare backbone": 1000 * median(reference)}
    return found | {name: ratio(each, reference) for name, each in seconds.items()}


def _lora(count: int) -> tuple[Any, list[float]]:
    """peft's LoRA with adapters t0, t1, ..., and the seconds that adding each took."""
    base: Any = load_backbone("minilm", torch.float32)
    classifier = BertForSequenceClassification(base.config)
    classifier.config.num_labels = LABELS
    settings: dict[str, Any] = {"r": 8, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    times: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lora: Any = get_peft_model(classifier, LoraConfig(**settings), adapter_name="t0")
        for i in range(1, count):
            begin = time.perf_counter()
            lora.add_adapter(f"t{i}", LoraConfig(**settings))
            times.append(time.perf_counter() - begin)
    return lora.eval(), times


def engine(folder: Path, sizes: argparse.Namespace) -> Figures:
    """Texts in (the demo's messages), answers out, against the bare backbone on batches of the same texts, sorted by
    length.
    """
    loaded = Engine.load("minilm", dtype=torch.float32)
    for path in make_adapters(load_backbone("minilm", torch.float32), folder, "pasta", min(1000, max(sizes.tasks))):
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

    seconds = medians({"engine": answer, "backbone": backbone}, max(sizes.rounds // 2, 2), 1)
    loaded.close()
    return {
        "texts a second": 512 / seconds["engine"],
        "of the bare backbone's": seconds["backbone"] / seconds["engine"],
    }


def tiers(folder: Path, sizes: argparse.Namespace) -> Figures:
    """Many registered tasks, memory for a tenth of them, Zipf traffic. A warm hit finds the task in memory, a cold one
    reads its file; "from the disk" is after the operating system forgot the file.
    """
    made = make_adapters(load_backbone("minilm", torch.float32), folder, "pasta", sizes.registered)
    weight = Bank(load_backbone("minilm", torch.float32)).add("first", made[0]).bytes
    bank = Bank(load_backbone("minilm", torch.float32), warm_bytes=weight * max(sizes.registered // 10, 1))
    bank.add(made[0].name, made[0])
    before, begin = _resident(), time.perf_counter()
    for path in made[1:]:
        bank.add(path.name, path)
    seconds = time.perf_counter() - begin
    grown = _resident() - before - bank.tiers.warm.bytes
    names = bank.names
    random.Random(0).shuffle(names)
    asked = traffic(names, 3 * sizes.asks, "zipf", 0)
    for name in asked[: 2 * sizes.asks]:
        bank.hold(name)
    bank.tiers.hits.clear()
    times: dict[str, list[float]] = {"warm": [], "cold": [], "cold, from the disk": []}
    for name in asked[2 * sizes.asks :]:
        cold = bank.tiers.hits["cold"]
        begin = time.perf_counter()
        bank.hold(name)
        times["warm" if bank.tiers.hits["cold"] == cold else "cold"].append(time.perf_counter() - begin)
    hits = dict(bank.tiers.hits)
    os.sync()
    for name in random.Random(1).sample([n for n in names if bank.entry(n) not in bank.tiers.warm.rows], 50):
        _forget_pages(bank.entry(name).folder / store.WEIGHTS)
        begin = time.perf_counter()
        bank.hold(name)
        times["cold, from the disk"].append(time.perf_counter() - begin)
    return {
        "tasks registered": len(names),
        "tasks in memory": len(bank.tiers.warm.rows),
        "ms to register one": 1000 * seconds / len(made),
        "bytes of a task": weight,
        "bytes kept for a registered task beside its tensors": grown / len(made),
        "warm hits": hits["warm"] / sum(hits.values()),
        **{f"µs of a {name} hit, median": 1e6 * median(each) for name, each in times.items()},
        "µs of a cold hit, 99 of 100 are faster": 1e6 * quantiles(times["cold"], n=100)[-1],
    }


def _resident() -> int:
    """Bytes that the process holds, without those that it has freed."""
    give_back_freed_memory()
    return psutil.Process().memory_info().rss


def _forget_pages(path: Path) -> None:
    """Let the operating system drop what it remembers of a file."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


PARTS: dict[str, Callable[[Path, argparse.Namespace], Figures]] = {
    "throughput": throughput,
    "against_peft": against_peft,
    "one_text": one_text,
    "engine": engine,
    "tiers": tiers,
    "server": server,
}


def markdown(results: dict[str, Any]) -> str:
    """The tables."""
    lines = ["# Measured: many tasks from one backbone", ""]
    if table := results.get("throughput"):
        columns = list(max(table.values(), key=len))
        lines += [
            f"Throughput of mixed batches, of the bare backbone's ({results['batch']}); methods that put a prompt"
        ]
        lines += [
            "in front are measured against the backbone at T + m. Medians over turns. Uniform: each task is asked as",
            "often as any other; zipf: the one of rank r in proportion to 1 / r.",
            f"{results['dates']['throughput']}.",
            "",
        ]
        lines += [f"| method | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
        lines += [
            f"| {name} | " + " | ".join(shown(row[c]) if c in row else "" for c in columns) + " |"
            for name, row in table.items()
        ]
    for part in (part for part in PARTS if part != "throughput" and part in results):
        about = " ".join((PARTS[part].__doc__ or "").split())
        lines += [
            "",
            f"## {part.replace('_', ' ').capitalize()}",
            "",
            f"{about} {results['dates'][part]}.",
            "",
            "| figure | value |",
            "| --- | ---: |",
        ]
        lines += [f"| {name} | {shown(value)} |" for name, value in results[part].items()]
    return "\n".join([*lines, "", closing(results)]) + "\n"


def shown(value: float) -> str:
    """Three digits, thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few tasks and rounds, nothing is written")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 8, 64, 1000, 10000])
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, MIXED], default=[*METHODS, MIXED])
    parser.add_argument("--rows", type=int, default=32, help="rows of a batch")
    parser.add_argument("--length", type=int, default=64, help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--registered", type=int, default=100_000, help="tasks of the tiers")
    parser.add_argument("--asks", type=int, default=50_000, help="asks of the tiers")
    parser.add_argument("--seconds", type=float, default=10, help="of each load on the server")
    parser.add_argument("--peft-adapters", type=int, default=200, help="adapters that peft gets")
    parser.add_argument("--threads", type=int, default=1)
    sizes = parser.parse_args()
    if sizes.quick:
        sizes.tasks, sizes.methods, sizes.rounds, sizes.peft_adapters, sizes.rows = [1, 8], ["pasta", MIXED], 2, 33, 8
        sizes.registered, sizes.asks, sizes.seconds = 200, 500, 1
    logging.set_verbosity_error()
    keep_freed_memory()
    torch.set_num_threads(sizes.threads)
    kept = RESULTS / "serving.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() and not sizes.quick else {}
    results |= stamp()
    clock = "time by the clock" if torch.cuda.is_available() else "processor time"
    results["batch"] = f"{sizes.rows} rows of {sizes.length} tokens, minilm, float32, {clock}"
    for part in sizes.parts:
        with TemporaryDirectory() as scratch:
            results[part] = PARTS[part](Path(scratch), sizes)
        results["dates"] = {**results.get("dates", {}), part: results["date"]}
        print(json.dumps({part: results[part]}), file=sys.stderr)
        if not sizes.quick:
            save("serving", results, markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
