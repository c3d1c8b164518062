"""All measurements of speed and memory, one after the other, and one page of what was aimed at and what was found.

    make bench                             # some four hours on one core
    make bench ARGS=--quick                # every part in a small form, in some minutes; nothing is written
    python benchmarks/bench.py --report    # the page alone, from what is measured

Every part is a script of its own, and keeps its figures beside its own page in `results/`.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from memory import TOKENS
from overheads import LONGER, PEERS, SIZES, shown
from pages import RESULTS, Row, days
from serving import MIXED

from attentune.evaluation.pictures import COLOURS, GREY, svg

QUICK = ["--quick"]
PARTS = {
    "overheads": QUICK,
    "memory": QUICK,
    "limits": QUICK,
    "allocator": QUICK,
    "compiled": QUICK,
    "tiny_attention": QUICK,
    "serving": [*QUICK, "--parts", "throughput", "against_peft"],
    "together": QUICK,
    "frozen": QUICK,
}
"""Script -> its arguments in the quick form."""
Found = dict[str, Any]
"""Part -> what it measured."""


class Target(NamedTuple):
    """What was aimed at: a ratio that is at least a bound; without one, it is shown beside the others."""

    what: str
    find: Callable[[Found], float]
    bound: float | None = None


def served(method: str, tasks: str, traffic: str) -> Callable[[Found], float]:
    """Throughput of mixed batches, of the bare backbone's."""
    return lambda found: found["serving"]["throughput"][method][f"{tasks} tasks, {traffic}"]


def versus_peft(figure: str) -> Callable[[Found], float]:
    """One of the figures beside peft."""
    return lambda found: found["serving"]["against_peft"][figure]


def linear(length: int) -> Callable[[Found], float]:
    """Times as fast as exact attention, Gaussian queries and keys."""

    def find(found: Found) -> float:
        rows: list[Row] = found["tiny_attention"]["rows"]
        return next(row["times as fast"] for row in rows if (row["case"], row["T"]) == ("Gaussian", length))

    return find


def together(method: str) -> Callable[[Found], float]:
    """Tasks an hour, trained together, of those one by one."""
    return lambda found: next(run["ratio"] for run in found["together"]["runs"] if run["method"] == method)


def frozen(blocks: list[int]) -> Callable[[Found], float]:
    """Seconds of training, of those with `cache_frozen`."""
    return lambda found: next(run["ratio"] for run in found["frozen"]["runs"] if run["blocks"] == blocks)


FIVE = ("pasta", "tiny_attention", "prefix_propagation", "attempt", "kernel_mix")
TARGETS = [
    *(
        Target(f"1,000 tasks of {shown(name)}, {traffic} / bare", served(name, "1,000", traffic), 0.95)
        for name in FIVE
        for traffic in ("uniform", "zipf")
    ),
    *(
        Target(f"1,000 tasks, the five methods in turn, {traffic} / bare", served(MIXED, "1,000", traffic), 0.95)
        for traffic in ("uniform", "zipf")
    ),
    Target(
        "32 tasks of Kernel-mix in one batch / row by row with set_adapter, ours",
        versus_peft("64 tokens: times as fast as our set_adapter, row by row"),
        1.0,
    ),
    Target(
        "32 tasks of Kernel-mix in one batch / row by row with peft's set_adapter",
        versus_peft("64 tokens: times as fast as peft LoRA set_adapter, row by row"),
        2.0,
    ),
    Target(
        "32 tasks of Kernel-mix in one batch / peft LoRA's adapter_names",
        versus_peft("64 tokens: times as fast as peft LoRA adapter_names"),
        1.0,
    ),
    Target("tiny attention in linear time / exact, T = 4,096, Gaussian", linear(4096), 1.0),
    *(
        Target(f"8 tasks of {shown(name)} trained together / one by one, tasks an hour", together(name))
        for name in ("pasta", "kernel_mix")
    ),
    *(
        Target(f"training {which} of six blocks / the same with cache_frozen, seconds", frozen(blocks))
        for which, blocks in (("the upper three", [3, 4, 5]), ("the last", [5]))
    ),
]


def at_most(name: str, column: str) -> float | None:
    """What one adapter may cost, as a ratio; None: it is a reference."""
    if name not in AIMED or column == "step / LoRA at T + m":
        return None
    if column != "forward / bare at T + m":
        return 1.0
    return {"pasta": 1.03, "kernel_mix, merged": 1.01}.get(name, 1.06)


AIMED = (*FIVE, "kernel_mix, merged")
COLUMNS = {
    "forward / bare at T + m": "A forward, of the bare backbone's (at T + m positions for those that put m in front)",
    "step / LoRA": "A training step, of LoRA's on the same T tokens, whatever stands in front",
    "step / LoRA at T + m": "The step of those that put m in front, of LoRA's on T + m tokens",
    "kept / LoRA": "What autograd keeps for the backward pass, of LoRA's",
}


def one_adapter(found: Found, column: str) -> list[str]:
    """A table of contenders by size and T."""
    rows: list[Row] = [row for row in found["overheads"]["rows"] if column in row]
    values = {(row["contender"], f"{row['size']}, T = {row['T']:,}"): row[column] for row in rows}
    return judged(COLUMNS[column], values, lambda name: at_most(name, column))


def peaks(found: Found) -> list[str]:
    """The same of peak memory, by the rows of a batch."""
    rows: list[Row] = [row for row in found["memory"]["rows"] if row["frozen"] == "float32"]
    lora = {row["T"]: row["peak MB"] for row in rows if row["contender"] == "lora"}
    values = {
        (row["contender"], f"small, {TOKENS // row['T']} x {row['T']:,}"): row["peak MB"] / lora[row["T"]]
        for row in rows
    }
    return judged("Peak memory of training, of LoRA's", values, lambda name: at_most(name, "peak"))


def judged(what: str, values: dict[tuple[str, str], float], bound_of: Callable[[str], float | None]) -> list[str]:
    """A table of contenders by place, those without a target last; what is more than was aimed at is bold."""
    if not values:
        return []
    places = list(dict.fromkeys(place for _, place in values))
    names = {name for name, _ in values}
    text = [f"{what}:", "", f"|  | at most | {' | '.join(places)} |", "| --- |" + " ---: |" * (1 + len(places))]
    for name in (name for name in (*AIMED, *PEERS, LONGER) if name in names):
        bound, here = bound_of(name), [values.get((name, place)) for place in places]
        cells = ["" if value is None else figure(value, bound is not None and value > bound) for value in here]
        text.append(f"| {shown(name)} | {'' if bound is None else f'{bound:.2f}'} | {' | '.join(cells)} |")
    return [*text, ""]


def figure(value: float, missed: bool) -> str:
    """Three decimals; bold where a target is missed."""
    return f"**{value:.3f}**" if missed else f"{value:.3f}"


SAME = ("full", "kernel_mix, merged")
"""What has the bare backbone's forward, but for a small head."""


def noise(found: Found) -> float:
    """How far the forwards that compute what the bare backbone does came out from its own, at most."""
    rows: list[Row] = [row for row in found["overheads"]["rows"] if row["contender"] in SAME]
    return max(abs(row["forward / bare at T + m"] - 1) for row in rows)


def page(found: Found) -> str:
    """Targets beside figures, and the pictures."""
    text = ["# Measured: the targets", ""]
    text += [
        "Ratios, each of one run in which both sides took turns; of one adapter the median over turns. Peak memory is "
        "of a process each. What misses its target is bold. Forwards of merged Kernel-mix and of full fine-tuning, "
        "which do what the bare backbone does, "
        f"came out up to {noise(found):.3f} away from its own: so far apart are equal things here.",
        "",
    ]
    text += ["## One adapter", "", "small is the size of MiniLM-L6. Rows without a target are for comparison.", ""]
    for column in COLUMNS:
        text += one_adapter(found, column)
    text += peaks(found)
    text += ["## Many tasks, and long rows", "", "| ratio | at least | measured |", "| --- | ---: | ---: |"]
    for target in TARGETS:
        value, bound = target.find(found), target.bound
        aimed = "" if bound is None else f"{bound:.2f}"
        text.append(f"| {target.what} | {aimed} | {figure(value, bound is not None and value < bound)} |")
    text += ["", *(f"![{name}](growth_{name}.svg)" for name in PICTURES), ""]
    text += ["The whole of each part stands in a page of its own:", ""]
    abouts = {part: found[part]["where"] for part in PARTS}
    for part, about in abouts.items():
        text.append(
            f"- {part}: {about['machine']}, {about['threads']} thread(s), torch {about['torch']}, {days(found[part])}"
        )
    return "\n".join(text) + "\n"


def band(found: Found, panel: Axes) -> None:
    """What is within the noise."""
    panel.axhspan(
        1 - noise(found), 1 + noise(found), color=GREY, alpha=0.15, linewidth=0, label="where equal things lie"
    )


def growth_in_length(found: Found, panel: Axes) -> None:
    """Forward against bare (at T + m) by T."""
    rows: list[Row] = [row for row in found["overheads"]["rows"] if row["size"] == "small"]
    for i, name in enumerate((*FIVE, "lora")):
        some = sorted((r["T"], r["forward / bare at T + m"]) for r in rows if r["contender"] == name)
        panel.plot(*zip(*some, strict=True), "o-", color=COLOURS[i], label=shown(name), markersize=4)
    band(found, panel)
    panel.set(xscale="log", xlabel="T", ylabel="forward / bare (at T + m)")


def growth_in_size(found: Found, panel: Axes) -> None:
    """Forward against bare (at T + m) by the backbone's size, at 64 tokens."""
    rows: list[Row] = [row for row in found["overheads"]["rows"] if row["T"] == 64]
    for i, name in enumerate((*FIVE, "lora")):
        some = sorted(
            (12 * SIZES[r["size"]][0] ** 2 * SIZES[r["size"]][1] / 1e6, r) for r in rows if r["contender"] == name
        )
        panel.plot(
            [million for million, _ in some],
            [row["forward / bare at T + m"] for _, row in some],
            "o-",
            color=COLOURS[i],
            label=shown(name),
            markersize=4,
        )
    band(found, panel)
    panel.set(xscale="log", xlabel="million numbers in the blocks", ylabel="forward / bare (at T + m), T = 64")


def growth_in_tasks(found: Found, panel: Axes) -> None:
    """Throughput of mixed batches by the number of tasks."""
    for i, name in enumerate((*FIVE, MIXED)):
        figures: dict[str, float] = found["serving"]["throughput"][name]
        some = [
            (int(key.split()[0].replace(",", "")), value) for key, value in figures.items() if key.endswith("uniform")
        ]
        panel.plot(
            *zip(*some, strict=True), "o-", color=COLOURS[i], label=name if name == MIXED else shown(name), markersize=4
        )
    panel.set(xscale="log", xlabel="K, tasks", ylabel="rows a second, of the bare backbone's", ylim=(0.8, 1.05))


PICTURES: dict[str, Callable[[Found, Axes], None]] = {
    "T": growth_in_length,
    "size": growth_in_size,
    "K": growth_in_tasks,
}


def drawn(draw: Callable[[Found, Axes], None], found: Found) -> str:
    """One picture."""
    picture = Figure(figsize=(7.6, 4.2), layout="constrained")
    FigureCanvasSVG(picture)
    panel = picture.subplots()
    panel.spines[["top", "right"]].set_visible(False)
    panel.axhline(1, color=GREY, linewidth=1)
    draw(found, panel)
    picture.legend(loc="outside right upper", frameon=False, fontsize=9)
    return svg(picture)


def measured() -> Found:
    """What the parts have left."""
    missing = [part for part in PARTS if not (RESULTS / f"{part}.json").is_file()]
    if missing:
        sys.exit(f"not measured yet: {', '.join(missing)}; without --report they are")
    return {part: json.loads((RESULTS / f"{part}.json").read_text()) for part in PARTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every part in a small form, nothing is written")
    parser.add_argument("--report", action="store_true", help="measure nothing, draw the page")
    given = parser.parse_args()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for part in () if given.report else PARTS:
        script = Path(__file__).with_name(f"{part}.py")
        arguments = PARTS[part] if given.quick else []
        subprocess.run([sys.executable, str(script), *arguments], check=True, env=environment)
    if given.quick:
        return
    found = measured()
    (RESULTS / "bench.md").write_text(page(found))
    for name, draw in PICTURES.items():
        (RESULTS / f"growth_{name}.svg").write_text(drawn(draw, found))
    print(page(found))


if __name__ == "__main__":
    main()
