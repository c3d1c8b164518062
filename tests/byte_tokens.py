"""A tokenizer of bytes, as GPT-2 and Qwen have: a character is of several tokens, a token begins with a space."""

from typing import Any

from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

SPECIALS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}


def byte_tokenizer(*merges: str, over_words: bool = False) -> Any:
    """One token a byte and for each merge, two parts with a bar between them: `.|.`; it adds no special tokens.

    `over_words`: a merge may be of more than one word.
    """
    pairs = [(first, second) for first, _, second in (merge.partition("|") for merge in merges)]
    names = [*SPECIALS.values(), *sorted(ByteLevel.alphabet()), *(first + second for first, second in pairs)]
    words = Tokenizer(BPE({name: i for i, name in enumerate(names)}, pairs))
    words.pre_tokenizer = ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=not over_words)
    words.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=words, **SPECIALS)
