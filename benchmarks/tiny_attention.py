"""Tiny attention of width 1: linear time against exact attention, by length; time and error.

    python benchmarks/tiny_attention.py            # some ten minutes on one core
    python benchmarks/tiny_attention.py --quick
    python benchmarks/tiny_attention.py --parts keys padded causal backward    # the figures of the other part stay

Four heads, float32, one row unless said otherwise; the exact form is PyTorch's scaled_dot_product_attention. Both take
turns. The error is measured against attention in float64, as a part of the largest |v|. "Product" is the range of
queries times the spread of keys, rounded up; "chosen" says whether a model takes the linear form there.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from many import in_turn, ratio
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from pages import RESULTS, Row, closing, date_of, opening, resumed, save, stamp, table
from torch import Tensor
from torch.nn import functional as F

from attentune.evaluation.pictures import svg
from attentune.scalar_attention import Plan, attend, bound, faster, plan, product_of

HEADS = 4
Attended = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, [B,h,T,1]."""


def gaussian(scale: float) -> Callable[[int], Attended]:
    """All Gaussian, one row; queries and keys times `scale`."""
    return lambda t: (scale * torch.randn(1, HEADS, t, 1), scale * torch.randn(1, HEADS, t, 1), _values(t))


def clusters(t: int) -> Attended:
    """Keys in two clusters 5 apart."""
    keys = 0.1 * torch.randn(1, HEADS, t, 1) + 5 * (torch.arange(t) % 2)[:, None]
    return torch.randn(1, HEADS, t, 1), keys, _values(t)


def clusters_to(product: float) -> Callable[[int], Attended]:
    """Keys in two clusters, so far apart that the range of queries times the spread of keys is `product`."""

    def make(t: int) -> Attended:
        queries, keys, values = clusters(t)
        return queries, keys * (product / (_range(queries) * _range(keys)).amax()), values

    return make


def equal(t: int) -> Attended:
    """Keys that are all the same."""
    return torch.randn(1, HEADS, t, 1), torch.full((1, HEADS, t, 1), 0.7), _values(t)


def outlier(t: int) -> Attended:
    """Gaussian keys and one far from all others."""
    queries, keys, values = gaussian(1)(t)
    keys[:, :, 0] = 20
    return queries, keys, values


def _values(t: int) -> Tensor:
    return torch.randn(1, HEADS, t, 1)


def _range(x: Tensor) -> Tensor:
    return x.amax(-2) - x.amin(-2)


CASES: dict[str, Callable[[int], Attended]] = {
    "Gaussian": gaussian(1),
    "Gaussian times 2": gaussian(2),
    "two clusters": clusters,
    "one outlier": outlier,
    "Gaussian times 3": gaussian(3),
    "Gaussian times 0.5": gaussian(0.5),
    "two clusters, product 100": clusters_to(100),
    "two clusters, product 300": clusters_to(300),
    "all keys equal": equal,
}
GROWTH = ("Gaussian", "Gaussian times 2", "two clusters", "one outlier")
"""Measured at every length."""
KEYS = ("Gaussian times 3", "two clusters, product 100", "two clusters, product 300", "one outlier", "all keys equal")
SOME = (1024, 4096, 16384)
PIECE = 1024
"""Queries at a time in float64."""


def measure(name: str, length: int, rounds: int, padded: bool = False, causal: bool = False) -> Row:
    """One case at one length; `padded`: four rows, of which one is whole."""
    torch.manual_seed(length)
    rows = [CASES[name](length) for _ in range(4 if padded else 1)]
    q, k, v = (torch.cat(each) for each in zip(*rows, strict=True))
    allowed = there(length) if padded else None
    mask = torch.ones(length, length, dtype=torch.bool).tril() if causal else allowed
    product = product_of(q, k, allowed)
    by = plan(product)
    assert by is not None
    runs: dict[str, Callable[[int], Tensor]] = {
        "exact": lambda _: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        "linear": lambda _: attend(q, k, v, allowed, by, causal),
    }
    if causal:
        runs["is_causal"] = lambda _: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    with torch.inference_mode():
        found = {run: call(0) for run, call in runs.items()}
        times = in_turn(runs, rounds, warm=1, clock=time.process_time)
        truth = torch.cat(list(in_float64(q.double(), k.double(), v.double(), allowed, causal)), 2)
    errors = {f"error of {run}": float((out - truth).abs().max() / v.abs().max()) for run, out in found.items()}
    chosen = "yes" if faster(q, k, allowed, causal) else "no"
    return {**conditions(name, length, product, by), "chosen": chosen, **compared(times), **errors}


def measure_backward(name: str, length: int, rounds: int) -> Row:
    """One case at one length, forward and backward; the error is the largest of the three gradients."""
    torch.manual_seed(length)
    q, k, v = CASES[name](length)
    up = torch.randn_like(v)
    product = product_of(q, k, None)
    by = plan(product)
    assert by is not None
    given = tuple(x.requires_grad_() for x in (q, k, v))
    runs: dict[str, Callable[[int], tuple[Tensor, ...]]] = {
        "exact": lambda _: torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), given, up),
        "linear": lambda _: torch.autograd.grad(attend(q, k, v, None, by), given, up),
    }
    found = {run: call(0) for run, call in runs.items()}
    times = in_turn(runs, rounds, warm=1, clock=time.process_time)
    q64, k64, v64 = (x.detach().double().requires_grad_() for x in given)
    for out, part in zip(in_float64(q64, k64, v64, None, False), up.double().split(PIECE, 2), strict=True):
        out.backward(part)
    truth = [x.grad for x in (q64, k64, v64) if x.grad is not None]
    errors = {f"error of {run}": max(map(apart, grads, truth)) for run, grads in found.items()}
    return {**conditions(name, length, product, by), **compared(times), **errors}


def there(length: int) -> Tensor:
    """Which keys of four rows are no padding: all, three quarters, a half, a quarter.  -> [4,1,1,T] bool"""
    return (torch.arange(length) < torch.tensor([4, 3, 2, 1])[:, None] * length // 4)[:, None, None]


def conditions(name: str, length: int, product: float, by: Plan) -> Row:
    """The first columns."""
    return {"case": name, "T": length, "product": product, "panels": by.panels, "nodes": by.nodes}


def compared(times: dict[str, list[float]]) -> Row:
    """Milliseconds, and which is faster."""
    ms = {f"{run}, ms": 1000 * median(each) for run, each in times.items()}
    return {**ms, "times as fast": ratio(times["exact"], times["linear"])}


def apart(found: Tensor, truth: Tensor) -> float:
    """The largest difference, as a part of the largest number."""
    return float((found - truth).abs().max() / truth.abs().max())


def in_float64(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, causal: bool) -> Iterator[Tensor]:
    """Attention, some queries at a time."""
    places = torch.arange(k.shape[-2])
    for part, at in zip(q.split(PIECE, 2), places.split(PIECE), strict=True):
        mask = places <= at[:, None] if causal else allowed
        yield F.scaled_dot_product_attention(part, k, v, attn_mask=mask)


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
    for i, name in enumerate(GROWTH):
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


Part = Callable[[Sequence[int], int], list[Row]]


def lengths(of: Sequence[int], rounds: int) -> list[Row]:
    """A forward by length."""
    return [measure(name, length, rounds) for name in GROWTH for length in of]


def keys(of: Sequence[int], rounds: int) -> list[Row]:
    """Keys that are hard, and keys that are none; processor time."""
    return [measure(name, length, rounds) for name in KEYS for length in of]


def padded(of: Sequence[int], rounds: int) -> list[Row]:
    """Four rows of which a quarter, a half and three quarters are padding, and none; processor time."""
    return [measure("Gaussian", length, rounds, padded=True) for length in of]


def causal(of: Sequence[int], rounds: int) -> list[Row]:
    """No query sees later keys. Exact is what a model does where linear is not chosen, with a mask of T x T; is_causal
    is the same without a mask, as PyTorch offers it where no row is padded; processor time.
    """
    cases = ("Gaussian times 0.5", "Gaussian")
    return [measure(name, length, rounds, causal=True) for name in cases for length in of]


def backward(of: Sequence[int], rounds: int) -> list[Row]:
    """Forward and backward, with the errors of the gradients, each as a part of its largest number; processor time."""
    return [measure_backward("Gaussian", length, rounds) for length in of]


PARTS: dict[str, tuple[Part, str, tuple[int, ...]]] = {
    "lengths": (lengths, "rows", (1024, 2048, 4096, 8192, 16384)),
    "keys": (keys, "keys", SOME),
    "padded": (padded, "padded", SOME),
    "causal": (causal, "causal", (8192, 16384)),
    "backward": (backward, "backward", SOME),
}
"""How a part is measured, where it is kept, and at which lengths."""


def growth(rows: list[Row]) -> str:
    """The power of T with which the linear form grows."""
    slopes: list[str] = []
    for name in GROWTH:
        some = [row for row in rows if row["case"] == name]
        steps = [
            math.log(b["linear, ms"] / a["linear, ms"]) / math.log(b["T"] / a["T"]) for a, b in pairwise(some[-3:])
        ]
        slopes.append(f"{name} {sum(steps) / len(steps):.2f}")
    return f"Growth of the linear form over the last doublings, as a power of T: {', '.join(slopes)}."


def markdown(results: dict[str, Any]) -> str:
    """A table a part."""
    lines = opening("tiny attention of width 1 in linear time", __doc__)
    for part, (make, key, _) in PARTS.items():
        if key in results:
            about = f"{' '.join((make.__doc__ or '').split())} {date_of(results, key)}."
            lines += [f"## {part.capitalize()}", "", about, "", *table(results[key]), ""]
            lines += [growth(results[key]), ""] if part == "lengths" else []
    return "\n".join([*lines, closing(results)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short rows, nothing is written")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="the others stay")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    kept = [key for _, key, _ in PARTS.values()]
    results: dict[str, Any] = {**stamp(), "dates": {}} if given.quick else resumed("tiny_attention", kept)
    for part in given.parts:
        make, key, of = PARTS[part]
        results[key] = make((512, 1024, 2048), 3) if given.quick else make(of, given.rounds)
        results["dates"][key] = results["date"]
        if part == "lengths":
            results["certified"] = certified()
        if not given.quick:
            save("tiny_attention", results, markdown(results))
    print(markdown(results))
    if not given.quick and "lengths" in given.parts:
        (RESULTS / "tiny_attention.svg").write_text(svg(curves(results["rows"])))
        (RESULTS / "tiny_attention_bound.svg").write_text(svg(bounds(results["certified"])))


if __name__ == "__main__":
    main()
