"""Peak memory of training, by method, length and the numbers of the frozen backbone.

    python benchmarks/memory.py            # some forty minutes on one core; Linux with glibc
    python benchmarks/memory.py --quick

A BERT of the size of MiniLM-L6 with random weights, 4,096 tokens a step, no dropout of attention weights. Every figure
is of a process of its own: the weights, and the most memory that two training steps (loss, gradients, AdamW) took
beyond what the process held before them, by the kernel's high-water mark. "In use", and in the last table: blocks of 64
KB and more are mapped one by one, so that what is freed is gone at once. "Resident": freed memory stays, as in the
commands, and with it the holes that glibc's heap has between blocks of many sizes; they are as large as differences
between methods, and differ from process to process. On a GPU both are what torch allocated there.
"""

import argparse
import ctypes
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from many import alone
from overheads import PEERS, backbone, contenders, shown, step_of, tokens
from pages import Row, closing, opening, save, stamp
from transformers import logging

from attentune.allocator import M_MMAP_THRESHOLD, give_back_freed_memory, keep_freed_memory
from attentune.methods import METHODS
from attentune.quantised import quantise

TOKENS = 4096
LENGTHS = (64, 512, 2048)
CONTENDERS = (*METHODS, *PEERS)
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8": {"quantise": "int8"},
    "nf4": {"quantise": "nf4"},
    "bfloat16 and nf4": {"dtype": torch.bfloat16, "quantise": "nf4"},
    "float32, checkpointing": {"checkpointing": True},
    "bfloat16, checkpointing": {"dtype": torch.bfloat16, "checkpointing": True},
    "int8, checkpointing": {"quantise": "int8", "checkpointing": True},
    "bfloat16 and nf4, checkpointing": {"dtype": torch.bfloat16, "quantise": "nf4", "checkpointing": True},
}
VARIED = ("pasta", "kernel_mix")
MAPPED = 64 * 1024
"""Bytes: blocks from this size on are handed back as soon as they are freed, where memory in use is measured."""


def map_blocks() -> bool:
    """Give every block that is not small pages of its own, so that a process holds what is in use."""
    return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED))


ALLOCATORS: dict[str, Callable[[], bool]] = {"peak MB": map_blocks, "resident MB": keep_freed_memory}
"""A figure, and how its process is told to treat freed memory."""


def high_water() -> int:
    """The most bytes that this process held since the mark was lowered."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def lower_mark() -> None:
    """From here on: see proc(5), clear_refs."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(name: str, length: int, variant: str, figure: str) -> Row:
    """One training, in this process."""
    if not ALLOCATORS[figure]():
        raise SystemExit("no glibc to ask, or its environment has decided what becomes of freed memory")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    options = VARIANTS[variant]
    base = backbone("small", length).to(options.get("dtype"))
    if how := options.get("quantise"):
        quantise(base, how)
    weights = base.get_memory_footprint()
    (model,) = contenders([name], base, length).values()
    batch = tokens(TOKENS // length, length)
    if torch.cuda.is_available():
        model.cuda()
        batch = {key: value.cuda() for key, value in batch.items()}
        torch.cuda.reset_peak_memory_stats()
    del base
    if options.get("checkpointing"):
        inner: Any = model
        inner.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    step = step_of(model.train(), batch)
    # What building the model has freed is not a cost of training.
    gc.collect()
    give_back_freed_memory()
    before = psutil.Process().memory_info().rss
    lower_mark()
    for i in range(2):
        step(i)
    peak = weights + high_water() - before
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    return {"contender": name, "T": length, "frozen": variant, "weights MB": weights / 1e6, figure: peak / 1e6}


def by_length(rows: list[Row], figure: str) -> list[str]:
    """Contenders by length, each with its part of LoRA's."""
    found = {(row["contender"], row["T"]): row[figure] for row in rows}
    lengths = list(dict.fromkeys(length for _, length in found))
    heads = [f"{TOKENS // t} x {t:,} | of LoRA's" for t in lengths]
    text = [f"| MB | {' | '.join(heads)} |", "| --- |" + " ---: | ---: |" * len(lengths)]
    for name in dict.fromkeys(name for name, _ in found):
        cells = [f"{found[name, t]:,.0f} | {found[name, t] / found['lora', t]:.2f}" for t in lengths]
        text.append(f"| {shown(name)} | {' | '.join(cells)} |")
    return text


def markdown(results: dict[str, Any]) -> str:
    """Methods by length, in use and resident, and one length by the backbone's numbers."""
    rows: list[Row] = results["rows"]
    plain = [row for row in rows if row["frozen"] == "float32"]
    text = opening("peak memory of training", __doc__)
    text += ["In use:", "", *by_length(plain, "peak MB"), "", "Resident:", "", *by_length(plain, "resident MB")]
    varied = [row for row in rows if row["contender"] in VARIED and row["T"] == results["varied at"]]
    text += [
        "",
        f"The frozen backbone in other numbers, and checkpointing, at {results['varied at']:,} tokens a row:",
        "",
    ]
    text += [f"| MB | weights | {' | '.join(map(shown, VARIED))} |", "| --- |" + " ---: |" * (len(VARIED) + 1)]
    for variant in VARIANTS:
        found = {row["contender"]: row for row in varied if row["frozen"] == variant}
        if found:
            peaks = [f"{found[name]['peak MB']:,.0f}" for name in VARIED]
            text.append(f"| {variant} | {found[VARIED[0]]['weights MB']:,.0f} | {' | '.join(peaks)} |")
    return "\n".join([*text, "", closing(results)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short rows, three contenders, nothing is written")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lengths, names, middle = LENGTHS, CONTENDERS, LENGTHS[1]
    variants = [variant for variant in VARIANTS if variant != "float32"]
    if given.quick:
        lengths, names, middle, variants = LENGTHS[:1], (*VARIED, "lora"), LENGTHS[0], ["int8, checkpointing"]
    cells = [(name, length, "float32") for length in lengths for name in names]
    cells += [(name, middle, variant) for variant in variants for name in VARIED]
    rows: list[Row] = []
    for cell in cells:
        rows.append(alone(measure, *cell, "peak MB"))
        if cell[2] == "float32":
            rows[-1] |= alone(measure, *cell, "resident MB")
        print(json.dumps(rows[-1]), file=sys.stderr)
    results = {**stamp(), "varied at": middle, "rows": rows}
    print(markdown(results))
    if not given.quick:
        save("memory", results, markdown(results))


if __name__ == "__main__":
    main()
