"""Peak memory of training, by method, length and the numbers of the frozen backbone.

    python benchmarks/memory.py            # some twenty minutes on one core
    python benchmarks/memory.py --quick

A BERT of the size of MiniLM-L6 with random weights, 4,096 tokens a step, no dropout of attention weights. Every figure
is of a process of its own: the weights, and the most memory that two training steps (loss, gradients, AdamW) took
beyond what the process held before them, sampled every 5 ms. On a GPU it is what torch allocated there.
"""

import argparse
import json
import sys
from typing import Any

import psutil
import torch
from many import alone
from overheads import backbone, contenders, shown, step_of, tokens
from pages import Row, closing, opening, save, stamp
from transformers import logging

from attentune.comparison.measure import Memory
from attentune.methods import METHODS
from attentune.quantised import quantise

TOKENS = 4096
LENGTHS = (64, 512, 2048)
CONTENDERS = (*METHODS, "lora", "full")
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


def measure(name: str, length: int, variant: str) -> Row:
    """One training, in this process."""
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
    with Memory(seconds=0.005) as memory:
        before = psutil.Process().memory_info().rss
        for i in range(2):
            step(i)
    peak = weights + max(memory.resident) - before
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    return {"contender": name, "T": length, "frozen": variant, "weights MB": weights / 1e6, "peak MB": peak / 1e6}


def markdown(results: dict[str, Any]) -> str:
    """Two tables: methods by length, and one length by the backbone's numbers."""
    rows: list[Row] = results["rows"]
    plain = {(row["contender"], row["T"]): row for row in rows if row["frozen"] == "float32"}
    lengths = list(dict.fromkeys(length for _, length in plain))
    text = opening("peak memory of training", __doc__)
    text += [f"| MB | {' | '.join(f'{TOKENS // t} x {t:,}' for t in lengths)} | of LoRA at {lengths[-1]:,} |"]
    text += ["| --- |" + " ---: |" * (len(lengths) + 1)]
    for name in dict.fromkeys(name for name, _ in plain):
        peaks = [plain[name, length]["peak MB"] for length in lengths]
        share = peaks[-1] / plain["lora", lengths[-1]]["peak MB"]
        text.append(f"| {shown(name)} | {' | '.join(f'{peak:,.0f}' for peak in peaks)} | {share:.2f} |")
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
        rows.append(alone(measure, *cell))
        print(json.dumps(rows[-1]), file=sys.stderr)
    results = {**stamp(), "varied at": middle, "rows": rows}
    print(markdown(results))
    if not given.quick:
        save("memory", results, markdown(results))


if __name__ == "__main__":
    main()
