"""What torch.compile is worth for a forward, one adapter over a frozen backbone.

    python benchmarks/compiled.py            # five minutes on one core
    python benchmarks/compiled.py --quick

A BERT of the size of MiniLM-L6 with random weights, float32, compiled as one graph (`fullgraph=True`: a break would be
an error) by inductor, with CUDA graphs where there is a GPU. Each is measured in turn with its uncompiled form, and one
after the other, so that only the two forms of a line are to be compared; times are medians, of the processor, or of the
clock where there is a GPU. What compiling takes (less where inductor finds kernels of before) is paid again for every
new shape of a batch.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from many import in_turn, ratio
from overheads import backbone, contenders, shown, tokens
from pages import Row, closing, opening, save, stamp, table
from transformers import logging

from attentune.allocator import keep_freed_memory
from attentune.methods import METHODS

PLACES = ((64, 16), (512, 2))
"""T, B."""


def measure(length: int, rows: int, names: list[str], rounds: int) -> list[Row]:
    """A line a contender, each beside its own uncompiled form."""
    gpu = torch.cuda.is_available()
    device, mode = ("cuda", "reduce-overhead") if gpu else ("cpu", "default")
    bare = backbone("small", length)
    models: dict[str, Any] = {"bare": bare, **contenders(names, bare, length)}
    batch = {key: value.to(device) for key, value in tokens(rows, length).items()}
    found: list[Row] = []
    for name, model in models.items():
        torch.compiler.reset()
        compiled: Any = torch.compile(model.to(device), fullgraph=True, dynamic=False, mode=mode)

        def run(form: Any) -> None:
            form(**batch)
            if gpu:
                torch.cuda.synchronize()

        with torch.inference_mode():
            start = time.perf_counter()
            run(compiled)
            spent = time.perf_counter() - start
            forms: dict[str, Callable[[int], Any]] = {
                "not": lambda _, form=model: run(form),
                "compiled": lambda _, form=compiled: run(form),
            }
            times = in_turn(forms, rounds, 2, time.perf_counter if gpu else time.process_time)
        row: Row = {"T": length, "B": rows, "contender": name}
        row |= {"ms": 1000 * median(times["not"]), "ms, compiled": 1000 * median(times["compiled"])}
        found.append(
            {**row, "compiled / not": ratio(times["compiled"], times["not"]), "seconds to compile": round(spent, 1)}
        )
    return found


def markdown(results: dict[str, Any]) -> str:
    """The table."""
    rows = [{**row, "contender": shown(row["contender"])} for row in results["rows"]]
    return "\n".join([*opening("torch.compile", __doc__), *table(rows), "", closing(results)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one shape, one method, nothing is written")
    given = parser.parse_args()
    logging.set_verbosity_error()
    keep_freed_memory()
    torch.set_num_threads(1)
    places, names, rounds = (PLACES[:1], ["pasta"], 3) if given.quick else (PLACES, list(METHODS), 9)
    rows = [row for length, count in places for row in measure(length, count, names, rounds)]
    results = {**stamp(), "rows": rows}
    print(markdown(results))
    if not given.quick:
        save("compiled", results, markdown(results))


if __name__ == "__main__":
    main()
