"""Source prompts: the library, what comes into it, training on top of it, and adapters whose sources change."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_train import QUICK, rows_of
from torch import Tensor, nn

import attentune
from attentune import store
from attentune.backbones import fingerprint, load_backbone, load_tokenizer
from attentune.card import Backbone
from attentune.errors import AttentuneError, ConfigError, StoreError, UnsupportedError
from attentune.method import Frame
from attentune.methods.attempt import ATTENTION_TENSORS, AttemptConfig, edit_prompt
from attentune.training.adapted import adapt
from attentune.training.optimiser import optimiser
from attentune.training.recipe import read_recipe, recipe_of
from attentune.training.seeds import train_seeds
from attentune.training.sources.edit import with_sources
from attentune.training.sources.files import read_prompt
from attentune.training.sources.library import Library, card_for, digest
from attentune.training.sources.made import keep_file, train_source
from attentune.training.train import train

TEXTS = ["the film is good", "bad rain", "a plot - who was Anna ?"]
M, E = 3, 32
"""Rows and width of the prompts here."""


def prompt_of(seed: int) -> Tensor:
    return torch.randn(M, E, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.fixture(scope="module")
def library(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four prompts for the tiny BERT."""
    folder = tmp_path_factory.mktemp("library")
    origin = Backbone(str(tiny_bert), fingerprint(load_backbone(str(tiny_bert))))
    for seed, name in enumerate(("nli", "stars", "tone", "topic")):
        prompt = prompt_of(seed)
        Library(folder).add(card_for(name, prompt, origin, "drawn", "by a test"), prompt)
    return folder


@pytest.fixture(scope="module")
def mixing(tiny_bert: Path, library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter over three of the four sources."""
    folder = tmp_path_factory.mktemp("adapters") / "mixing"
    names = ["tone", "nli", "stars"]
    train(rows_of("classification"), "attempt", folder, str(tiny_bert), library=library, source_names=names, **QUICK)
    return folder


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / store.WEIGHTS)


def test_a_source_is_trained_kept_listed_and_removed(tiny_bert: Path, tmp_path: Path) -> None:
    home = tmp_path / "prompts"
    card = train_source(rows_of("classification"), home, "tone", str(tiny_bert), length=5, **QUICK)
    assert sorted(path.name for path in home.iterdir()) == ["tone.json", "tone.safetensors"]
    assert load_file(home / "tone.safetensors").keys() == {"prompt"}
    library = Library(home)
    assert library.names() == ["tone"]
    assert library.card("tone") == card
    assert (card.task, card.length, card.width) == ("classification: text -> label", 5, E)
    assert card.backbone.fingerprint == fingerprint(load_backbone(str(tiny_bert)))
    assert "accuracy" in card.score
    assert 'attention = "none"' in card.made
    assert digest(library.prompt("tone")) == card.sha256
    with pytest.raises(ConfigError, match="there is a source 'tone'"):
        train_source(rows_of("classification"), home, "tone", str(tiny_bert), **QUICK)
    library.remove("tone")
    assert list(home.iterdir()) == []
    with pytest.raises(ConfigError, match=r"no source 'tone'.*there are none"):
        library.card("tone")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "target", "a.b", "x" * 101, "a b"])
def test_names_stay_in_the_folder(library: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="a source's name is made of letters"):
        Library(library).card(name)


def test_half_a_source_is_none(library: Path, tmp_path: Path) -> None:
    (tmp_path / "tone.safetensors").write_bytes((library / "tone.safetensors").read_bytes())
    assert Library(tmp_path).names() == []
    card = (library / "nli.json").read_text(encoding="utf-8")
    (tmp_path / "nli.json").write_text(card, encoding="utf-8")
    with pytest.raises(StoreError, match="holds no tensor 'prompt'"):
        Library(tmp_path).prompt("nli")
    (tmp_path / "nli.safetensors").write_bytes((library / "tone.safetensors").read_bytes())
    with pytest.raises(StoreError, match="not what its card says; remove the source 'nli'"):
        Library(tmp_path).prompt("nli")
    for wrong in ("{", "[]", "{}", card.replace('"format": 1', '"format": 2'), card.replace('"width"', '"wide"')):
        (tmp_path / "nli.json").write_text(wrong, encoding="utf-8")
        with pytest.raises(StoreError, match=r"nli\.json"):
            Library(tmp_path).card("nli")
    with pytest.raises(StoreError, match="no library of source prompts"):
        Library(tmp_path / "nowhere").names()


@pytest.mark.parametrize("form", ["tensor", "parameter", "state dict", "half", "safetensors"])
def test_prompts_of_others_are_read(tmp_path: Path, tiny_bert: Path, form: str) -> None:
    prompt = prompt_of(9)
    file = tmp_path / ("mnli.safetensors" if form == "safetensors" else "mnli.pt")
    if form == "safetensors":
        save_file({"prompt_embeddings": prompt}, file)
    else:
        # What the authors of ATTEMPT publish is a Parameter.
        forms = {"parameter": nn.Parameter(prompt), "state dict": {"prefix_shared": prompt}, "half": prompt.half()}
        torch.save(forms.get(form, prompt), file)
    assert torch.allclose(read_prompt(file), prompt, atol=1e-3)
    card = keep_file(file, tmp_path / "prompts", "mnli", str(tiny_bert))
    assert (card.length, card.width, card.made) == (M, E, f"read from {file.name}")
    assert torch.equal(Library(tmp_path / "prompts").prompt("mnli"), read_prompt(file))


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('ran')",)


WRONG_FILES: list[tuple[Any, str]] = [
    (Trap(), "holds more than tensors or is damaged"),
    (torch.zeros(2, 3, 4), r"holds a tensor \[2, 3, 4\] of torch.float32, wanted one prompt"),
    (torch.zeros(2, 3, dtype=torch.long), "of torch.int64, wanted one prompt"),
    ({"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}, "holds 2 tensors, wanted one prompt"),
    (["text"], "holds list, wanted one prompt"),
    (torch.full((2, 3), float("nan")), "not finite"),
]


@pytest.mark.parametrize(("content", "match"), WRONG_FILES, ids=range(len(WRONG_FILES)))
def test_other_files_are_refused(tmp_path: Path, content: Any, match: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(StoreError, match=match):
        read_prompt(tmp_path / "a.pt")


def test_damaged_files_are_refused(tmp_path: Path, tiny_bert: Path) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"a": 1}, protocol=2)[:-1])
    (tmp_path / "a.safetensors").write_bytes(b"x")
    (tmp_path / "a.txt").write_bytes(b"x")
    for name, match in {
        "a.pt": "holds more than tensors or is damaged",
        "a.safetensors": "is no safetensors file",
        "a.txt": r"a prompt is read from \.pt, \.pth, \.bin, \.safetensors or an adapter folder",
        "b.pt": "no file",
    }.items():
        with pytest.raises(StoreError, match=match):
            read_prompt(tmp_path / name)
    torch.save(torch.zeros(3, 7), tmp_path / "narrow.pt")
    with pytest.raises(StoreError, match=r"a prompt of width 7; the word embeddings of .* have 32"):
        keep_file(tmp_path / "narrow.pt", tmp_path / "prompts", "x", str(tiny_bert))
    assert not (tmp_path / "prompts").exists()


def test_an_adapter_becomes_a_source(tiny_bert: Path, tmp_path: Path, mixing: Path) -> None:
    options: dict[str, Any] = {**QUICK, "attention": "none", "length": M}
    plain = train(rows_of("classification"), "attempt", tmp_path / "plain", str(tiny_bert), **options)
    keep_file(plain.folder, tmp_path / "prompts", "plain")
    own = next(value for key, value in tensors_of(plain.folder).items() if key.endswith("target_prompts"))
    assert torch.equal(Library(tmp_path / "prompts").prompt("plain"), own[0])
    with pytest.raises(UnsupportedError, match="mixes 3 source prompts, so that its own does not stand alone"):
        keep_file(mixing, tmp_path / "prompts", "mixing")
    pasta = train(rows_of("classification"), "pasta", tmp_path / "pasta", str(tiny_bert), **QUICK)
    with pytest.raises(UnsupportedError, match="made by attempt; pasta is of pasta"):
        keep_file(pasta.folder, tmp_path / "prompts", "pasta")


def test_training_mixes_a_subset_of_the_library(library: Path, mixing: Path) -> None:
    home, config = Library(library), json.loads((mixing / store.CONFIG).read_text())
    names = ["tone", "nli", "stars"]
    assert (config["sources"], config["length"], config["source_names"]) == (3, M, names)
    assert config["source_hashes"] == [home.card(name).sha256 for name in names]
    assert config["train_sources"] is False
    sources = next(value for key, value in tensors_of(mixing).items() if key.endswith("source_prompts"))
    assert torch.equal(sources, torch.stack([home.prompt(name) for name in names]))  # in the artefact, and frozen
    recipe = read_recipe(mixing / store.RECIPE)
    assert recipe.options["source_names"] == names
    weights = json.loads((mixing / store.METRICS).read_text())["attention"]
    assert list(weights) == [*names, "target"]
    assert sum(weights.values()) == pytest.approx(1)


def test_a_saved_recipe_wants_its_sources(tiny_bert: Path, library: Path, mixing: Path, tmp_path: Path) -> None:
    recipe = read_recipe(mixing / store.RECIPE)
    data, where = rows_of("classification"), str(tiny_bert)
    with pytest.raises(ConfigError, match="the recipe mixes tone, nli, stars; name the library"):
        train(data, None, tmp_path / "a", where, recipe)
    again = train(data, None, tmp_path / "a", where, recipe, library=library)
    for key, value in tensors_of(mixing).items():
        assert torch.equal(value, tensors_of(again.folder)[key]), key
    other, home = Library(tmp_path / "other"), Library(library)
    for name in ("tone", "nli", "stars"):
        prompt = home.prompt(name) + (name == "nli")
        other.add(card_for(name, prompt, home.card(name).backbone, "", ""), prompt)
    with pytest.raises(StoreError, match=r"'nli' of .* is not the one that the recipe was written with"):
        train(data, None, tmp_path / "b", where, recipe, library=other.folder)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"method": "pasta"}, "pasta mixes no source prompts; attempt does"),
    ({"attention": "none"}, "attention = 'none' mixes no source prompts"),
    ({"source_names": ["tone", "x"]}, "no source 'x' in .*; there are nli, stars, tone, topic"),
    ({"source_names": ["tone", "tone"]}, "a source is mixed once; found tone, tone"),
    ({"length": 8}, "equal length: wanted 8 rows, found nli 3, stars 3"),
    ({"sources": 2}, "sources is 2, and 4 are taken: nli, stars, tone, topic"),
]


@pytest.mark.parametrize(("options", "match"), WRONG, ids=range(len(WRONG)))
def test_wrong_mixtures(tiny_bert: Path, library: Path, tmp_path: Path, options: dict[str, Any], match: str) -> None:
    given: dict[str, Any] = {"method": "attempt", **options}
    with pytest.raises(AttentuneError, match=match):
        train(rows_of("classification"), output=tmp_path / "a", backbone=str(tiny_bert), library=library, **given)
    assert list(tmp_path.iterdir()) == []


def test_sources_belong_to_one_backbone(tiny_bert: Path, library: Path, tmp_path: Path) -> None:
    other, home = Library(tmp_path / "other"), Library(library)
    origin = Backbone("another", "0-float32-1")
    other.add(card_for("tone", home.prompt("tone"), origin, "", ""), home.prompt("tone"))
    with pytest.raises(StoreError, match="source 'tone' was made on another with fingerprint 0-float32-1"):
        train(rows_of("classification"), "attempt", tmp_path / "a", str(tiny_bert), library=other.folder, **QUICK)


def test_sources_are_trained_where_the_user_says_so(tiny_bert: Path, library: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**QUICK, "train_sources": True, "init_weights": "paper"}
    result = train(rows_of("classification"), "attempt", tmp_path / "a", str(tiny_bert), library=library, **options)
    sources = next(value for key, value in tensors_of(result.folder).items() if key.endswith("source_prompts"))
    assert not torch.equal(sources[0], Library(library).prompt("nli"))


def test_the_papers_start_is_the_first_source(tiny_bert: Path, library: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**QUICK, "init_weights": "paper", "learning_rate": 0.0}
    result = train(rows_of("classification"), "attempt", tmp_path / "a", str(tiny_bert), library=library, **options)
    own = next(value for key, value in tensors_of(result.folder).items() if key.endswith("target_prompts"))
    assert torch.equal(own[0], Library(library).prompt("nli"))


def test_the_attention_has_its_own_rate(tiny_bert: Path, tmp_path: Path) -> None:
    data = rows_of("classification")
    rates = {"learning_rate": 0.3, "attention_learning_rate": 0.1, "head_learning_rate": 0.01}
    base = load_backbone(str(tiny_bert))
    recipe = recipe_of({"method": {"name": "attempt"}, "training": rates})
    model = adapt(base, load_tokenizer(str(tiny_bert)), attentune.tasks.Classification(("a", "b")), recipe)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = optimiser(model, recipe.training, ATTENTION_TENSORS).param_groups
    found = {names[id(p)].split(".")[-2]: group["lr"] for group in groups for p in group["params"]}
    attention = dict.fromkeys(("attn_down", "attn_up", "norm_weight", "norm_bias"), 0.1)
    assert found == {"target_prompts": 0.3, "out_weight": 0.01, "out_bias": 0.01, **attention}
    with pytest.raises(ConfigError, match="attention_learning_rate was given, and this method has no attention"):
        train(data, "pasta", tmp_path / "a", str(tiny_bert), attention_learning_rate=0.1, **QUICK)


def logits_of(folder: Path) -> list[list[float]]:
    """Before any calibration, which an edited adapter does not have."""
    adapter = attentune.load(folder)
    jobs = adapter.predictor.jobs(TEXTS, [adapter.name] * len(TEXTS))
    return [z.tolist() for z in adapter.predictor.logits(jobs, 8)]


def test_leaving_a_source_out_is_the_softmax_over_the_rest(mixing: Path, tmp_path: Path) -> None:
    lean = with_sources(mixing, tmp_path / "lean", remove=["nli"])
    assert lean.config["source_names"] == ["tone", "stars"]
    assert set(lean.metrics) == {"run"}
    for key, value in tensors_of(mixing).items():
        kept = value[[0, 2]] if key.endswith("source_prompts") else value
        assert torch.equal(tensors_of(lean.folder)[key], kept), key
    before, after = attentune.load(mixing).attention(TEXTS), attentune.load(lean.folder).attention(TEXTS)
    for whole, rest in zip(before, after, strict=True):
        left = {name: weight for name, weight in whole.items() if name != "nli"}
        expected = {name: weight / sum(left.values()) for name, weight in left.items()}
        assert rest == pytest.approx(expected, abs=1e-6)


def test_a_changed_adapter_is_one_trained_with_those_columns(mixing: Path, library: Path, tmp_path: Path) -> None:
    """At equal tensors: the function of the texts is that of an adapter that has only these sources."""
    edited = with_sources(mixing, tmp_path / "edited", add=["topic"], remove=["tone"], library=library)
    p = {key.split(".")[-1]: value[None] for key, value in tensors_of(mixing).items() if "prompt_attempt" in key}
    home = Library(library)
    p["source_prompts"] = torch.stack([home.prompt(name) for name in ("nli", "stars", "topic")])[None]
    cfg = AttemptConfig(sources=3, length=M, bottleneck=16, temperature=edited.config["temperature"])
    adapter = attentune.load(edited.folder)
    tokens = adapter.predictor.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    words = load_backbone(edited.card.backbone.id).get_input_embeddings()(tokens)
    frame = Frame(tokens, None, tokens.shape[1], width=M, prompt=M)
    edit_prompt(cfg, p, tokens, words, frame)
    found = adapter.attention(TEXTS[:1])[0]
    assert list(found) == ["nli", "stars", "topic", "target"]
    assert list(found.values()) == pytest.approx(frame.memo["prompt_attention"][0].tolist(), abs=1e-6)


def test_out_and_in_again_is_the_same_adapter(mixing: Path, library: Path, tmp_path: Path) -> None:
    with_sources(mixing, tmp_path / "a", remove=["stars"])
    with_sources(tmp_path / "a", tmp_path / "a", add=["stars"], library=library)  # in place
    for key, value in tensors_of(mixing).items():
        assert torch.equal(value, tensors_of(tmp_path / "a")[key]), key
    assert logits_of(tmp_path / "a") == logits_of(mixing)
    assert read_recipe(tmp_path / "a" / store.RECIPE) == read_recipe(mixing / store.RECIPE)


def test_wrong_changes(mixing: Path, library: Path, tmp_path: Path, tiny_bert: Path) -> None:
    plain = train(rows_of("classification"), "pasta", tmp_path / "pasta", str(tiny_bert), **QUICK).folder
    wrong: list[tuple[Path, dict[str, Any], str]] = [
        (mixing, {"remove": ["topic"]}, "mixing has no source 'topic'; it has tone, nli, stars"),
        (mixing, {"remove": ["tone", "nli", "stars"]}, "mixes at least one source"),
        (mixing, {"add": ["tone"], "library": library}, "mixing mixes tone already"),
        (mixing, {"add": ["topic"]}, "no library to take topic from"),
        (mixing, {"add": ["x"], "library": library}, "no source 'x'"),
        (plain, {"remove": ["tone"]}, "pasta mixes no source prompts"),
    ]
    for folder, options, match in wrong:
        with pytest.raises(AttentuneError, match=match):
            with_sources(folder, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_attention_of_every_example_in_mixed_batches(mixing: Path, tmp_path: Path) -> None:
    with_sources(mixing, tmp_path / "lean", remove=["tone"])
    predictor = attentune.predict.load_many({"whole": mixing, "lean": tmp_path / "lean"})
    tasks = ["whole", "lean", "whole"]
    found = predictor.attention(TEXTS, tasks)
    alone = [predictor.attention([text], [task])[0] for text, task in zip(TEXTS, tasks, strict=True)]
    for row, expected in zip(found, alone, strict=True):
        assert row == pytest.approx(expected, abs=1e-5)
        assert sum(row.values()) == pytest.approx(1)
    assert list(found[1]) == ["nli", "stars", "target"]
    assert len({f"{row['target']:.3e}" for row in predictor.attention(TEXTS, ["whole"] * 3)}) == 3


def test_methods_without_prompts_have_no_attention(tiny_bert: Path, tmp_path: Path) -> None:
    result = train(rows_of("classification"), "pasta", tmp_path / "a", str(tiny_bert), **QUICK)
    assert "attention" not in result.metrics
    with pytest.raises(UnsupportedError, match=r"task 'a' \(pasta\) mixes no prompts"):
        attentune.load(result.folder).attention(TEXTS)


def test_several_seeds_mix_the_same_sources(tiny_bert: Path, library: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**QUICK, "seeds": 2, "library": library, "source_names": ["tone"]}
    result = train_seeds(rows_of("classification"), "attempt", tmp_path / "a", str(tiny_bert), **options)
    assert list(result.metrics["attention"]) == ["tone", "target"]
    assert read_recipe(result.folder / store.RECIPE).options["source_names"] == ["tone"]
