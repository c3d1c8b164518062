"""How far a forward is from what the machine can do: its matrix products alone, and the fastest product there is.

    python benchmarks/limits.py            # two minutes on one core
    python benchmarks/limits.py --quick

A BERT with random weights, float32. "Products" are the linear maps and the attention of all blocks, of the same shapes,
with nothing between them. The fastest product multiplies square matrices of 1,024, the fastest copy is of 256 MB. All
take turns; times are medians of processor time. An edit does at least its own products, and reads and writes what it
changes. Shares below 0 are noise.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from many import in_turn, ratio
from overheads import SIZES, backbone, contenders, shown, tokens
from pages import Row, closing, opening, save, stamp, table
from torch import Tensor
from torch.nn import functional as F
from transformers import logging

from attentune.allocator import keep_freed_memory

PLACES = (("small", 64, 16), ("small", 512, 2), ("base", 64, 8), ("base", 512, 1))
METHODS = ("pasta", "tiny_attention", "kernel_mix")
"""Those that add no rows to the sequence."""
SQUARE = 1024
COPIED = 64 * 2**20


def products(size: str, length: int, rows: int) -> tuple[Callable[[int], Any], float]:
    """The products of a forward, and their floating-point operations."""
    hidden, layers, heads = SIZES[size]
    x, wide = torch.randn(rows * length, hidden), torch.randn(rows * length, 4 * hidden)
    square, up = torch.randn(hidden, hidden), torch.randn(4 * hidden, hidden)
    bias, wide_bias, down = torch.randn(hidden), torch.randn(4 * hidden), torch.randn(hidden, 4 * hidden)
    q: Tensor = torch.randn(rows, heads, length, hidden // heads)

    def run(_: int) -> None:
        for _ in range(layers):
            for _ in range(4):
                F.linear(x, square, bias)
            F.scaled_dot_product_attention(q, q, q)
            F.linear(x, up, wide_bias)
            F.linear(wide, down, bias)

    return run, layers * rows * (24.0 * length * hidden**2 + 4.0 * length**2 * hidden)


def least(method: str, size: str, length: int, rows: int) -> tuple[float, float]:
    """Operations and bytes that the edits of a forward cannot do without, with the settings of the recipes."""
    hidden, layers, heads = SIZES[size]
    positions, float32 = rows * length, 4
    if method == "pasta":  # [CLS] and [SEP]: read, add, write
        return layers * rows * 2.0 * hidden, layers * rows * 2 * 2.0 * hidden * float32
    if (
        method == "kernel_mix"
    ):  # q: heads + 2 inner numbers a position, v: 2 heads + 4; q and v read and written, k read
        inner = (heads + 2) * 2 * 2 * hidden + 4 * 2 * 2 * hidden + 2 * heads * (2 * hidden // heads + 2 * hidden)
        return layers * positions * float(inner), layers * positions * 6.0 * hidden * float32
    # One head of width 1: q, k, v and back, and attention between all positions; the states read and written.
    maps = positions * 2.0 * hidden * 4
    return layers * (maps + rows * 4.0 * length**2), layers * positions * 2.0 * hidden * float32


def measure(size: str, length: int, rows: int, rounds: int) -> list[Row]:
    """The bare backbone, and a line a method."""
    bare, batch = backbone(size, length), tokens(rows, length)
    models = contenders(METHODS, bare, length)
    alone, operations = products(size, length, rows)
    a, b = torch.randn(2, SQUARE, SQUARE)
    source, target = torch.empty(COPIED), torch.empty(COPIED)
    runs: dict[str, Callable[[int], Any]] = {
        "bare": lambda _: bare(**batch),
        "products": alone,
        "square": lambda _: a @ b,
        "copy": lambda _: target.copy_(source),
        **{name: lambda _, model=model: model(**batch) for name, model in models.items()},
    }
    with torch.inference_mode():
        times = in_turn(runs, rounds, 2, time.process_time)
    rate, bandwidth = 2 * SQUARE**3 / median(times["square"]), 2 * 4 * COPIED / median(times["copy"])
    place: Row = {"size": size, "T": length, "B": rows}
    found: list[Row] = [
        {
            **place,
            "contender": "bare",
            "GFLOP": operations / 1e9,
            "ms": 1000 * median(times["bare"]),
            "share in products": ratio(times["products"], times["bare"]),
            "of the fastest product": operations / rate / median(times["bare"]),
            "GFLOP/s of the fastest product": rate / 1e9,
            "GB/s of the fastest copy": bandwidth / 1e9,
        }
    ]
    for name in METHODS:
        flops, moved = least(name, size, length, rows)
        floor = flops / rate + moved / bandwidth
        found.append(
            {
                **place,
                "contender": name,
                "least GFLOP": flops / 1e9,
                "least MB": moved / 1e6,
                "least, of bare": floor / median(times["bare"]),
                "measured, of bare": ratio(times[name], times["bare"]) - 1,
            }
        )
    return found


def markdown(results: dict[str, Any]) -> str:
    """A table of backbones and one of edits."""
    rows: list[Row] = results["rows"]
    text = opening("distance to the limit", __doc__)
    for some in ([r for r in rows if r["contender"] == "bare"], [r for r in rows if r["contender"] != "bare"]):
        text += [*table([{**row, "contender": shown(row["contender"])} for row in some]), ""]
    return "\n".join([*text, closing(results)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one size, nothing is written")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    logging.set_verbosity_error()
    keep_freed_memory()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for place in PLACES[:1] if given.quick else PLACES:
        rows += measure(*place, 3 if given.quick else given.rounds)
    results = {**stamp(), "rows": rows}
    print(markdown(results))
    if not given.quick:
        save("limits", results, markdown(results))


if __name__ == "__main__":
    main()
