"""Tiny attention of width 1: linear time against exact attention, by length; time and error.

    python benchmarks/tiny_attention.py            # about two minutes on one core
    python benchmarks/tiny_attention.py --quick

Four heads, one row, float32; the exact form is PyTorch's scaled_dot_product_attention. Both take turns. The error is
measured against attention in float64, as a part of the largest |v|.
"""

import argparse
import math
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from many import in_turn, ratio
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from pages import RESULTS, Row, closing, opening, save, stamp, table
from torch import Tensor
from torch.nn import functional as F

from attentune.evaluation.pictures import svg
from attentune.scalar_attention import Plan, attend, bound, plan, product_of

HEADS = 4


def gaussian(scale: float) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
    """Queries, keys and values [1,h,T,1], all Gaussian; queries and keys times `scale`."""
    return lambda t: (scale * torch.randn(1, HEADS, t, 1), scale * torch.randn(1, HEADS, t, 1), _values(t))


def clusters(t: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys in two clusters 5 apart."""
    keys = 0.1 * torch.randn(1, HEADS, t, 1) + 5 * (torch.arange(t) % 2)[:, None]
    return torch.randn(1, HEADS, t, 1), keys, _values(t)


def outlier(t: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian keys and one far from all others."""
    queries, keys, values = gaussian(1)(t)
    keys[:, :, 0] = 20
    return queries, keys, values


def _values(t: int) -> Tensor:
    return torch.randn(1, HEADS, t, 1)


CASES = {
    "Gaussian": gaussian(1),
    "Gaussian times 2": gaussian(2),
    "two clusters": clusters,
    "one outlier": outlier,
}


def measure(name: str, length: int, rounds: int) -> Row:
    """One case at one length."""
    torch.manual_seed(length)
    q, k, v = CASES[name](length)
    product = product_of(q, k, None)
    chosen = plan(product)
    assert chosen is not None
    runs: dict[str, Callable[[int], Tensor]] = {
        "exact": lambda _: F.scaled_dot_product_attention(q, k, v),
        "linear": lambda _: attend(q, k, v, None, chosen),
    }
    with torch.inference_mode():
        found = {run: call(0) for run, call in runs.items()}
        times = in_turn(runs, rounds, warm=1)
        truth = in_float64(q, k, v)
    errors = {f"error of {run}": float((out - truth).abs().max() / v.abs().max()) for run, out in found.items()}
    ms = {f"{run}, ms": 1000 * median(each) for run, each in times.items()}
    row = {"case": name, "T": length, "product": product, "panels": chosen.panels, "nodes": chosen.nodes}
    return {**row, **ms, "times as fast": ratio(times["exact"], times["linear"]), **errors}


def in_float64(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention, some queries at a time."""
    parts = [F.scaled_dot_product_attention(part, k.double(), v.double()) for part in q.double().split(1024, 2)]
    return torch.cat(parts, 2)


def certified() -> list[Row]:
    """Where the bound and the measured error lie, in float64: two keys, whose poles are the nearest there can be."""
    rows: list[Row] = []
    k, v = (torch.tensor(ends, dtype=torch.float64)[None, None, :, None] for ends in ([0.0, 1.0], [-1.0, 1.0]))
    for product, panels in ((10.0, 1), (10.0, 4), (50.0, 8), (50.0, 40)):
        q = torch.linspace(-product / 2, product / 2, 4001, dtype=torch.float64)[None, None, :, None]
        truth = F.scaled_dot_product_attention(q, k, v)
        for nodes in range(2, 33, 2):
            error = float((attend(q, k, v, None, Plan(panels, nodes)) - truth).abs().max())
            rows.append({"product": product, "P": panels, "n": nodes, "bound": bound(product, panels, nodes)})
            rows[-1]["error"] = error
    return rows


def curves(rows: list[Row]) -> Figure:
    """Milliseconds by T."""
    figure, panel = _figure()
    for i, name in enumerate(CASES):
        some = [row for row in rows if row["case"] == name]
        panel.plot(
            [r["T"] for r in some], [r["linear, ms"] for r in some], "o-", color=f"C{i}", label=f"linear, {name}"
        )
    first = [row for row in rows if row["case"] == "Gaussian"]
    panel.plot([r["T"] for r in first], [r["exact, ms"] for r in first], "ks--", label="exact")
    panel.set(xscale="log", yscale="log", xlabel="T", ylabel="ms")
    panel.legend(frameon=False, fontsize=9)
    return figure


def bounds(rows: list[Row]) -> Figure:
    """Error and bound by n."""
    figure, panel = _figure()
    for i, (product, panels) in enumerate(dict.fromkeys((row["product"], row["P"]) for row in rows)):
        some = [row for row in rows if (row["product"], row["P"]) == (product, panels)]
        nodes = [row["n"] for row in some]
        panel.plot(nodes, [r["bound"] for r in some], "--", color=f"C{i}")
        label = f"range x spread {product:g}, P = {panels}"
        panel.plot(nodes, [max(r["error"], 1e-17) for r in some], "o-", color=f"C{i}", markersize=4, label=label)
    panel.set(yscale="log", ylim=(1e-17, 10), xlabel="n, nodes of a panel", ylabel="error / max |v| (dashed: bound)")
    panel.legend(frameon=False, fontsize=9)
    return figure


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasSVG(figure)
    panel = figure.subplots()
    panel.spines[["top", "right"]].set_visible(False)
    return figure, panel


def markdown(results: dict[str, Any]) -> str:
    """The table."""
    rows: list[Row] = results["rows"]
    lines = [*opening("tiny attention of width 1 in linear time", __doc__), *table(rows)]
    slopes = []
    for name in CASES:
        some = [row for row in rows if row["case"] == name]
        steps = [
            math.log(b["linear, ms"] / a["linear, ms"]) / math.log(b["T"] / a["T"]) for a, b in pairwise(some[-3:])
        ]
        slopes.append(f"{name} {sum(steps) / len(steps):.2f}")
    lines += ["", f"Growth of the linear form over the last doublings, as a power of T: {', '.join(slopes)}.", ""]
    return "\n".join([*lines, closing(results)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short rows, nothing is written")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.quick:
        given.lengths, given.rounds = [512, 1024, 2048], 3
    torch.set_num_threads(given.threads)
    rows = [measure(name, length, given.rounds) for name in CASES for length in given.lengths]
    results: dict[str, Any] = {
        **stamp(),
        "rows": rows,
        "certified": certified(),
    }
    print(markdown(results))
    if not given.quick:
        save("tiny_attention", results, markdown(results))
        for name, figure in (("tiny_attention", curves(rows)), ("tiny_attention_bound", bounds(results["certified"]))):
            (RESULTS / f"{name}.svg").write_text(svg(figure))


if __name__ == "__main__":
    main()
