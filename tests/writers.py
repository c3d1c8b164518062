"""Tiny random models that write, with a tokenizer of a few words: for tests of generation."""

import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

tf: Any = transformers

NAMES = "anna ben cara dan eva finn".split()
VOCABULARY = [*"<pad> <s> </s> <unk> then went with".split(), *NAMES]
_IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": len(VOCABULARY)}


def _t5() -> Any:
    return tf.T5ForConditionalGeneration(
        tf.T5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0, dropout_rate=0.0, **_IDS
        )
    )


def _bart() -> Any:
    return tf.BartForConditionalGeneration(
        tf.BartConfig(
            d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, decoder_start_token_id=2,
            forced_eos_token_id=None, dropout=0.0, init_std=0.2, **_IDS,
        )
    )  # fmt: skip


def _gpt2() -> Any:
    return tf.GPT2LMHeadModel(
        tf.GPT2Config(
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=0.2,
            **_IDS,
        )
    )


WRITERS = {"t5": _t5, "bart": _bart, "gpt2": _gpt2}
TEMPLATES = {"t5": "$A </s>", "bart": "<s> $A </s>", "gpt2": "<s> $A"}


def save_writer(kind: str, folder: Path) -> Path:
    """A random model and its tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        WRITERS[kind]().save_pretrained(folder)
    tokenizer_of(kind).save_pretrained(folder)
    return folder


def tokenizer_of(kind: str) -> Any:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    template = TEMPLATES[kind]
    words.post_processor = TemplateProcessing(template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Two names; the text to write has both, in their order, among words that are always there."""
    rng = random.Random(seed)
    names = [rng.sample(NAMES, 2) for _ in range(count)]
    return [{"source": f"{a} {b}", "target": f"then {a} went with {b}"} for a, b in names]
