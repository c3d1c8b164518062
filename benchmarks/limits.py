"""How far forwards and training steps are from what the machine can do: its fastest product and copy.

    python benchmarks/limits.py                       # some twenty minutes on one core
    python benchmarks/limits.py --quick
    python benchmarks/limits.py --parts step long     # the figures of the other part stay

BERTs with random weights, float32. The fastest product multiplies square matrices of 1,024, the fastest copy is of 256
MB; all take turns, and times are medians of processor time. "Products" are the linear maps and the attention of all
blocks, of the same shapes, with nothing between them. An edit does at least its own products, and reads and writes what
it changes; a prompt sends its rows through all blocks (the script has the formulas). What is measured lies above that,
most of all where the least is next to nothing: an edit is several calls, each has to be launched from Python, and most
go through the states of the whole batch in memory. Shares below 0 are noise.

What is counted, with L blocks of width D, B rows of T positions, numbers of 4 bytes:

    linear maps         24 L B T D^2 operations: four of D x D, up to 4 D, and back
    attention            4 L B T^2 D, its two products
    bytes, a forward    22 L B T D + 12 L D^2 numbers: every map reads its input and weights and writes its output once
                        (8 + 5 + 5 times D), attention reads q, k, v and writes its output (4); all else is fused
    backward, frozen    linear maps once more (the gradient of their input); attention twice (of q, k, v and of its
                        weights), and 26 L B T D + 12 L D^2 numbers, since attention reads five and writes three
    backward, full      also the gradient of the weights: linear maps once more, 18 L B T D + 12 L D^2 numbers, and
                        AdamW reads weight, gradient and two moments and writes three of them, 7 x 12 L D^2
    edits, a step       three times those of their forward
    width 1, T keys     exact 4 T^2 operations and T^2 exponentials a head; linear, with N nodes in P panels,
                        4 N T + 4 T N / P + 2 N^2 / P and N T; both read q, k, v and write one number a position

All blocks count in a step, embeddings and the head do not.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from many import in_turn, ratio
from overheads import PROMPTS, SIZES, backbone, contenders, shown, step_of, tokens
from pages import Row, closing, date_of, opening, resumed, save, stamp, table
from tiny_attention import CASES, HEADS
from torch import Tensor
from torch.nn import functional as F
from transformers import logging

from attentune.allocator import keep_freed_memory
from attentune.methods import METHODS
from attentune.scalar_attention import attend, plan, product_of

PLACES = (("small", 64, 16), ("small", 512, 2), ("base", 64, 8), ("base", 512, 1), ("large", 64, 4))
TRAINED = (*METHODS, "lora", "full")
PROMPT, SOURCES, BOTTLENECK, RANK = 8, 4, 16, 8
"""Of the recipes: rows in front, ATTEMPT's sources and inner width, LoRA's rank."""
LONG = 16384
SQUARE, COPIED, EXPONENTS = 1024, 64 * 2**20, 2**16
FLOAT = 4
Runs = dict[str, Callable[[int], Any]]
Work = tuple[float, float]
"""Floating-point operations and bytes."""


def maps(size: str, length: int, rows: int) -> float:
    """Operations of the linear maps."""
    hidden, layers, _ = SIZES[size]
    return 24.0 * layers * rows * length * hidden**2


def attention(size: str, length: int, rows: int) -> float:
    """Operations of the attention."""
    hidden, layers, _ = SIZES[size]
    return 4.0 * layers * rows * length**2 * hidden


def moved(size: str, length: int, rows: int, a_position: int, a_weight: int) -> float:
    """Bytes of so many numbers of a position, in widths, and of a weight."""
    hidden, layers, _ = SIZES[size]
    return FLOAT * layers * (float(a_position) * rows * length * hidden + 12.0 * a_weight * hidden**2)


def forward_work(size: str, length: int, rows: int) -> Work:
    """Of the bare backbone."""
    return maps(size, length, rows) + attention(size, length, rows), moved(size, length, rows, 22, 1)


def step_work(name: str, size: str, length: int, rows: int) -> Work:
    """Of a training step."""
    wide = length + (PROMPT if name in PROMPTS else 0)
    full = name == "full"
    operations = (3 if full else 2) * maps(size, wide, rows) + 3 * attention(size, wide, rows)
    number = (22 + 26 + 18, 1 + 1 + 1 + 7) if full else (22 + 26, 1 + 1)
    edits = 0.0 if full else 3 * own(name, size, length, rows)[0]
    return operations + edits, moved(size, wide, rows, *number)


def own(method: str, size: str, length: int, rows: int) -> Work:
    """What the edits of a forward cannot do without, with the settings of the recipes; rows in front not counted."""
    hidden, layers, heads = SIZES[size]
    positions = rows * length
    if method == "pasta":  # [CLS] and [SEP]: read, add, write
        return layers * rows * 2.0 * hidden, layers * rows * 2 * 2.0 * hidden * FLOAT
    if method == "prefix_propagation":  # the same at m rows
        return layers * rows * float(PROMPT) * hidden, layers * rows * PROMPT * 2.0 * hidden * FLOAT
    if method == "attempt":  # once: the largest of every coordinate, down and up, a product with each prompt, their sum
        mixed = (SOURCES + 1) * (2.0 + 2 * PROMPT) * hidden
        return positions * float(hidden) + rows * (4.0 * BOTTLENECK * hidden + mixed), positions * float(hidden) * FLOAT
    if method == "lora":  # q and v: down and up; both read and written, and the states read
        return layers * positions * 8.0 * RANK * hidden, layers * positions * 5.0 * hidden * FLOAT
    if method == "kernel_mix":
        # q: heads + 2 inner numbers a position, v: 2 heads + 4; q and v read and written, k read
        inner = (heads + 2) * 2 * 2 * hidden + 4 * 2 * 2 * hidden + 2 * heads * (2 * hidden // heads + 2 * hidden)
        return layers * positions * float(inner), layers * positions * 6.0 * hidden * FLOAT
    # One head of width 1: q, k, v and back, and attention between all positions; the states read and written.
    around = positions * 2.0 * hidden * 4
    return layers * (around + rows * 4.0 * length**2), layers * positions * 2.0 * hidden * FLOAT


def least(method: str, size: str, length: int, rows: int) -> Work:
    """What the edits of a forward add at least, rows in front counted."""
    found = own(method, size, length, rows)
    if method not in PROMPTS:
        return found
    wide, plain = forward_work(size, length + PROMPT, rows), forward_work(size, length, rows)
    return found[0] + wide[0] - plain[0], found[1] + wide[1] - plain[1]


def products(size: str, length: int, rows: int) -> Callable[[int], Any]:
    """The products of a forward, of the same shapes, with nothing between them."""
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

    return run


def fastest() -> Runs:
    """What the machine can do."""
    a, b = torch.randn(2, SQUARE, SQUARE)
    source, target = torch.empty(COPIED), torch.empty(COPIED)
    numbers = torch.randn(EXPONENTS)
    room = torch.empty_like(numbers)
    return {
        "square": lambda _: a @ b,
        "copy": lambda _: target.copy_(source),
        "exp": lambda _: [torch.exp(numbers, out=room) for _ in range(100)],
    }


def rates(times: Mapping[str, list[float]]) -> tuple[float, float, float]:
    """Operations, bytes and exponentials (of numbers that stay in the cache) a second."""
    square, copy, exp = (median(times[name]) for name in ("square", "copy", "exp"))
    return 2 * SQUARE**3 / square, 2 * FLOAT * COPIED / copy, 100 * EXPONENTS / exp


def forward(rounds: int, quick: bool) -> list[Row]:
    """A forward: the bare backbone, and what each method adds."""
    return [row for place in (PLACES[:1] if quick else PLACES) for row in forwards(*place, rounds)]


def forwards(size: str, length: int, rows: int, rounds: int) -> list[Row]:
    """The bare backbone, and a line a method."""
    bare, batch = backbone(size, length), tokens(rows, length)
    runs: Runs = {"bare": lambda _: bare(**batch), "products": products(size, length, rows), **fastest()}
    for name, model in contenders(list(METHODS), bare, length).items():
        runs[name] = lambda _, model=model: model(**batch)
    with torch.inference_mode():
        times = in_turn(runs, rounds, 2, time.process_time)
    rate, bandwidth, _ = rates(times)
    seconds, operations = median(times["bare"]), forward_work(size, length, rows)[0]
    place: Row = {"size": size, "T": length, "B": rows}
    found: list[Row] = [
        {
            **place,
            "contender": "bare",
            "GFLOP": operations / 1e9,
            "ms": 1000 * seconds,
            "share in products": ratio(times["products"], times["bare"]),
            "of the fastest product": operations / rate / seconds,
            "GFLOP/s of the fastest product": rate / 1e9,
            "GB/s of the fastest copy": bandwidth / 1e9,
        }
    ]
    for name in METHODS:
        flops, bytes_ = least(name, size, length, rows)
        found.append(
            {
                **place,
                "contender": name,
                "least GFLOP": flops / 1e9,
                "least MB": bytes_ / 1e6,
                "least, of bare": (flops / rate + bytes_ / bandwidth) / seconds,
                "measured, of bare": ratio(times[name], times["bare"]) - 1,
            }
        )
    return found


def step(rounds: int, quick: bool) -> list[Row]:
    """A training step: loss, gradients, AdamW."""
    return [row for place in (PLACES[:1] if quick else PLACES) for row in steps(*place, (rounds + 1) // 2)]


def steps(size: str, length: int, rows: int, rounds: int) -> list[Row]:
    """A line a contender."""
    models = contenders(TRAINED, backbone(size, length), length)
    batch = tokens(rows, length)
    runs: Runs = {**fastest(), **{name: step_of(model.train(), batch) for name, model in models.items()}}
    times = in_turn(runs, rounds, 2, time.process_time)
    rate, bandwidth, _ = rates(times)
    found: list[Row] = []
    for name in TRAINED:
        seconds, (operations, bytes_) = median(times[name]), step_work(name, size, length, rows)
        row: Row = {"size": size, "T": length, "B": rows, "contender": name}
        row |= {"GFLOP": operations / 1e9, "MB": bytes_ / 1e6, "ms": 1000 * seconds}
        row |= {"of the fastest product": operations / rate / seconds}
        found.append({**row, "of the fastest copy": bytes_ / bandwidth / seconds})
    return found


def long(rounds: int, quick: bool) -> list[Row]:
    """Attention of width 1 over a long row, Gaussian queries and keys. Every score needs an exponential; that of
    PyTorch's attention is coarser than torch.exp, and can exceed its rate.
    """
    length = 2048 if quick else LONG
    torch.manual_seed(length)
    q, k, v = CASES["Gaussian"](length)
    by = plan(product_of(q, k, None))
    assert by is not None
    runs: Runs = {
        **fastest(),
        "exact": lambda _: F.scaled_dot_product_attention(q, k, v),
        "linear": lambda _: attend(q, k, v, None, by),
    }
    with torch.inference_mode():
        times = in_turn(runs, rounds, 2, time.process_time)
    rate, bandwidth, exponents = rates(times)
    nodes = by.panels * by.nodes
    counts = {
        "exact": (4.0 * length**2, float(length**2)),
        "linear": (4.0 * nodes * length + 4.0 * by.nodes * length + 2.0 * by.nodes * nodes, float(nodes * length)),
    }
    found: list[Row] = []
    for form, (operations, exps) in counts.items():
        seconds, bytes_ = median(times[form]), HEADS * 4.0 * length * FLOAT
        row: Row = {"attention": form, "T": length, "heads": HEADS, "GFLOP": HEADS * operations / 1e9}
        row |= {"million exponentials": HEADS * exps / 1e6, "MB": bytes_ / 1e6, "ms": 1000 * seconds}
        row |= {"of the fastest product": HEADS * operations / rate / seconds}
        row |= {"rate of exponentials, of torch.exp's": HEADS * exps / exponents / seconds}
        found.append({**row, "of the fastest copy": bytes_ / bandwidth / seconds})
    return found


PARTS: dict[str, Callable[[int, bool], list[Row]]] = {"forward": forward, "step": step, "long": long}
KEYS = {"forward": "rows", "step": "steps", "long": "long"}
"""Where a part is kept."""


def with_bytes(row: Row) -> Row:
    """A line of the bare backbone with the bytes that it moves at least."""
    bytes_ = forward_work(row["size"], row["T"], row["B"])[1]
    share = bytes_ / row["GB/s of the fastest copy"] / 1e6 / row["ms"]
    return {**row, "MB": bytes_ / 1e6, "of the fastest copy": share}


def named(row: Row) -> Row:
    """A line for people."""
    return {**row, "contender": shown(row["contender"])} if "contender" in row else row


def markdown(results: dict[str, Any]) -> str:
    """A table of backbones, one of edits, one of steps and one of long rows."""
    text = opening("distance to the limit", __doc__)
    for part, key in KEYS.items():
        if key not in results:
            continue
        about = " ".join((PARTS[part].__doc__ or "").split())
        text += [f"## {part.capitalize()}", "", f"{about} {date_of(results, key)}.", ""]
        rows: list[Row] = results[key]
        bare = [row for row in rows if row.get("contender") == "bare"]
        for some in ([with_bytes(row) for row in bare], [row for row in rows if row not in bare]):
            text += [*table(list(map(named, some))), ""] if some else []
    return "\n".join([*text, closing(results)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one size, a shorter row, nothing is written")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="the others stay")
    parser.add_argument("--rounds", type=int, default=9, help="half as many of a training step")
    given = parser.parse_args()
    logging.set_verbosity_error()
    keep_freed_memory()
    torch.set_num_threads(1)
    results: dict[str, Any] = {**stamp(), "dates": {}} if given.quick else resumed("limits", KEYS.values())
    for part in given.parts:
        results[KEYS[part]] = PARTS[part](3 if given.quick else given.rounds, given.quick)
        results["dates"][KEYS[part]] = results["date"]
        if not given.quick:
            save("limits", results, markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
