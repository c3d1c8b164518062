"""The settings of the methods' authors: each file loads, and trains a step on a tiny stand-in of its architecture."""

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from laws.zoo import ZOO
from safetensors.torch import load_file
from test_train import QUICK, rows_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from typer.main import get_command

from attentune.cli import app
from attentune.errors import ConfigError, DataError
from attentune.methods import METHODS
from attentune.training.recipe import read_recipe
from attentune.training.train import train

TRAIN: Any = cast("Any", get_command(app)).commands["train"]
PAPERS = Path(str(resources.files("attentune") / "recipes" / "papers"))
FILES = sorted(path.relative_to(PAPERS).with_suffix("").as_posix() for path in PAPERS.rglob("*.toml"))
STANDINS = {
    "FacebookAI/roberta-large": "roberta",
    "FacebookAI/roberta-base": "roberta",
    "google-bert/bert-large-cased": "bert",
    "allenai/longformer-base-4096": "longformer",
    "openai-community/gpt2": "gpt2",
    "google-t5/t5-base": "t5",
}
"""Hub id -> its kind in the zoo."""
COLUMNS: dict[str, dict[str, Any]] = {
    "nyu-mll/glue:sst2": {"sentence": "rain the film", "label": 1, "idx": 0},
    "nyu-mll/glue:mnli": {"premise": "the film", "hypothesis": "rain", "label": 2, "idx": 0},
    "nyu-mll/glue:cola": {"sentence": "sun the film", "label": "acceptable", "idx": 0},
    "nyu-mll/glue:stsb": {"sentence1": "the film", "sentence2": "a plot", "label": 3.8, "idx": 0},
    "nyu-mll/glue:mrpc": {"sentence1": "the film", "sentence2": "a plot", "label": 1, "idx": 0},
    "eriktks/conll2003": {
        "id": "0",
        "tokens": ["rain", "the"],
        "pos_tags": [3, 1],
        "chunk_tags": [1, 2],
        "ner_tags": ["B-PER", "O"],
    },
    "SetFit/20_newsgroups": {"text": "the film", "label": 7, "label_text": "rec.autos"},
    "jonathanli/hyperpartisan-longformer-split": {"text": "the film", "label": True},
    "ccdv/arxiv-classification:no_ref": {"text": "the film", "label": 3},
    "GEM/web_nlg:en": {"gem_id": "1", "input": "Anna visits river", "target": "the river", "category": "film"},
}
"""Data set -> a row with the columns of its hub page, told in words of ours."""


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Hub id -> the folder of a tiny random model of its architecture, with a tokenizer of its special tokens."""
    made: dict[str, Path] = {}

    def make(hub_id: str) -> str:
        kind = STANDINS[hub_id]
        if kind not in made:
            made[kind] = save_standin(kind, tmp_path_factory.mktemp(kind))
        return str(made[kind])

    return make


def save_standin(kind: str, folder: Path) -> Path:
    """A model of the zoo and a tokenizer of the words that `rows_of` writes, with the ids that the model expects."""
    animal = ZOO[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        animal.build().save_pretrained(folder)
    (first, last), pair = animal.specials, kind != "bert"
    whole = {"gpt2": "$A", "t5": "$A <last>"}.get(kind, "<first> $A <last>")
    taken = {first: "<first>", last: "<last>", animal.pad: "<pad>", 138: "<unk>"}
    words = iter("the film plot rain sun a good bad Anna visits river".split())
    vocabulary = {taken.get(i) or next(words, f"w{i}"): i for i in range(140)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        whole,
        f"<first> $A <last>{' <last>' * pair} $B <last>",
        [("<first>", first), ("<last>", last)],
    )
    names = {"cls_token": "<first>", "sep_token": "<last>", "pad_token": "<pad>", "unk_token": "<unk>"}
    if animal.generates:
        names = {"eos_token": "<last>", "pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def tiny_data(name: str) -> dict[str, list[dict[str, Any]]]:
    """Eight training rows with the columns of the data set's hub page; the classes differ from row to row."""
    row = COLUMNS[name]
    other: dict[str, Any] = {
        key: {bool: False, int: 0, float: 1.25}.get(type(value), "sun" if key.startswith("label") else value)
        for key, value in row.items()
    }
    return {"train": [row, other] * 4, "validation": [other, row]}


def test_every_method_has_its_papers() -> None:
    assert {name.split("/")[0] for name in FILES} == set(list(METHODS)[:5])
    assert {read_recipe(f"papers/{name}").task.data for name in FILES} == set(COLUMNS)


@pytest.mark.parametrize("name", FILES)
def test_the_file_says_what_it_is(name: str) -> None:
    text = (PAPERS / f"{name}.toml").read_text(encoding="utf-8")
    first, *comment = text.partition("\n\n")[0].splitlines()
    assert first == f"# attentune train --recipe papers/{name} --output DIR"
    assert comment[1].startswith("# The authors (")
    assert all(len(line) <= 120 for line in text.splitlines())
    options = {name for parameter in TRAIN.params for name in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", "\n".join([first, *comment]))) <= options
    recipe = read_recipe(f"papers/{name}")
    assert recipe.method == name.split("/")[0]
    assert METHODS[recipe.method].config(**recipe.options).init_weights == "paper"
    hub_id = r"[\w-]+/[\w.-]+"
    assert re.fullmatch(hub_id, recipe.training.backbone or "")
    assert re.fullmatch(rf"{hub_id}(:\w+)?", recipe.task.data or "")


@pytest.mark.parametrize("name", FILES)
def test_one_step(name: str, standin: Any, tmp_path: Path) -> None:
    recipe = read_recipe(f"papers/{name}")
    assert recipe.training.backbone
    assert recipe.task.data
    options: dict[str, Any] = {"epochs": 1, "warmup": 0}  # in thousands of warmup steps the first one is nothing
    if recipe.task.kind == "generation":
        options["max_new_tokens"] = 4  # the stand-in has few positions
    folder = standin(recipe.training.backbone)
    result = train(tiny_data(recipe.task.data), None, tmp_path / "a", folder, f"papers/{name}", **options)
    assert result.metrics["run"]["steps"] == 1
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    saved = read_recipe(tmp_path / "a" / "recipe.toml")
    assert (saved.options, saved.task.data) == (recipe.options, recipe.task.data)
    assert saved.training.backbone == folder  # not the one that the file names
    assert json.loads((tmp_path / "a" / "task.json").read_text())["backbone"]["id"] == folder


def test_a_recipe_can_name_data_and_backbone(tiny_bert: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows_of("classification", 12))))
    (tmp_path / "mine.toml").write_text(
        f'[task]\ndata = {json.dumps(str(data))}\n[method]\nname = "pasta"\n'
        f"[training]\nbackbone = {json.dumps(str(tiny_bert))}\nepochs = 1\n"
    )
    options: dict[str, Any] = {**QUICK, "epochs": 1}
    result = train(recipe=tmp_path / "mine.toml", output=tmp_path / "a", **options)
    assert result.card.backbone.id == str(tiny_bert)
    with pytest.raises(DataError, match="no data: name a file, a folder or a hub id, or a recipe that does"):
        train(output=tmp_path / "b", backbone=str(tiny_bert))
    wanted = "no recipe 'papers/pasta/none': wanted a TOML file, or one that ships, as "
    with pytest.raises(ConfigError, match=re.escape(wanted) + ".*papers/pasta/mrpc"):
        read_recipe("papers/pasta/none")
