"""What one adapter costs: forward against the bare backbone, a training step and its memory against peft's LoRA.

    python benchmarks/overheads.py            # two hours on one core, most of it large and rows of 4,096
    python benchmarks/overheads.py --quick
    python benchmarks/overheads.py --places small-512

All contenders get the same random tokens in turn, A B C A B C, in float32, after a warm-up of each; ratios are medians
over turns, of processor time; freed memory stays with the process, as in the commands. Backbones are BERTs with random
weights of the sizes of MiniLM-L6, base and large, with no dropout of attention weights. A training step is loss,
gradients and AdamW; those that put m rows in front are measured against LoRA on the same T tokens, and on T + m of
them. Memory is that of the tensors that autograd keeps for the backward pass, beside the parameters.
Rows of 4,096 tokens have the recipes of long documents; there, four blocks stand for all of the larger sizes.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from statistics import median
from typing import Any

import torch
from many import in_turn, ratio
from pages import RESULTS, Row, closing, date_of, opening, save, stamp
from torch import Tensor, nn
from transformers import BertConfig, BertModel, logging

from attentune.allocator import keep_freed_memory
from attentune.backbones import load_backbone, load_tokenizer
from attentune.comparison.contenders import build, contender, recipe_for
from attentune.comparison.plan import Conditions
from attentune.methods import METHODS
from attentune.model import twin
from attentune.tasks import Classification

SIZES = {
    "small": (384, 6, 12),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "base, 4 blocks": (768, 4, 12),
    "large, 4 blocks": (1024, 4, 16),
}
"""Hidden size, layers, heads; all blocks cost the same, so that four of them tell the ratios of long rows."""
PEERS = ("lora", "prefix_tuning", "prompt_tuning", "full")
PLACES = {
    "small-64": ("small", 64, 16),
    "small-512": ("small", 512, 2),
    "base-64": ("base", 64, 8),
    "base-512": ("base", 512, 1),
    "large-64": ("large", 64, 4),
    "large-512": ("large", 512, 1),
    "small-4096": ("small", 4096, 1),
    "base-4096": ("base, 4 blocks", 4096, 1),
    "large-4096": ("large, 4 blocks", 4096, 1),
}
"""Size, T, B."""
LONG = 4096
"""At this length rounds are a third, and recipes are those of long documents."""
PROMPTS = {"prefix_propagation", "attempt", "prompt_tuning"}
"""They lengthen the sequence, and are measured against the backbone and LoRA at T + m, too."""
LONGER = "lora at T + m"
WARM = 2
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
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(config, add_pooling_layer=False).eval()


def tokens(rows: int, length: int) -> Batch:
    """Random words between [CLS] and [SEP]."""
    ids = torch.randint(1000, 30000, (rows, length), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, -1] = 101, 102
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def contenders(names: Sequence[str], base: Any, length: int) -> dict[str, nn.Module]:
    """Each over the same weights, but for full fine-tuning, which changes them."""
    tokenizer = load_tokenizer("minilm", load_backbone("minilm"))
    found: dict[str, nn.Module] = {}
    for name in names:
        kind = "long_documents" if length >= LONG else "classification"
        recipe = recipe_for(name, kind, False, Conditions(max_length=length))
        own: Any = deepcopy(base) if name == "full" else twin(base)
        found[name] = build(name, own, tokenizer, TASK, recipe).model.eval()
    return found


def measure(size: str, length: int, rows: int, names: Sequence[str], rounds: int) -> list[Row]:
    """A line a contender."""
    bare = backbone(size, length)
    models, batch = contenders(names, bare, length), tokens(rows, length)
    wide = tokens(rows, length + 8)
    forwards: dict[str, Callable[[int], Any]] = {
        "bare": lambda _: bare(**batch),
        "bare at T + m": lambda _: bare(**wide),
        **{name: lambda _, model=model: model(**batch) for name, model in models.items()},
    }
    if "kernel_mix" in models:
        merged: Any = contenders(["kernel_mix"], deepcopy(bare), length)["kernel_mix"]
        merged.merge_adapter()
        forwards["kernel_mix, merged"] = lambda _: merged(**batch)
    with torch.inference_mode():
        forward = in_turn(forwards, rounds, WARM, time.process_time)
    steps = {name: step_of(model.train(), batch) for name, model in models.items()}
    steps[LONGER] = step_of(models["lora"], wide)
    kept = {name: kept_bytes(step) for name, step in steps.items()}
    step = in_turn(steps, rounds, WARM, time.process_time)
    lines: list[Row] = []
    for name in forwards | steps:
        reference = "bare at T + m" if name in PROMPTS else "bare"
        line: Row = {"size": size, "T": length, "B": rows, "contender": name}
        if name in forward:
            line["forward ms"] = 1000 * median(forward[name])
            line["forward / bare"] = ratio(forward[name], forward["bare"])
            line["forward / bare at T + m"] = ratio(forward[name], forward[reference])
        if name in step:
            line["step ms"] = 1000 * median(step[name])
            line["step / LoRA"] = ratio(step[name], step["lora"])
            if name in PROMPTS:
                line["step / LoRA at T + m"] = ratio(step[name], step[LONGER])
            line["kept MB"] = kept[name] / 1e6
            line["kept / LoRA"] = kept[name] / kept["lora"]
        lines.append(line)
    return lines


def step_of(model: nn.Module, batch: Batch) -> Callable[[int], None]:
    """One training step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=True)
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
    text = opening("what one adapter costs", __doc__)
    rows: list[Row] = results["rows"]
    for place in dict.fromkeys(map(place_of, rows)):
        some = [row for row in rows if place_of(row) == place]
        columns = [name for name in max(some, key=len) if name not in ("size", "T", "B", "contender")]
        size, length, count = PLACES[place]
        text += [f"### {size}, T = {length:,}, B = {count}", "", f"{date_of(results, place)}.", ""]
        text += [f"| contender | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
        for row in some:
            cells = [f"{row[name]:.3g}" if name in row else "" for name in columns]
            text.append(f"| {shown(row['contender'])} | {' | '.join(cells)} |")
        text.append("")
    return "\n".join([*text, closing(results)]) + "\n"


def place_of(row: Row) -> str:
    """The key of `PLACES` that a row is of."""
    return f"{row['size'].partition(',')[0]}-{row['T']}"


def shown(name: str) -> str:
    """A contender for people, with what the name says of how it was measured."""
    if name.startswith("bare"):
        return name
    first = re.split(r"[ ,]", name)[0]
    return contender(first).shown + name.removeprefix(first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one size, three methods, nothing is written")
    parser.add_argument("--places", nargs="+", choices=list(PLACES), default=list(PLACES), help="the others stay")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    logging.set_verbosity_error()
    keep_freed_memory()
    torch.set_num_threads(given.threads)
    kept = RESULTS / "overheads.json"
    found: dict[str, list[Row]] = {}
    dates: dict[str, str] = {}
    if kept.is_file() and not given.quick:
        former = json.loads(kept.read_text())
        for row in former["rows"]:
            found.setdefault(place_of(row), []).append(row)
        dates = {place: date_of(former, place) for place in found}
    results = stamp()
    for place in given.places[:1] if given.quick else given.places:
        size, length, count = PLACES[place]
        rounds = 3 if given.quick else given.rounds // 3 if length == LONG else given.rounds
        names = ["pasta", "prefix_propagation", "kernel_mix", "lora"] if given.quick else [*METHODS, *PEERS]
        found[place], dates[place] = measure(size, length, count, names, rounds), results["date"]
        print(json.dumps(found[place]), file=sys.stderr)
        results |= {"dates": dates, "rows": [row for each in PLACES for row in found.get(each, [])]}
        if not given.quick:
            save("overheads", results, markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
