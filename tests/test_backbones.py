"""Names, fingerprints, and the copy of minilm that must be the original's."""

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from laws.zoo import ZOO
from transformers import AutoConfig, AutoModel, DistilBertConfig, DistilBertModel, PreTrainedTokenizerBase

from attentune import backbones
from attentune.backbones import (
    ATTENTION_DROPOUT,
    MINILM_ID,
    fingerprint,
    hub_id,
    load_backbone,
    load_tokenizer,
    resolve,
    revision,
    same_backbone,
)
from attentune.errors import ConfigError, StoreError, UnsupportedError


def test_names(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_id("minilm") == MINILM_ID
    assert hub_id("someone/model") == resolve("someone/model") == "someone/model"
    assert resolve(str(tiny_bert)) == str(tiny_bert)

    def missing(name: str) -> None:
        raise backbones.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(backbones.metadata, "files", missing)
    assert resolve("minilm") == resolve(MINILM_ID) == MINILM_ID


def test_a_copy_with_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    file = SimpleNamespace(name="model.safetensors", locate=lambda: weights)
    monkeypatch.setattr(backbones.metadata, "files", lambda name: [file])
    with pytest.raises(StoreError, match="does not hold the weights of sentence-transformers/all-MiniLM-L6-v2: sha256"):
        resolve("minilm")
    monkeypatch.setattr(backbones, "MINILM_SHA256", hashlib.sha256(b"weights").hexdigest())
    assert resolve("minilm") == resolve(MINILM_ID) == str(tmp_path)
    weights.unlink()
    with pytest.raises(StoreError, match=r"has no model\.safetensors; install it again"):
        resolve("minilm")


def test_unknown_backbones(tmp_path: Path) -> None:
    for load in (load_backbone, load_tokenizer):
        with pytest.raises(ConfigError, match=r"backbone '.*none'") as caught:
            load(str(tmp_path / "none"))
        assert "\n" not in str(caught.value)


def test_damaged_files_are_one_sentence(tiny_bert: Path, tmp_path: Path) -> None:
    for damage, match in (
        ({"model.safetensors": b"xx"}, "the files of backbone .* are damaged: Error while"),
        ({"config.json": {"hidden_size": 64}}, "are damaged: its weights are not of the sizes that its config names"),
        ({"config.json": {"hidden_size": "x"}}, "are damaged: Validation error"),
        ({"config.json": b"{"}, "is not a valid JSON file"),
    ):
        copy = shutil.copytree(tiny_bert, tmp_path / "copy", dirs_exist_ok=True)
        for name, content in damage.items():
            if isinstance(content, dict):
                content = json.dumps({**json.loads((copy / name).read_text()), **content}).encode()
            (copy / name).write_bytes(content)
        with pytest.raises(ConfigError, match=match) as caught:
            load_backbone(str(copy))
        assert "\n" not in str(caught.value)


def test_a_folder_without_a_vocabulary_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bert, tmp_path / "copy", ignore=shutil.ignore_patterns("*token*", "vocab*"))
    load_backbone(str(copy))
    with pytest.raises(ConfigError, match="its files hold no vocabulary"):
        load_tokenizer(str(copy))
    for kind in ("roberta", "gpt2", "t5"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(ConfigError, match="its files hold no vocabulary"):
            load_tokenizer(str(tmp_path / kind))


def test_loading(tiny_bert: Path) -> None:
    model = load_backbone(str(tiny_bert))
    assert not model.training
    assert revision(model) is None
    assert load_backbone(str(tiny_bert), torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "bart", "modernbert"])
def test_attention_dropout_is_switched_off(name: str, tmp_path: Path) -> None:
    """The attention alone is changed: with all other dropout at 0, training equals evaluation."""
    torch.manual_seed(0)
    config = ZOO[name].build().config
    for field in vars(config):
        if "drop" in field:
            setattr(config, field, 0.5 if field in ATTENTION_DROPOUT else 0.0)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    inputs = torch.randint(5, 30, (2, 6))

    def moved(dropout: float | None) -> bool:
        model = load_backbone(str(tmp_path), attention_dropout=dropout)
        still = model(inputs).last_hidden_state
        return not torch.allclose(model.train()(inputs).last_hidden_state, still)

    assert moved(None)
    assert not moved(0.0)


def test_attention_without_a_dropout_of_its_own(tmp_path: Path) -> None:
    ZOO["t5"].build().config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="has no dropout of attention weights by itself; wanted a config with"):
        load_backbone(str(tmp_path), attention_dropout=0.0)


def test_a_tokenizer_without_padding_pads_with_its_end(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    assert load_tokenizer_of(tokenizer, tmp_path, pad_token=None, eos_token="[SEP]").pad_token == "[SEP]"
    assert load_tokenizer_of(tokenizer, tmp_path, pad_token="[PAD]").pad_token == "[PAD]"


def test_inputs_that_the_model_does_not_know_are_left_out(tiny_bert: Path) -> None:
    small = DistilBertModel(DistilBertConfig(vocab_size=200, dim=8, n_layers=1, n_heads=1, hidden_dim=8))
    assert "token_type_ids" in load_tokenizer(str(tiny_bert), load_backbone(str(tiny_bert)))("good")
    assert set(load_tokenizer(str(tiny_bert), small)("good", "film")) == {"input_ids", "attention_mask"}


def load_tokenizer_of(tokenizer: PreTrainedTokenizerBase, folder: Path, **changes: Any) -> PreTrainedTokenizerBase:
    changed = type(tokenizer).from_pretrained(tokenizer.name_or_path, **changes)
    changed.save_pretrained(folder)
    return load_tokenizer(str(folder))


def test_fingerprints(tiny_bert: Path) -> None:
    one = load_backbone(str(tiny_bert))
    print_of_one = fingerprint(one)
    assert fingerprint(load_backbone(str(tiny_bert))) == print_of_one
    assert same_backbone(print_of_one, print_of_one)
    half = fingerprint(load_backbone(str(tiny_bert), torch.bfloat16))
    assert half != print_of_one
    assert same_backbone(half, print_of_one)
    for name, p in one.named_parameters():
        if p.dim() == 2 and "pooler" not in name:
            with torch.no_grad():
                p[0, 0] += 1.0
            assert not same_backbone(fingerprint(one), print_of_one), name
            with torch.no_grad():
                p[0, 0] -= 1.0
    with torch.no_grad():
        one.get_parameter("pooler.dense.weight").add_(1.0)
    wider = AutoModel.from_config(AutoConfig.from_pretrained(tiny_bert, intermediate_size=128))
    assert not same_backbone(fingerprint(wider), half)
