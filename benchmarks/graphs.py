"""What recorded forwards (CUDA graphs) are worth: a mixed batch replayed, beside the same batch run anew.

    python benchmarks/graphs.py            # some minutes on a GPU, and for nothing else
    python benchmarks/graphs.py --quick    # anywhere: without a GPU a run stands for its own recording

A bank on MiniLM with 32 tasks of one method; every batch draws its tasks anew. The bare backbone, the bank and the bank
with recordings get the same batches in turn; times are medians, by the clock, of filling, copying, replaying and
answering. What recording one size takes stands beside them.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from many import OPTIONS, batches, in_turn, make_adapters, ratio, traffic
from overheads import shown
from pages import Row, closing, opening, save, stamp, table
from transformers import logging

from attentune.backbones import load_backbone, load_tokenizer
from attentune.serving import Bank
from attentune.serving.cuda_graphs import CudaGraphs, Run, Tensors
from attentune.serving.graphs import Graphs

PLACES = ((1, 32), (4, 32), (16, 32), (64, 32), (1, 128), (16, 128), (64, 128))
"""B, T."""
TASKS = 32
GPU = torch.cuda.is_available()


def measure(method: str, places: tuple[tuple[int, int], ...], rounds: int, folder: Path) -> list[Row]:
    """A line a size of batch."""
    bare: Any = load_backbone("minilm")
    bare.to("cuda" if GPU else "cpu")
    bank = Bank(load_backbone("minilm"))
    for path in make_adapters(load_backbone("minilm"), folder, method, TASKS):
        bank.add(path.name, path)
    return [{"method": method, **beside(bare, bank, rows, length, rounds)} for rows, length in places]


def beside(bare: Any, bank: Bank, rows: int, length: int, rounds: int) -> Row:
    """Batches of one size: the bare backbone's, the bank's, and the bank's with recordings."""
    graphs = Graphs(bank.model, CudaGraphs(bank.model.device) if GPU else _itself)
    device = bank.model.device
    drawn = batches(load_tokenizer("minilm"), rows, rounds + 3, length)
    given = [(batch.ids.to(device), batch.mask.to(device)) for batch in drawn]

    def run(i: int, recorded: Graphs | None) -> None:
        bank.graphs = recorded
        bank(*given[i], traffic(bank.names, rows, "uniform", i))
        if GPU:
            torch.cuda.synchronize()

    def run_bare(i: int) -> None:
        bare(input_ids=given[i][0], attention_mask=given[i][1])
        if GPU:
            torch.cuda.synchronize()

    with torch.inference_mode():
        begin = time.perf_counter()
        run(0, graphs)
        spent = time.perf_counter() - begin
        contenders = {"bare": run_bare, "anew": lambda i: run(i, None), "replayed": lambda i: run(i, graphs)}
        times = in_turn(contenders, rounds)
    return {
        "B": rows,
        "T": length,
        **{f"ms, {name}": 1000 * median(each) for name, each in times.items()},
        "replayed / anew": ratio(times["replayed"], times["anew"]),
        "replayed / bare": ratio(times["replayed"], times["bare"]),
        "ms to record": 1000 * spent,
    }


def _itself(run: Run, example: Tensors) -> Run:
    return run


def markdown(results: dict[str, Any]) -> str:
    """The table."""
    rows = [{**row, "method": shown(row["method"])} for row in results["rows"]]
    return "\n".join([*opening("recorded forwards", __doc__), *table(rows), "", closing(results)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one method, one size, nothing is written")
    given = parser.parse_args()
    logging.set_verbosity_error()
    if not GPU and not given.quick:
        print("graphs.py measures CUDA graphs and finds no GPU; --quick tries it without one", file=sys.stderr)
        raise SystemExit(2)
    methods, places, rounds = (["pasta"], PLACES[1:2], 3) if given.quick else (list(OPTIONS), PLACES, 50)
    rows: list[Row] = []
    for method in methods:
        with TemporaryDirectory() as folder:
            rows += measure(method, places, rounds, Path(folder))
    results = {**stamp(), "rows": rows}
    print(markdown(results))
    if not given.quick:
        save("graphs", results, markdown(results))


if __name__ == "__main__":
    main()
