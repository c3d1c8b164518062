"""A LoRA adapter of peft -> an adapter folder of attentune, which every batch, bank and server can hold.

LoRA adds alpha / r * B A x to a projection (Hu et al., 2022, arXiv:2106.09685, equation 3): the shared part of
Kernel-mix. So q, k, v and the output projection of attention become Kernel-mix with shared ranks alone, and the answers
are those of peft, to rounding. A head in `modules_to_save` becomes the task's head where it is one linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model
from peft.utils.other import get_pattern_key
from torch import Tensor
from transformers import PreTrainedModel

from attentune import store
from attentune.anatomy import max_length, stacks_of
from attentune.backbones import fingerprint, hub_id, load_backbone, revision
from attentune.card import Backbone, TaskCard
from attentune.errors import ConfigError, StoreError, UnsupportedError
from attentune.heads import HeadConfig
from attentune.method import Site
from attentune.methods.kernel_mix import KernelMixConfig
from attentune.model import TaskModel
from attentune.sites import SiteLayer
from attentune.tasks import Classification, Tagging
from attentune.tasks.columns import Columns

PREFIX = "base_model.model."
LETTERS = {Site.QUERY: "q", Site.KEY: "k", Site.VALUE: "v", Site.OUTPUT: "o"}
LONGEST = 512
"""Tokens of a text where the backbone itself knows no limit."""

HEADS = {
    "classifier": ("bert",),
    "tags": (
        "bert",
        "roberta",
        "xlm-roberta",
        "electra",
        "distilbert",
        "deberta-v2",
        "mpnet",
        "big_bird",
    ),
    "score": ("gpt2", "llama", "qwen2", "qwen3"),
}
"""Model types whose head in transformers is one linear layer: on the pooler, on every token, on the last token."""

STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base as it is; the others (pissa, olora, loftq ...) put a part of its
weights into the adapter, and peft takes it out of the base again when it loads one."""

Change = tuple[Tensor, Tensor]
"""a [r,in] and b [out,r], the scale in b."""


def adopt(
    folder: str | Path,
    output: str | Path,
    labels: Sequence[str],
    backbone: str | None = None,
    kind: str = "classification",
    pair: bool = False,
) -> Path:
    """Write the adapter folder of a peft LoRA adapter of an encoder or decoder with a classification head.

    `labels` are the classes in the order of the head's outputs; `kind` is classification or tagging; `backbone` names
    another place to load the adapter's base from.

    Raises:
        UnsupportedError: it is no LoRA, changes anything but q, k, v and o, its head is more than one linear layer, or
            Longformer tags.
        ConfigError: another kind, other labels than the head has outputs, or `output` is `folder`.
        StoreError: the folder is incomplete or does not fit the backbone.
    """
    if kind not in ("classification", "tagging"):
        raise ConfigError(f"an adopted adapter is for classification (of texts or pairs) or tagging, found {kind!r}")
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ConfigError(f"two classes are named {twice!r}; each output of the head has its own name")
    target = store.check_writable(output)
    if target.resolve() == Path(folder).expanduser().resolve():
        raise ConfigError(f"{output} is the LoRA adapter itself, which stays as it is; name another output")
    config, tensors = _read(Path(folder))
    name = backbone or config.base_model_name_or_path
    if not name:
        raise ConfigError("the adapter does not say which base model it belongs to; name the backbone")
    base = load_backbone(name)
    origin = Backbone(hub_id(name), fingerprint(base), revision(base))
    changes = _changes(base, config, tensors)
    head, weight, bias = _head(base, tensors, kind, len(labels))
    parts = "".join(letter for site, letter in LETTERS.items() if any(s == site for s, _ in changes))
    ranks = {site: a.shape[0] for (site, _), (a, _) in changes.items()}
    model: Any = get_peft_model(cast("Any", TaskModel(base)), _config(changes, parts, head))
    with torch.no_grad():
        for layer in (m for m in model.modules() if isinstance(m, SiteLayer)):
            _fill(layer.tensors("default"), changes.get((layer.site, layer.index)))
        heads = model.base_model.model.heads.head_kernel_mix
        heads.out_weight["default"].copy_(weight)
        heads.out_bias["default"].copy_(bias)
    model.peft_config["default"].base_model_name_or_path = origin.id
    task = Classification(tuple(labels), pair) if kind == "classification" else Tagging(tuple(labels))
    columns = Columns(("text", "text_pair") if pair else ("tokens",) if kind == "tagging" else ("text",), "label")
    limit = max_length(base.config) or LONGEST
    card = TaskCard(target.name, "kernel_mix", task, columns, origin, limit, head.pooling)
    note = f"# Adopted from a LoRA adapter of peft with ranks {sorted(set(ranks.values()))}.\n"
    return store.write(target, model, card, note, {})


def _read(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    if not (folder / store.CONFIG).is_file() or not (folder / store.WEIGHTS).is_file():
        raise StoreError(f"{folder} is no adapter of peft: wanted are {store.CONFIG} and {store.WEIGHTS}")
    config = store.peft_config(folder)
    if not isinstance(config, LoraConfig):
        raise UnsupportedError(f"{folder} holds a {config.peft_type} adapter; LoRA is what can be adopted")
    variants = [field.name for field in fields(config) if field.metadata.get("is_lora_variant")]
    names = dict.fromkeys(["use_dora", "layer_replication", "lora_bias", "fan_in_fan_out", *variants])
    odd = [name for name in names if getattr(config, name, None)]
    if config.bias != "none":
        odd.append(f"bias={config.bias!r}")
    if config.init_lora_weights not in STARTS:
        odd.append(f"init_lora_weights={config.init_lora_weights!r}")
    if odd:
        raise UnsupportedError(f"a LoRA with {', '.join(odd)} cannot be adopted; plain LoRA and rsLoRA can")
    return config, store.tensors(folder)[0]


def _changes(
    base: PreTrainedModel, config: LoraConfig, tensors: Mapping[str, Tensor]
) -> dict[tuple[Site, int], Change]:
    """(site, block) -> what LoRA adds there."""
    places = _places(base)
    found: dict[tuple[Site, int], Change] = {}
    for name, a in tensors.items():
        if ".lora_" in name and not name.endswith((".lora_A.weight", ".lora_B.weight")):
            raise UnsupportedError(f"{name} is no plain LoRA matrix of a linear layer")
        if name.endswith(".lora_B.weight") and name.replace(".lora_B.", ".lora_A.") not in tensors:
            raise StoreError(f"the adapter has {name} and no matrix A beside it")
        if not name.endswith(".lora_A.weight"):
            continue
        path = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        inner = next((p for p in places if path == p or path.endswith(f".{p}")), None)
        if inner is None:
            raise UnsupportedError(
                f"LoRA on {path}: what can be adopted is q, k, v and the output projection of attention"
            )
        b = tensors.get(name.replace(".lora_A.", ".lora_B."))
        if b is None:
            raise StoreError(f"the adapter has {name} and no matrix B beside it")
        b = b.float() * _scale(config, path, a.shape[0])
        found[places[inner]] = (a.float(), b)
    if not found:
        raise StoreError("the adapter holds no LoRA matrices")
    return found


def _places(base: PreTrainedModel) -> dict[str, tuple[Site, int]]:
    """Path of a projection in the backbone -> (site, block)."""
    found: dict[str, tuple[Site, int]] = {}
    for at, module, anatomy in stacks_of(base):
        config = getattr(module, "config", None) or base.config
        for index in range(anatomy.layers(config)):
            for site in LETTERS:
                place = anatomy.places[site]
                path = ".".join(part for part in (at, anatomy.block_path(index, place.path)) if part)
                if place.part == (0, 1):
                    found[path] = (site, index)
    return found


def _scale(config: LoraConfig, path: str, rank: int) -> float:
    alphas: Any = config.alpha_pattern or {}
    alpha = alphas.get(get_pattern_key(list(alphas), path), config.lora_alpha)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _config(changes: Mapping[tuple[Site, int], Change], parts: str, head: HeadConfig) -> KernelMixConfig:
    """Kernel-mix with shared ranks alone: the largest of q and k, and of v and o; zeros fill up smaller ones."""

    def largest(sites: tuple[Site, Site]) -> int:
        return max([a.shape[0] for (site, _), (a, _) in changes.items() if site in sites], default=0)

    return KernelMixConfig(
        head=cast("Any", head),
        parts=parts,
        q_rank=0,
        v_rank=0,
        q_shared_rank=largest((Site.QUERY, Site.KEY)),
        v_shared_rank=largest((Site.VALUE, Site.OUTPUT)),
        v_base="X",
        biases=False,
        dropout=0.0,
    )


def _fill(p: Mapping[str, Tensor], change: Change | None) -> None:
    for value in p.values():
        value.zero_()
    if change is not None:
        a, b = change
        if a.shape[1] != p["shared_a"].shape[1] or b.shape[0] != p["shared_b"].shape[0]:
            raise StoreError(f"the adapter does not fit this backbone: a LoRA matrix reads {a.shape[1]} numbers")
        p["shared_a"][: a.shape[0]].copy_(a)
        p["shared_b"][:, : b.shape[1]].copy_(b)


def _head(
    base: PreTrainedModel, tensors: Mapping[str, Tensor], kind: str, labels: int
) -> tuple[HeadConfig, Tensor, Tensor]:
    """The head of `modules_to_save`, where it is one linear layer: (config, weight [C,D], bias [C])."""
    saved = {name.removeprefix(PREFIX): value for name, value in tensors.items() if ".lora_" not in name}
    layers = [
        name.removesuffix(".weight") for name, value in saved.items() if name.endswith(".weight") and value.dim() == 2
    ]
    if len(layers) != 1 or layers[0] not in ("classifier", "score"):
        found = ", ".join(sorted(saved)) or "none"
        raise UnsupportedError(
            "a head that can be adopted is one linear layer, `classifier` or `score`, in modules_to_save; found "
            f"{found}"
        )
    rest = sorted(saved.keys() - {f"{layers[0]}.weight", f"{layers[0]}.bias"})
    if rest:
        raise UnsupportedError(
            f"the adapter holds {len(rest)} tensors besides LoRA and its head, {rest[0]} first, which cannot be adopted"
        )
    weight = saved[f"{layers[0]}.weight"].float()
    if len(weight) != labels:
        raise ConfigError(f"the head has {len(weight)} outputs and {labels} labels were named")
    bias = saved.get(f"{layers[0]}.bias", torch.zeros(labels)).float()
    form = "tags" if kind == "tagging" else layers[0]
    if (form, base.config.model_type) == ("tags", "longformer"):
        raise UnsupportedError(
            "transformers' Longformer has no global attention when it tags, and here its first token always has it: an "
            "adopted adapter would give other answers; train anew"
        )
    if base.config.model_type not in HEADS[form]:
        raise UnsupportedError(
            f"the {kind} head of {base.config.model_type} is more than one linear layer; heads that can be adopted are "
            f"those of {', '.join(HEADS[form])}"
        )
    if kind == "tagging":
        return HeadConfig("token", labels), weight, bias
    return HeadConfig("sequence", labels, "pooler" if form == "classifier" else "last"), weight, bias
