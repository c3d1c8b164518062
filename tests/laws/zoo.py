"""Tiny random models of every family, and batches for them: the cells of the laws are methods x ZOO."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from attentune.sites import memory

tf: Any = transformers  # Config classes take more fields than their signatures name.

CACHE = memory.name_of(list(inspect.signature(tf.GPT2Model.forward).parameters))
"""What the installed transformers calls a cache."""
T = 12
"""Longest text of a batch."""


@dataclass(frozen=True)
class Animal:
    """One architecture: a model class, a tiny config and its special tokens."""

    build: Callable[[], Any]
    specials: tuple[int, int] = (0, 2)
    pad: int = 1
    generates: bool = False

    @property
    def causal(self) -> bool:
        """Decoder-only."""
        return self.generates and not self.encoder_decoder

    @cached_property
    def encoder_decoder(self) -> bool:
        """With a decoder that attends to an encoder."""
        return bool(self.build().config.is_encoder_decoder)


_SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_BERT: dict[str, Any] = {"vocab_size": 140, "max_position_embeddings": 48, **_SIZE}
_LLAMA: dict[str, Any] = {
    "vocab_size": 140,
    "max_position_embeddings": 96,
    "num_key_value_heads": 2,
    "pad_token_id": 1,
    **_SIZE,
}
_SPECIALS: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}


def _bert() -> Any:
    return tf.BertModel(tf.BertConfig(**_BERT))


def _t5() -> Any:
    config = tf.T5Config(
        vocab_size=140, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return tf.T5ForConditionalGeneration(config)


def _bart() -> Any:
    config = tf.BartConfig(
        vocab_size=140, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=48, **_SPECIALS,
        decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    return tf.BartForConditionalGeneration(config)


def _gpt2() -> Any:
    config = tf.GPT2Config(
        vocab_size=140, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=2, pad_token_id=1
    )
    return tf.GPT2LMHeadModel(config)


def _llama_like(model: Any, config: Any, **more: Any) -> Callable[[], Any]:
    return lambda: model(config(**_LLAMA, bos_token_id=0, eos_token_id=2, **more))


def _roberta_like(model: Any, config: Any, **more: Any) -> Callable[[], Any]:
    return lambda: model(config(**_BERT, **_SPECIALS, **more))


ZOO: dict[str, Animal] = {
    "bert": Animal(_bert, (101, 102), 0),
    "roberta": Animal(_roberta_like(tf.RobertaModel, tf.RobertaConfig)),
    "xlm-roberta": Animal(_roberta_like(tf.XLMRobertaModel, tf.XLMRobertaConfig)),
    "electra": Animal(lambda: tf.ElectraModel(tf.ElectraConfig(embedding_size=16, **_BERT)), (101, 102), 0),
    "distilbert": Animal(
        lambda: tf.DistilBertModel(
            tf.DistilBertConfig(
                vocab_size=140, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=48
            )
        ),
        (101, 102),
        0,
    ),
    "mpnet": Animal(_roberta_like(tf.MPNetModel, tf.MPNetConfig)),
    "deberta-v2": Animal(
        lambda: tf.DebertaV2Model(
            tf.DebertaV2Config(
                **_BERT,
                relative_attention=True,
                position_buckets=8,
                max_relative_positions=-1,
                share_att_key=True,
                pos_att_type=["p2c", "c2p"],
                norm_rel_ebd="layer_norm",
                position_biased_input=False,
                type_vocab_size=0,
            )
        ),
        (1, 2),
        0,
    ),
    "modernbert": Animal(
        lambda: tf.ModernBertModel(
            tf.ModernBertConfig(
                **_BERT,
                pad_token_id=1,
                cls_token_id=0,
                sep_token_id=2,
                bos_token_id=0,
                eos_token_id=2,
                local_attention=8,
                global_attn_every_n_layers=2,
            )
        )
    ),
    "longformer": Animal(_roberta_like(tf.LongformerModel, tf.LongformerConfig, attention_window=4, sep_token_id=2)),
    "big_bird": Animal(
        lambda: tf.BigBirdModel(tf.BigBirdConfig(**_BERT, attention_type="original_full", pad_token_id=0)), (65, 66), 0
    ),
    "t5": Animal(_t5, (139, 1), 0, generates=True),
    "bart": Animal(_bart, generates=True),
    "gpt2": Animal(_gpt2, generates=True),
    "llama": Animal(_llama_like(tf.LlamaForCausalLM, tf.LlamaConfig), generates=True),
    "qwen2": Animal(_llama_like(tf.Qwen2ForCausalLM, tf.Qwen2Config), generates=True),
    "qwen3": Animal(_llama_like(tf.Qwen3ForCausalLM, tf.Qwen3Config, head_dim=8), generates=True),
}


def model_of(kind: str, seed: int = 0) -> Any:
    """A tiny random model, every weight and bias random and non-zero, frozen, in eval mode.

    Frozen, because torch picks another attention kernel where a bias that is added to the scores needs a gradient.
    """
    torch.manual_seed(seed)
    model = ZOO[kind].build()
    for name, p in model.named_parameters():
        nn.init.normal_(p, std=0.2 if p.dim() > 1 else 0.1)
        if p.dim() == 1 and "norm" in name.lower() and name.endswith("weight"):
            p.data += 1
    return model.requires_grad_(False).eval()


def batch_of(kind: str, lengths: tuple[int, ...] = (T, 7, 9), seed: int = 0, side: str = "right") -> dict[str, Tensor]:
    """Token ids with specials at both ends, padded; for encoder-decoders with decoder tokens and their mask."""
    animal, g = ZOO[kind], torch.Generator().manual_seed(seed)
    width, rows = max(lengths), list[Tensor]()
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for i, n in enumerate(lengths):
        row = torch.randint(103, 139, (n,), generator=g)
        row[0], row[-1] = animal.specials
        pad = torch.full((width - n,), animal.pad)
        rows.append(torch.cat([row, pad] if side == "right" else [pad, row]))
        mask[i, slice(0, n) if side == "right" else slice(width - n, width)] = 1
    batch = {"input_ids": torch.stack(rows), "attention_mask": mask}
    if animal.encoder_decoder:
        answer = torch.randint(103, 139, (len(lengths), 5), generator=g)
        answer[:, 0] = animal.specials[1]
        batch["decoder_input_ids"] = answer
    if kind == "longformer":
        batch["global_attention_mask"] = torch.zeros_like(mask).scatter(1, mask.argmax(1, keepdim=True), 1)
    return batch


def to_learn(kind: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch of a training step: language models are told which tokens are an answer, here none."""
    return {**batch, "labels": torch.full_like(batch["input_ids"], -100)} if ZOO[kind].causal else batch


def rows_of(batch: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    """Some rows of a batch."""
    return {key: value[rows] for key, value in batch.items()}


def answer(model: Any, batch: dict[str, Tensor], **more: Any) -> Tensor:
    """Logits where the model has a language head, else the last hidden states."""
    out = model(**batch, **more)
    return out.logits if getattr(out, "logits", None) is not None else out.last_hidden_state
