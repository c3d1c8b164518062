"""What one adapter costs: forward against the bare backbone, a training step and its memory against peft's LoRA.

    python benchmarks/overheads.py            # some twenty minutes on one core
    python benchmarks/overheads.py --quick

All contenders get the same random tokens in turn, A B C A B C, in float32, after a warm-up of each; ratios are medians
over turns. Backbones are BERTs with random weights of the sizes of MiniLM-L6, base and large. A training step is loss,
gradients and AdamW. Memory is that of the tensors which autograd keeps for the backward pass, beside the parameters.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from many import in_turn, ratio
from methods import RESULTS, where
from torch import Tensor, nn
from transformers import BertConfig, BertModel, logging

from attentune.backbones import load_backbone, load_tokenizer
from attentune.comparison.contenders import build, contender, recipe_for
from attentune.comparison.plan import Conditions
from attentune.methods import METHODS
from attentune.tasks import Classification

SIZES = {"small": (384, 6, 12), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""Hidden size, layers, heads."""
PLACES = (("small", 64, 16), ("small", 512, 2), ("small", 4096, 1), ("base", 64, 8), ("base", 512, 1), ("large", 64, 4))
"""Size, T, B."""
OTHERS = ("lora", "prefix_tuning", "prompt_tuning", "full")
PROMPTS = {"prefix_propagation", "attempt", "prompt_tuning"}
"""They lengthen the sequence, and are measured against the backbone at T + m, too."""
TASK = Classification(("a", "b", "c", "d"))
Batch = dict[str, Tensor]


def backbone(size: str, length: int) -> Any:
    """A BERT with random weights and room for T + 32 positions."""
    hidden, layers, heads = SIZES[size]
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=max(length + 32, 512),
    )
    return BertModel(config, add_pooling_layer=False).eval()


def tokens(rows: int, length: int) -> Batch:
    """Random words between [CLS] and [SEP]."""
    ids = torch.randint(1000, 30000, (rows, length), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, -1] = 101, 102
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def contenders(names: list[str], size: str, length: int) -> dict[str, nn.Module]:
    """Each on a backbone of its own."""
    tokenizer = load_tokenizer("minilm", load_backbone("minilm"))
    found: dict[str, nn.Module] = {}
    for name in names:
        recipe = recipe_for(name, "classification", False, Conditions(max_length=length))
        found[name] = build(name, backbone(size, length), tokenizer, TASK, recipe).model.eval()
    return found


def measure(size: str, length: int, rows: int, names: list[str], rounds: int) -> list[dict[str, Any]]:
    """A line a contender."""
    models, batch = contenders(names, size, length), tokens(rows, length)
    bare = backbone(size, length)
    wide = tokens(rows, length + 8)
    forwards: dict[str, Callable[[int], Any]] = {
        "bare": lambda _: bare(**batch),
        "bare at T + m": lambda _: bare(**wide),
        **{name: lambda _, model=model: model(**batch) for name, model in models.items()},
    }
    if "kernel_mix" in models:
        merged: Any = contenders(["kernel_mix"], size, length)["kernel_mix"]
        merged.merge_adapter()
        forwards["kernel_mix, merged"] = lambda _: merged(**batch)
    with torch.inference_mode():
        forward = in_turn(forwards, rounds)
    steps = {name: step_of(model.train(), batch) for name, model in models.items()}
    kept = {name: kept_bytes(step) for name, step in steps.items()}
    step = in_turn(steps, rounds)
    lines: list[dict[str, Any]] = []
    for name in forwards:
        reference = "bare at T + m" if name in PROMPTS else "bare"
        line: dict[str, Any] = {"size": size, "T": length, "B": rows, "contender": name}
        line["forward ms"] = 1000 * median(forward[name])
        line["forward / bare"] = ratio(forward[name], forward["bare"])
        line["forward / bare at T + m"] = ratio(forward[name], forward[reference])
        if name in step:
            line["step ms"] = 1000 * median(step[name])
            line["step / LoRA"] = ratio(step[name], step["lora"])
            line["kept MB"] = kept[name] / 1e6
            line["kept / LoRA"] = kept[name] / kept["lora"]
        lines.append(line)
    return lines


def step_of(model: nn.Module, batch: Batch) -> Callable[[int], None]:
    """One training step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4)
    labels = torch.arange(len(batch["input_ids"])) % TASK.num_outputs

    def step(_: int) -> None:
        loss = nn.functional.cross_entropy(model(**batch).logits, labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def kept_bytes(step: Callable[[int], None]) -> int:
    """Of the tensors that autograd keeps, storage by storage; those of parameters do not count."""
    seen: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter) and not (x._base is not None and isinstance(x._base, nn.Parameter)):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        step(0)
    return sum(seen.values())


def markdown(results: dict[str, Any]) -> str:
    """A table a size and length."""
    text = ["# Measured: what one adapter costs", "", " ".join((__doc__ or "").split("\n\n")[2].split()), ""]
    rows: list[dict[str, Any]] = results["rows"]
    for place in dict.fromkeys((row["size"], row["T"], row["B"]) for row in rows):
        some = [row for row in rows if (row["size"], row["T"], row["B"]) == place]
        columns = [name for name in max(some, key=len) if name not in ("size", "T", "B", "contender")]
        text += [f"### {place[0]}, T = {place[1]:,}, B = {place[2]}", ""]
        text += [f"| contender | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
        for row in some:
            cells = [f"{row[name]:.3g}" if name in row else "" for name in columns]
            text.append(f"| {shown(row['contender'])} | {' | '.join(cells)} |")
        text.append("")
    about = results["where"]
    text += [f"{about['machine']}, {about['threads']} thread(s), torch {about['torch']}, transformers "]
    text[-1] += f"{about['transformers']}, peft {about['peft']}, {results['date']}."
    return "\n".join(text) + "\n"


def shown(name: str) -> str:
    """A contender for people."""
    if name.startswith("bare"):
        return name
    first, comma, rest = name.partition(",")
    return contender(first).shown + comma + rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one size, two methods, nothing is written")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(given.threads)
    places, names = PLACES, [*METHODS, *OTHERS]
    if given.quick:
        places, names, given.rounds = PLACES[:1], ["pasta", "kernel_mix", "lora"], 3
    rows: list[dict[str, Any]] = []
    for size, length, count in places:
        rows += measure(size, length, count, names, given.rounds)
        print(json.dumps(rows[-len(names) :]), file=sys.stderr)
    results = {"where": where(), "date": time.strftime("%Y-%m-%d %H:%M"), "rows": rows}
    print(markdown(results))
    if not given.quick:
        (RESULTS / "overheads.json").write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "overheads.md").write_text(markdown(results))


if __name__ == "__main__":
    main()
