"""What it is worth that freed memory stays with the process (`attentune.allocator`).

    python benchmarks/allocator.py            # some minutes on one core
    python benchmarks/allocator.py --quick

A forward of a BERT of the size of MiniLM-L6 with random weights, in float32, in the main thread and in one beside it,
as a server's. glibc is asked once a process, so that every line is of processes of its own, with and without in turn;
the figure of a process is the median of its forwards' processor time, that of a line the median over processes. Faults
are pages that the system had to give during one forward.
"""

import argparse
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import torch
from many import alone
from overheads import backbone, tokens
from pages import Row, closing, opening, save, stamp, table
from transformers import logging

from attentune.allocator import keep_freed_memory

PLACES = ((64, 16), (512, 2))
"""T, B."""
FORWARDS, WARM = 15, 3


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


def line(length: int, rows: int, beside: bool, processes: int) -> Row:
    """With and without, in turn."""
    found = [[alone(measure, length, rows, beside, keep) for keep in (False, True)] for _ in range(processes)]
    row: Row = {"T": length, "B": rows, "thread": "beside" if beside else "main"}
    for keep, name in enumerate(("handed back", "kept")):
        for at, what in enumerate(("ms", "faults", "peak MB")):
            row[f"{what}, {name}"] = median(pair[keep][at] for pair in found)
    row["kept / handed back"] = median(pair[1][0] / pair[0][0] for pair in found)
    return row


def markdown(results: dict[str, Any]) -> str:
    """The table."""
    text = [*opening("freed memory stays", __doc__), *table(results["rows"]), "", closing(results)]
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one line of one pair of processes, nothing is written")
    given = parser.parse_args()
    torch.set_num_threads(1)
    places, threads, processes = (PLACES[:1], (False,), 1) if given.quick else (PLACES, (False, True), 3)
    rows = [line(length, rows, beside, processes) for length, rows in places for beside in threads]
    results = {**stamp(), "rows": rows}
    print(markdown(results))
    if not given.quick:
        save("allocator", results, markdown(results))


if __name__ == "__main__":
    main()
