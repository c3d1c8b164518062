"""What it is worth that freed memory stays with the process (`attentune.allocator`).

    python benchmarks/allocator.py            # some minutes on one core
    python benchmarks/allocator.py --quick

A forward of a BERT of the size of MiniLM-L6 with random weights, in float32, in the main thread and in one beside it,
as a server's. glibc is asked once a process, so that every line is of processes of its own, with and without in turn;
the figure of a process is the median of its forwards' processor time, that of a line the median over processes. Faults
are pages that the system had to give during one forward.
"""

import argparse
import json
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from statistics import median
from typing import Any

import torch
from methods import RESULTS, where
from overheads import backbone, tokens
from transformers import logging

from attentune.allocator import keep_freed_memory

PLACES = ((64, 16), (512, 2))
"""T, B."""
FORWARDS, WARM = 15, 3
Row = dict[str, Any]


def measure(length: int, rows: int, beside: bool, keep: bool) -> tuple[float, float, float]:
    """Milliseconds and faults of a forward, peak MB: of this process."""
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    if keep and not keep_freed_memory():
        raise SystemExit("this system has no glibc, or its environment has decided; nothing to measure")
    bare, batch = backbone("small", length), tokens(rows, length)

    def forwards() -> tuple[list[float], int]:
        seconds: list[float] = []
        before = 0
        with torch.inference_mode():
            for i in range(WARM + FORWARDS):
                if i == WARM:
                    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                start = time.process_time()
                bare(**batch)
                seconds.append(time.process_time() - start)
        return seconds[WARM:], resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    if beside:
        with ThreadPoolExecutor(1) as pool:
            seconds, faults = pool.submit(forwards).result()
    else:
        seconds, faults = forwards()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return 1000 * median(seconds), faults / FORWARDS, peak


def fresh(*arguments: Any) -> tuple[float, float, float]:
    """The same in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def line(length: int, rows: int, beside: bool, processes: int) -> Row:
    """With and without, in turn."""
    found = [[fresh(length, rows, beside, keep) for keep in (False, True)] for _ in range(processes)]
    row: Row = {"T": length, "B": rows, "thread": "beside" if beside else "main"}
    for keep, name in enumerate(("handed back", "kept")):
        for at, what in enumerate(("ms", "faults", "peak MB")):
            row[f"{what}, {name}"] = median(pair[keep][at] for pair in found)
    row["kept / handed back"] = median(pair[1][0] / pair[0][0] for pair in found)
    return row


def markdown(results: dict[str, Any]) -> str:
    """The table."""
    rows: list[Row] = results["rows"]
    text = ["# Measured: freed memory stays", "", " ".join((__doc__ or "").split("\n\n")[2].split()), ""]
    text += [f"| {' | '.join(rows[0])} |", "|" + " ---: |" * len(rows[0])]
    for row in rows:
        cells = [f"{value:,.3g}" if isinstance(value, float) else str(value) for value in row.values()]
        text.append(f"| {' | '.join(cells)} |")
    about = results["where"]
    text += ["", f"{about['machine']}, {about['threads']} thread(s), torch {about['torch']}, {results['date']}."]
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one line of one pair of processes, nothing is written")
    given = parser.parse_args()
    torch.set_num_threads(1)
    places, threads, processes = (PLACES[:1], (False,), 1) if given.quick else (PLACES, (False, True), 3)
    rows = [line(length, rows, beside, processes) for length, rows in places for beside in threads]
    results = {"where": where(), "date": time.strftime("%Y-%m-%d %H:%M"), "rows": rows}
    print(markdown(results))
    if not given.quick:
        (RESULTS / "allocator.json").write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "allocator.md").write_text(markdown(results))


if __name__ == "__main__":
    main()
