"""What many tests share: a tiny random BERT in a folder, and no network."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import string
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizer, PreTrainedTokenizerBase

pytest_plugins = ("golden_cases.summary", "laws.matrix")

WORDS = """
good bad film plot the a is was not very who where when did river city Anna Paris London lives in visits price of
ticket rain sun red blue one two three un ##seen ##ly ##s long play . , ? ! -
"""


def pytest_collection_finish() -> None:
    """Trainer collects garbage in every training: without looking through all modules and tests, which stay anyway."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def a_gpu_is_for_its_own_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    """On a machine with a GPU all others run on its CPU, as everywhere else: their tolerances are those of a CPU."""
    if not torch.cuda.is_available() or request.node.get_closest_marker("gpu") is not None:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # of commands that a test starts
        yield


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 blocks, width 32, 64 positions, with a cased WordPiece vocabulary of some words and all letters."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    letters = string.ascii_letters + string.digits
    specials = ("[PAD]", "[UNK]", "[MASK]")
    vocabulary = list(dict.fromkeys([*specials, *WORDS.split(), *letters, *(f"##{c}" for c in letters)]))
    vocabulary[101:101] = ["[CLS]", "[SEP]"]  # where every BERT has them
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt"), do_lower_case=False).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(
            BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=64,
            )
        ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny_bert: Path) -> PreTrainedTokenizerBase:
    return BertTokenizer.from_pretrained(tiny_bert)


@pytest.fixture(scope="session")
def masked_bert(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT with a masked-LM head."""
    folder = tmp_path_factory.mktemp("masked-bert")
    BertTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    base = BertModel.from_pretrained(tiny_bert)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForMaskedLM(base.config)
    model.bert.load_state_dict({k: v for k, v in base.state_dict().items() if "pooler" not in k})
    model.save_pretrained(folder)
    return folder
