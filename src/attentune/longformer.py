"""An encoder of 512 positions -> the same encoder as a Longformer of thousands (Beltagy et al. 2020, section 5).

Beltagy, Peters, Cohan, "Longformer: The Long-Document Transformer", arXiv:2004.05150. The position table is copied end
to end until it is long enough, full attention becomes attention in a window, and the projections of tokens with global
attention start as copies of the ordinary ones. A token sees window / 2 tokens on either side, so a text of at most
window / 2 + 1 tokens gets the states of the original, with global attention or without.

Longformer counts positions from pad_token_id + 1. RoBERTa and XLM-R do so too; BERT and ELECTRA count from 0, so their
table moves down by pad_token_id + 1 rows. Token types, norms and the pooler (where there is one) are kept as they are.
"""

import os
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LongformerConfig, LongformerModel, PreTrainedModel, PreTrainedTokenizerBase

from attentune.backbones import hub_id, load_backbone, load_tokenizer, quiet
from attentune.errors import ConfigError, StoreError, UnsupportedError

LENGTHENED = {"bert": 0, "electra": 0, "roberta": None, "xlm-roberta": None}
"""model_type -> the row of the position table where texts begin; None: at pad_token_id + 1."""

KEPT = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "type_vocab_size", "initializer_range", "layer_norm_eps",
    "pad_token_id",
)  # fmt: skip
"""The config fields that a Longformer has too."""


def lengthen(model: str, to: int, output: str | Path | None = None, window: int = 512) -> Path:
    """Write `model` as a Longformer that reads `to` tokens: a transformers folder, for `backbone=` of everything here.

    Without `output` it is the model's last name and `-TO`, in the current folder: minilm-4096. `window` is how many
    tokens a token attends to, half of them on either side. The folder is written whole or not at all.

    Raises:
        UnsupportedError: the architecture has no such conversion.
        ConfigError: `to` is no gain, or the window is odd or wider than that.
        StoreError: there is something at `output` already.
    """
    target = Path(f"{_last_name(model)}-{to}" if output is None else output).expanduser().absolute()
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise StoreError(f"{output or target.name} exists; name a new folder")
    base = load_backbone(model)
    tokenizer = load_tokenizer(model)
    _check(base.config, to, window)
    longer = convert(base, tokenizer, to, window)
    longer.config.lengthened_from = hub_id(model)
    tokenizer.model_max_length = to
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    with quiet():
        longer.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    os.replace(fresh, target)
    return target


def convert(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, to: int, window: int) -> LongformerModel:
    """The Longformer of an encoder, in its precision; the tokenizer names the special tokens."""
    old: Any = base.config
    config: Any = LongformerConfig(
        **{name: getattr(old, name) for name in KEPT},
        attention_window=window,
        max_position_embeddings=to + old.pad_token_id + 1,
        bos_token_id=cast("int", tokenizer.cls_token_id),
        eos_token_id=cast("int", tokenizer.sep_token_id),
        sep_token_id=cast("int", tokenizer.sep_token_id),
    )
    found: dict[str, Tensor] = dict(base.state_dict())
    table = "embeddings.position_embeddings.weight"
    found[table] = longer_table(found[table], _first_row(old), old.pad_token_id, to)
    for key in [key for key in found if ".attention.self." in key]:
        path, _, kind = key.rpartition(".")
        found[f"{path}_global.{kind}"] = found[key]
    model: Any = LongformerModel(config, add_pooling_layer="pooler.dense.weight" in found)
    model = cast("LongformerModel", model.to(base.dtype))
    own = set(model.state_dict())
    model.load_state_dict({key: value for key, value in found.items() if key in own})
    return model.eval()


def longer_table(table: Tensor, first: int, pad: int, to: int) -> Tensor:
    """Position table [N,D] whose texts begin at row `first` -> [pad+1+to,D], its rows for texts repeated in blocks.

    The rows up to `pad` stand for padding, which nothing attends to.
    """
    texts = table[first:]
    blocks = -(-to // len(texts))
    return torch.cat([table[:1].expand(pad + 1, -1), texts.repeat(blocks, 1)[:to]])


def _last_name(model: str) -> str:
    """minilm, org/name or a folder -> minilm, name, the folder's own name, that of `.` too."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else path.name


def _first_row(config: Any) -> int:
    first = LENGTHENED[config.model_type]
    return config.pad_token_id + 1 if first is None else first


def _check(config: Any, to: int, window: int) -> None:
    kind = config.model_type
    if kind not in LENGTHENED:
        raise UnsupportedError(f"a {kind} model cannot be lengthened; those that can are {', '.join(LENGTHENED)}")
    if getattr(config, "embedding_size", config.hidden_size) != config.hidden_size:
        raise UnsupportedError(
            f"this {kind} model has embeddings of width {config.embedding_size} for states of width "
            f"{config.hidden_size}, and Longformer has no projection between them"
        )
    if config.is_decoder:
        raise UnsupportedError(f"this {kind} model is a decoder, and only encoders can be lengthened")
    now = config.max_position_embeddings - _first_row(config)
    if to <= now:
        raise ConfigError(f"the model reads {now} tokens already; to={to} would not lengthen it")
    if window < 2 or window % 2 or window > to:
        raise ConfigError(f"window is an even number from 2 to {to}, half of it for each side, found {window}")
