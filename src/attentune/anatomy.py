"""Where things sit in a transformer: names as data, one row per `config.model_type`.

Letters, everywhere in this library: B rows, T positions, D hidden width, E embedding width, H heads, d head width,
m prompt length, R rows of parameters (1 or B), K tasks in a stack, S special-token slots.

Every path is relative to the stack (the module that owns the blocks), block paths relative to one block. What is not in
the table is refused with a sentence that names what is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from attentune.errors import ConfigError, UnsupportedError

Positions = Literal["index", "padding", "table", "relative"]


@dataclass(frozen=True)
class Place:
    """One place inside a block."""

    path: str
    """The module, relative to the block; "" is the block itself."""
    part: tuple[int, int] = (0, 1)
    """(i, n): the i-th of n equal parts of the last axis, where one projection makes several things."""
    residual: str = ""
    """The module's output lacks the residual: the place is this other place's value plus that output."""
    time_first: bool = False
    """The module sees [T,B,D]."""


@dataclass(frozen=True)
class Anatomy:
    """One stack of blocks."""

    blocks: str
    """The ModuleList of blocks."""
    entry: str
    """The module in a block that is first given the block's input. What enters a block is read there, for hooks on the
    block itself stand outside gradient checkpointing and are not run again."""
    embed: str
    """The word embeddings, [B,T] -> [B,T,E]."""
    places: Mapping[str, Place]
    """Site name -> place in a block, for every site that is inside blocks."""
    positions: Positions = "index"
    """How positions are told: "index" position_ids from 0; "padding" from pad_token_id + 1 with pads at pad_token_id;
    "table" to the module `embed_positions`; "relative" nothing to tell."""
    stack: str = ""
    """Path of the stack relative to the backbone; "" where the backbone is the stack."""
    specials: tuple[str | int, ...] = ()
    """The special tokens: ids, or names of config fields that hold them."""
    causal: bool = False
    prompts: bool = True
    """Rows may be put in front of this stack (false for the decoders of encoder-decoders)."""
    strip: Literal["block", "output"] = "block"
    """Where prompt rows leave: after the last block (a pooler follows inside the backbone) or on the stack's output."""
    by_index: bool = False
    """Distances or windows are counted by index, so that a gap between prompt and text would change them."""
    global_mask: bool = False
    """Longformer: a global attention mask goes with the tokens."""
    sliding: bool = False
    """ModernBERT: some layers see a window only; prompt rows are made visible in it."""
    rotary: bool = False
    """Positions are rotations: no table that a longer sequence overflows."""
    interface: bool = False
    """Self-attention goes through transformers' AttentionInterface, so keys and values can be put in front."""
    attention: str = ""
    """The self-attention module that calls the interface, relative to the block."""
    shared_position_projections: bool = False
    """DeBERTa: query and key projections are called again on relative embeddings [1,P,D]."""
    pad_offset: int | None = None
    """MPNet: the padding index of the position table, whatever the config's pad_token_id."""
    sizes: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    """Config fields that differ for this stack: "layers", "heads"."""

    def block_path(self, index: int, path: str = "") -> str:
        """Path of a module of block `index`, relative to the stack."""
        return ".".join(part for part in (self.blocks, str(index), path) if part)

    def layers(self, config: Any) -> int:
        """How many blocks."""
        return int(getattr(config, self.sizes.get("layers", "num_hidden_layers")))

    def heads(self, config: Any) -> int:
        """H."""
        return int(getattr(config, self.sizes.get("heads", "num_attention_heads")))

    def pad(self, config: Any) -> int:
        """The position of padding where positions are counted from it."""
        return self.pad_offset if self.pad_offset is not None else int(config.pad_token_id)


def _projections(attention: str, query: str, key: str, value: str, output: str, **place: Any) -> dict[str, Place]:
    return {
        "query": Place(f"{attention}{query}", **place),
        "key": Place(f"{attention}{key}", **place),
        "value": Place(f"{attention}{value}", **place),
        "context": Place(output),
        "output": Place(output),
        "block_input": Place(""),
    }


def _fused(module: str, output: str) -> dict[str, Place]:
    parts = {name: Place(module, part=(i, 3)) for i, name in enumerate(("query", "key", "value"))}
    return {**_projections("", "", "", "", output), **parts}


def _around(attention: str, feed_forward: str, residual: bool = False) -> dict[str, Place]:
    """The residual stream after the attention and after the block: modules that hold it, or that lack the residual."""
    return {
        "attention_output": Place(attention, residual="block_input" if residual else ""),
        "block_output": Place(feed_forward, residual="attention_output" if residual else ""),
    }


_BERT = Anatomy(
    blocks="encoder.layer",
    entry="attention",
    embed="embeddings.word_embeddings",
    places={
        **_projections("attention.self.", "query", "key", "value", "attention.output.dense"),
        **_around("attention", "output"),
    },
    specials=(101, 102),
    interface=True,
    attention="attention.self",
)
_ROBERTA = replace(_BERT, positions="padding", specials=("bos_token_id", "eos_token_id"))
_LLAMA = Anatomy(
    blocks="layers",
    entry="input_layernorm",
    embed="embed_tokens",
    places={
        **_projections("self_attn.", "q_proj", "k_proj", "v_proj", "self_attn.o_proj"),
        **_around("self_attn", "mlp", residual=True),
    },
    specials=("bos_token_id", "eos_token_id"),
    causal=True,
    strip="output",
    rotary=True,
    interface=True,
    attention="self_attn",
)
_T5 = Anatomy(
    stack="encoder",
    blocks="block",
    entry="layer.0",
    embed="embed_tokens",
    places={
        **_projections("layer.0.SelfAttention.", "q", "k", "v", "layer.0.SelfAttention.o"),
        **_around("layer.0", "layer.1"),
    },
    positions="relative",
    strip="output",
    by_index=True,
)
_BART = Anatomy(
    stack="encoder",
    blocks="layers",
    entry="self_attn",
    embed="embed_tokens",
    places={
        **_projections("self_attn.", "q_proj", "k_proj", "v_proj", "self_attn.out_proj"),
        **_around("self_attn_layer_norm", "final_layer_norm"),
    },
    positions="table",
    specials=("bos_token_id", "eos_token_id"),
    strip="output",
    interface=True,
    attention="self_attn",
)

ANATOMIES: dict[str, tuple[Anatomy, ...]] = {
    "bert": (_BERT,),
    "roberta": (_ROBERTA,),
    "xlm-roberta": (_ROBERTA,),
    "electra": (_BERT,),
    "big_bird": (replace(_BERT, specials=(65, 66), interface=False),),
    "distilbert": (
        replace(
            _BERT,
            blocks="transformer.layer",
            places={
                **_projections("attention.", "q_lin", "k_lin", "v_lin", "attention.out_lin"),
                **_around("sa_layer_norm", "output_layer_norm"),
            },
            strip="output",
            attention="attention",
        ),
    ),
    "mpnet": (
        replace(
            _BERT,
            places={
                **_projections("attention.attn.", "q", "k", "v", "attention.attn.o"),
                **_around("attention", "output"),
            },
            positions="padding",
            pad_offset=1,
            specials=("bos_token_id", "eos_token_id"),
            by_index=True,
            interface=False,
        ),
    ),
    "deberta-v2": (
        replace(
            _BERT,
            places={
                **_projections("attention.self.", "query_proj", "key_proj", "value_proj", "attention.output.dense"),
                **_around("attention", "output"),
            },
            specials=(1, 2),
            strip="output",
            by_index=True,
            interface=False,
            shared_position_projections=True,
        ),
    ),
    "modernbert": (
        replace(
            _BERT,
            blocks="layers",
            embed="embeddings.tok_embeddings",
            entry="attn_norm",
            places={**_fused("attn.Wqkv", "attn.Wo"), **_around("attn", "mlp", residual=True)},
            specials=("cls_token_id", "sep_token_id"),
            strip="output",
            by_index=True,
            sliding=True,
            rotary=True,
            attention="attn",
        ),
    ),
    "longformer": (
        replace(
            _ROBERTA,
            places={
                **_BERT.places,
                **{name: replace(_BERT.places[name], time_first=True) for name in ("query", "key", "value")},
            },
            by_index=True,
            global_mask=True,
            interface=False,
        ),
    ),
    "t5": (
        _T5,
        replace(
            _T5,
            places={**_T5.places, **_around("layer.0", "layer.2")},
            stack="decoder",
            causal=True,
            prompts=False,
            sizes={"layers": "num_decoder_layers"},
        ),
    ),
    "bart": (
        replace(_BART, sizes={"layers": "encoder_layers", "heads": "encoder_attention_heads"}),
        replace(
            _BART,
            stack="decoder",
            causal=True,
            prompts=False,
            sizes={"layers": "decoder_layers", "heads": "decoder_attention_heads"},
        ),
    ),
    "gpt2": (
        replace(
            _LLAMA,
            blocks="h",
            embed="wte",
            entry="ln_1",
            places={**_fused("attn.c_attn", "attn.c_proj"), **_around("attn", "mlp", residual=True)},
            rotary=False,
            attention="attn",
        ),
    ),
    "llama": (_LLAMA,),
    "qwen2": (_LLAMA,),
    "qwen3": (_LLAMA,),
}


def register_architecture(model_type: str, *stacks: Anatomy) -> None:
    """Make an architecture known: its stacks, of an encoder-decoder the encoder's first.

    Raises:
        ConfigError: the model type has another row already, no stack is given, or a stack does not name every site.
    """
    if ANATOMIES.get(model_type, stacks) != stacks:
        raise ConfigError(f"model type {model_type!r} has a row already; known are {', '.join(sorted(ANATOMIES))}")
    if not stacks:
        raise ConfigError(f"a row for {model_type!r} has one stack of blocks, or two; found none")
    for stack in stacks:
        if odd := sorted(set(_BERT.places) ^ set(stack.places)):
            raise ConfigError(
                f"a stack names the places {', '.join(_BERT.places)}; missing or unknown are {', '.join(odd)}"
            )
    ANATOMIES[model_type] = stacks


def anatomies_of(config: Any) -> tuple[Anatomy, ...]:
    """The stacks of an architecture.

    Raises:
        UnsupportedError: the table has no row for `config.model_type`, or a variant of it is not supported.
    """
    kind = getattr(config, "model_type", None)
    if kind not in ANATOMIES:
        raise UnsupportedError(f"no anatomy for model type {kind!r}; attentune knows {', '.join(sorted(ANATOMIES))}")
    if kind == "big_bird" and config.attention_type != "original_full":
        raise UnsupportedError(
            f"BigBird with attention_type={config.attention_type!r} is not supported; "
            "load it with attention_type='original_full'"
        )
    stacks = ANATOMIES[kind]
    if getattr(config, "is_decoder", False) and len(stacks) == 1:
        stacks = tuple(replace(stack, causal=True) for stack in stacks)
    return stacks


def max_length(config: Any) -> int | None:
    """How many positions the backbone has room for, prompt rows included; None where there is no limit."""
    anatomy = anatomies_of(config)[0]
    limit = getattr(config, "max_position_embeddings", None)
    if anatomy.positions == "relative" or limit is None:
        return None
    return int(limit) - anatomy.pad(config) - 1 if anatomy.positions == "padding" else int(limit)


def backbone_of(model: nn.Module) -> tuple[str, nn.Module]:
    """("roberta", RobertaModel) for a RobertaForX; ("", model) for a bare backbone."""
    prefix = getattr(model, "base_model_prefix", "")
    if prefix and hasattr(model, prefix):
        return prefix, getattr(model, prefix)
    return "", model


def stacks_of(model: nn.Module) -> list[tuple[str, nn.Module, Anatomy]]:
    """Every stack of a model: (path in the model, module, anatomy).

    Raises:
        UnsupportedError: the architecture is not in the table, or the model lacks the modules that its row names.
    """
    prefix, backbone = backbone_of(model)
    found: list[tuple[str, nn.Module, Anatomy]] = []
    for anatomy in anatomies_of(getattr(model, "config", None)):
        if anatomy.stack and hasattr(backbone, anatomy.stack):
            path = ".".join(part for part in (prefix, anatomy.stack) if part)
            found.append((path, getattr(backbone, anatomy.stack), anatomy))
        elif hasattr(backbone, anatomy.blocks.split(".")[0]) and anatomy.causal == _is_decoder(backbone):
            found.append((prefix, backbone, anatomy))
    if not found:
        raise UnsupportedError(
            f"{type(model).__name__} does not hold the blocks that its model type names; "
            f"attentune knows {', '.join(sorted(ANATOMIES))}"
        )
    return found


def _is_decoder(stack: nn.Module) -> bool:
    config: Any = getattr(stack, "config", None)
    name = type(stack).__name__
    if getattr(config, "model_type", "") in ("t5", "bart"):
        return bool(getattr(stack, "is_decoder", False)) or name.endswith("Decoder")
    return anatomies_of(config)[0].causal
