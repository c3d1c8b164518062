"""Finished runs -> Markdown: a table a set, and the best of the five against LoRA."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from contenders import FIVE

Line = dict[str, Any]
Counted = list[Line]
"""The runs of one contender that count: both seeds at the chosen learning rate."""

SHOWN = {
    "probe": "frozen probe",
    "lora": "LoRA r=8",
    "full": "full fine-tuning",
    "kernel_mix": "Kernel-mix",
    "pasta": "PASTA",
    "tiny_attention": "tiny attention",
    "prefix_propagation": "prefix-propagation",
    "attempt": "ATTEMPT",
}


def markdown(sets: Sequence[Sequence[Counted]]) -> str:
    """The whole report."""
    begun = [runs for runs in sets if any("plan" in one[0]["key"] for one in runs)]
    if not begun:
        return "No contender is finished on any of these sets."
    return "\n\n".join([*(_set(runs) for runs in begun), _summary(begun), _conditions(begun[0][-1][0])])


def _set(runs: Sequence[Counted]) -> str:
    first = runs[0][0]
    sizes = first["key"]["sizes"]
    rows = [
        f"### {first['key']['set']}: {first['metric']}",
        f"{sizes['train']} training rows, at most {sizes['validation']} of validation and {sizes['test']} of the test.",
        _table(
            ["contender", "rate", "test, mean", "by seed", "validation", "bytes", "trained", "CPU s"],
            [_row(one) for one in sorted(runs, key=lambda one: -_mean(one, "test"))],
        ),
    ]
    return "\n\n".join(rows)


def _row(runs: Counted) -> list[str]:
    first = runs[0]
    rate = f"{first['key']['rate']:g}" if "rate" in first["key"] else f"C {first['strength']:g}, {first['pooling']}"
    return [
        SHOWN[first["key"]["contender"]],
        rate,
        f"{_mean(runs, 'test'):.3f}",
        " ".join(f"{run['test']:.3f}" for run in runs),
        f"{_mean(runs, 'validation'):.3f}",
        f"{first['bytes']:,}",
        f"{first['parameters']:,}",
        f"{_mean(runs, 'seconds'):.0f}",
    ]


def _summary(sets: Sequence[Sequence[Counted]]) -> str:
    finished = [{one[0]["key"]["contender"]: one for one in runs} for runs in sets]
    rows = [_against_lora(runs) for runs in finished if "lora" in runs and any(name in runs for name in FIVE)]
    head = [
        "set",
        "LoRA r=8",
        "best of the five on validation",
        "best of the five on test",
        "bytes, of LoRA's",
        "aim met",
    ]
    note = (
        "The aim: the method that is best on validation is at least as good on test as LoRA's mean, with fewer bytes. "
        "The best on test is chosen by the test itself and shown for orientation."
    )
    return "\n\n".join(["### The best of the five against LoRA", note, _table(head, rows)])


def _against_lora(runs: dict[str, Counted]) -> list[str]:
    lora, five = runs["lora"], [runs[name] for name in FIVE if name in runs]
    best, top = (max(five, key=lambda one: _mean(one, split)) for split in ("validation", "test"))
    share = best[0]["bytes"] / lora[0]["bytes"]
    met = _mean(best, "test") >= _mean(lora, "test") and share < 1
    return [
        lora[0]["key"]["set"],
        f"{_mean(lora, 'test'):.3f}",
        f"{SHOWN[best[0]['key']['contender']]} {_mean(best, 'test'):.3f}",
        f"{SHOWN[top[0]['key']['contender']]} {_mean(top, 'test'):.3f}",
        f"{share:.0%}",
        "yes" if met else "no",
    ]


def _conditions(run: Line) -> str:
    plan, place = run["key"]["plan"], run["where"]
    versions = ", ".join(f"{name} {place[name]}" for name in ("torch", "transformers", "peft", "scikit-learn"))
    return (
        f"{plan['epochs']} epochs of batches of {plan['batch_size']}, AdamW, linear decay after {plan['warmup']:.0%} "
        f"warmup, clipping at {plan['clip']:g}, head's rate {plan['head_rate']:g}, {plan['precision']}; the best epoch "
        f"on validation is kept. {place['machine']}, {place['threads']} thread(s), {versions}, {run['date']}."
    )


def _mean(runs: Counted, name: str) -> float:
    return mean(run[name] for run in runs)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
