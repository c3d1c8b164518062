"""A lengthened encoder gives the original's states on short texts, reads long ones, and trains by every method."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from laws.zoo import ZOO, batch_of, model_of, tf
from test_cli import run, write_rows
from test_train import QUICK, rows_of
from torch import Tensor
from transformers import BertTokenizer

import attentune
from attentune.backbones import fingerprint, load_backbone
from attentune.errors import AttentuneError, ConfigError, StoreError, UnsupportedError
from attentune.longformer import LENGTHENED, convert, longer_table
from attentune.methods import METHODS

WINDOW = 24
"""Half of it is as long as the longest text of a batch of the zoo: every token sees every other."""


class Ids:
    """What `convert` asks of a tokenizer."""

    cls_token_id, sep_token_id = 103, 104


def original(kind: str) -> Any:
    """A tiny random encoder; ELECTRA with embeddings as wide as its states."""
    if kind != "electra":
        return model_of(kind)
    config = {
        "vocab_size": 140,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    torch.manual_seed(0)
    return tf.ElectraModel(tf.ElectraConfig(embedding_size=32, max_position_embeddings=48, **config)).eval()


def states(model: Any, batch: dict[str, Tensor], **more: Any) -> Tensor:
    with torch.no_grad():
        found = model(**batch, **more).last_hidden_state
    return found[batch["attention_mask"].bool()]


@pytest.mark.parametrize("kind", LENGTHENED)
@pytest.mark.parametrize("reach", ["local", "global"])
def test_short_texts_have_the_states_of_the_original(kind: str, reach: str) -> None:
    model, batch = original(kind), batch_of(kind)
    longer = convert(model, Ids(), 200, WINDOW)  # pyright: ignore[reportArgumentType]
    mask = torch.zeros_like(batch["input_ids"])
    mask[:, [0, 3]] = int(reach == "global")
    found = states(longer, batch, global_attention_mask=mask)
    torch.testing.assert_close(found, states(model, batch), atol=1e-5, rtol=1e-5)


def test_token_types_and_pooler_are_kept() -> None:
    model, batch = original("bert"), batch_of("bert")
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    batch["token_type_ids"][:, 4:] = 1
    longer = convert(model, Ids(), 200, WINDOW)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        a, b = model(**batch).pooler_output, longer(**batch).pooler_output
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_global_projections_are_copies() -> None:
    longer: Any = convert(original("roberta"), Ids(), 200, WINDOW)  # pyright: ignore[reportArgumentType]
    attention = longer.encoder.layer[1].attention.self
    for name in ("query", "key", "value"):
        local, everywhere = getattr(attention, name), getattr(attention, f"{name}_global")
        assert torch.equal(local.weight, everywhere.weight)
        assert torch.equal(local.bias, everywhere.bias)
        assert local.weight.data_ptr() != everywhere.weight.data_ptr()


@pytest.mark.parametrize(("first", "pad"), [(0, 0), (2, 1), (0, 3)])
def test_positions_are_copied_in_blocks(first: int, pad: int) -> None:
    table = torch.arange(12.0)[:, None].expand(-1, 2)
    found = longer_table(table, first, pad, 25)
    assert found.shape == (pad + 1 + 25, 2)
    blocks = 12 - first
    expected = [float(first + i % blocks) for i in range(25)]
    assert found[pad + 1 :, 0].tolist() == expected


@pytest.fixture(scope="module")
def longer_bert(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return attentune.lengthen(str(tiny_bert), 160, tmp_path_factory.mktemp("long") / "bert", window=32)


def test_the_folder_is_a_backbone(longer_bert: Path, tiny_bert: Path) -> None:
    assert {"config.json", "model.safetensors", "tokenizer_config.json"} <= {f.name for f in longer_bert.iterdir()}
    assert not list(longer_bert.parent.glob(".*"))
    config = json.loads((longer_bert / "config.json").read_text())
    assert config["lengthened_from"] == str(tiny_bert)
    tokenizer = BertTokenizer.from_pretrained(longer_bert)
    assert tokenizer.model_max_length == 160
    batch = tokenizer(["a good film", "the plot was not very good"], padding=True, return_tensors="pt")
    longer, short = load_backbone(str(longer_bert)), load_backbone(str(tiny_bert))
    torch.testing.assert_close(states(longer, batch), states(short, batch), atol=1e-5, rtol=1e-5)
    assert fingerprint(longer) != fingerprint(short)
    whole = tokenizer(["good " * 300], truncation=True, return_tensors="pt")
    assert states(longer, whole).shape == (160, 32)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_it(longer_bert: Path, tmp_path: Path, method: str) -> None:
    rows = rows_of("classification", 12)
    rows = [{**row, "text": row["text"] + " rain" * 100} for row in rows]
    options: dict[str, Any] = {**QUICK, "max_length": 200}
    result = attentune.train(rows, method, tmp_path / "a", str(longer_bert), **options)
    adapter = attentune.load(result.folder)
    assert adapter.card.max_length > 150
    assert adapter.card.backbone.fingerprint == fingerprint(load_backbone(str(longer_bert)))
    early, late = "good film" + " rain" * 120, "bad film" + " rain" * 120
    answers = adapter.predict([early, late])
    assert not answers[0]["truncated"]
    assert answers[0]["probabilities"] != answers[1]["probabilities"]


def test_command_line(tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "long"
    assert run("lengthen", tiny_bert, "--to", 128, "--window", 16, "--output", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"output": str(folder), "positions": 128, "window": 16}
    rows = write_rows(tmp_path / "rows.jsonl", rows_of("classification"))
    settings = ("--recipe", "long_documents/prefix_propagation", "--set", "epochs=1", "--set", "length=3")
    assert run("train", rows, "--output", tmp_path / "a", "--backbone", folder, *settings) == 0
    assert attentune.load(tmp_path / "a").card.max_length == 128 - 3
    assert run("lengthen", tiny_bert, "--to", 128, "--output", folder) == 2
    assert "exists; name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["tiny/bert", "tiny/bert/", "tiny/../tiny/bert", "."])
def test_without_output_it_has_the_name_of_the_model_and_its_length(
    model: str, tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_bert, tmp_path / "tiny" / "bert")
    here = tmp_path / "tiny" / "bert" if model == "." else tmp_path
    monkeypatch.chdir(here)
    assert run("lengthen", model, "--to", 128, "--window", 16, "--json") == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(here / "bert-128")
    assert load_backbone("bert-128").config.max_position_embeddings > 128
    assert run("lengthen", model, "--to", 128, "--window", 16) == 2
    assert "bert-128 exists; name a new folder" in capsys.readouterr().err


def test_a_hub_id_gives_its_last_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("bert-base-uncased-4096", "minilm-4096"):
        (tmp_path / name).write_text("in the way")
        with pytest.raises(StoreError, match=f"{name} exists"):
            attentune.lengthen({"minilm-4096": "minilm"}.get(name, "google-bert/bert-base-uncased"), 4096)


@pytest.mark.parametrize(
    ("to", "window", "match"),
    [
        (64, 16, "the model reads 64 tokens already; to=64 would not lengthen it"),
        (128, 15, "window is an even number from 2 to 128, half of it for each side, found 15"),
        (128, 256, "found 256"),
    ],
)
def test_wrong_sizes(tiny_bert: Path, tmp_path: Path, to: int, window: int, match: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(match)):
        attentune.lengthen(str(tiny_bert), to, tmp_path / "a", window)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [kind for kind in ZOO if kind not in LENGTHENED or kind == "electra"])
def test_other_architectures_are_refused(tiny_bert: Path, tmp_path: Path, kind: str) -> None:
    model_of(kind).save_pretrained(tmp_path / "model")
    BertTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedError, match=r"cannot be lengthened|has no projection between them") as caught:
        attentune.lengthen(str(tmp_path / "model"), 512, tmp_path / "long", 16)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "long").exists()


def test_what_is_there_stays(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(StoreError, match="exists; name a new folder"):
        attentune.lengthen(str(tiny_bert), 128, tmp_path, 16)
    with pytest.raises(AttentuneError, match="no backbone"):
        attentune.lengthen(str(tmp_path / "nothing"), 128, tmp_path / "b", 16)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]
