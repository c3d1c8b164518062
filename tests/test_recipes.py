"""Recipes: strict, saved as they are read, and every shipped one loads."""

import re
import tomllib
from importlib import resources
from math import inf, nan
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from attentune.errors import ConfigError
from attentune.methods import METHODS
from attentune.training.ranges import RANGES
from attentune.training.recipe import (
    FOLDERS,
    Recipe,
    TaskOptions,
    TrainingOptions,
    known_keys,
    method_options,
    parse_recipe,
    parse_set,
    read_recipe,
    recipe_of,
    shipped_recipe,
)

RECIPES = Path(str(resources.files("attentune") / "recipes"))
SHIPPED = sorted(path for path in RECIPES.rglob("*.toml") if "papers" not in path.parts)


def test_every_task_has_a_recipe_for_every_method() -> None:
    assert len(SHIPPED) == len(FOLDERS) * 5
    assert {(path.parent.name, path.stem) for path in SHIPPED} == {
        (task, method) for task in FOLDERS for method in list(METHODS)[:5]
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_recipe_loads(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.method == path.stem
    METHODS[recipe.method].config(**recipe.options)
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    named = rf"(?:--method {path.stem}|--recipe {path.parent.name}/{path.stem})"
    assert re.fullmatch(rf"# attentune train DATA {named} --output DIR(?: --backbone MODEL)?(?: --task \w+)?", first)
    assert any(line.startswith("# The authors:") for line in rest)
    assert recipe == shipped_recipe(path.parent.name, path.stem)
    kind = "classification" if path.parent.name == "pair" else path.parent.name
    assert shipped_recipe(kind, path.stem, pair=path.parent.name == "pair") == recipe


def test_a_recipe_is_read_back_as_it_was_written() -> None:
    tables: dict[str, Any] = {
        "task": {"kind": "classification", "text": ["a", 'b "c"\\'], "label": "😀\n\x1b\x7f\u2028é", "max_length": 64},
        "method": {"name": "tiny_attention", "width": 2, "structure": "seq", "layers_to_transform": [0, 1]},
        "training": {"learning_rate": 1e-05, "epochs": 3, "precision": "float32"},
    }
    recipe = recipe_of(tables)
    assert parse_recipe(recipe.to_toml()) == recipe
    read = tomllib.loads(recipe.to_toml())
    assert read["task"]["text"] == ["a", 'b "c"\\']
    assert read["training"]["learning_rate"] == 1e-05
    assert recipe.training.epochs == 3.0


def test_a_method_without_a_shipped_recipe_has_defaults() -> None:
    assert shipped_recipe("ranking", "pasta") == Recipe("pasta")


def test_overrides() -> None:
    recipe = recipe_of({"method": {"name": "pasta"}})
    changed = recipe.override({"epochs": 2, "task.pooling": "cls", "method.dropout": 0.5, "slots": 3})
    assert changed.training.epochs == 2.0
    assert changed.task.pooling == "cls"
    assert changed.options == {"dropout": 0.5, "slots": 3}
    assert recipe.override({}) == recipe


def test_set_reads_toml_and_plain_words() -> None:
    texts = [
        "training.epochs=3",
        "method.rate = 1e-4",
        "a.pooling=cls",
        'b.c="x y"',
        "b.on=true",
        "b.d=[0, 1]",
        "b.t=a b",
    ]
    assert parse_set(texts) == {
        "training.epochs": 3,
        "method.rate": 1e-4,
        "a.pooling": "cls",
        "b.c": "x y",
        "b.on": True,
        "b.d": [0, 1],
        "b.t": "a b",
    }


def test_set_names_the_table_so_that_no_key_is_taken_for_a_parameter() -> None:
    keys = ("label", "data", "backbone", "seed", "slots", "sources", "name", "dropout", "task.text")
    assert list(parse_set([f"{key}=x" for key in keys])) == [
        "task.label",
        "task.data",
        "training.backbone",
        "training.seed",
        "method.slots",
        "method.sources",
        "method.name",
        "dropout",
        "task.text",
    ]
    for key in ("watch", "resume", "output", "recipe", "library", "method"):
        with pytest.raises(ConfigError, match=f"a recipe has no key '{key}'"):
            parse_set([f"{key}=1"])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "[method] needs a name, one of tiny_attention, pasta"),
    ({"method": {"name": "lora"}}, "found 'lora'"),
    ({"methods": {}}, "a recipe has no table 'methods', did you mean 'method'? The tables are task, method, training"),
    ({"method": "pasta"}, "method is a table of a recipe, [method], found 'pasta'"),
    ({"method": {"name": "pasta", "slot": 3}}, "[method] has no key 'slot', did you mean 'slots'?"),
    ({"method": {"name": "pasta", "slots": "3"}}, "method.slots is a whole number, found '3'"),
    ({"method": {"name": "pasta"}, "training": {"epoch": 1}}, "[training] has no key 'epoch', did you mean 'epochs'?"),
    ({"method": {"name": "pasta"}, "training": {"epochs": "many"}}, "training.epochs is a number, found 'many'"),
    (
        {"method": {"name": "pasta"}, "training": {"batch_size": 1.5}},
        "training.batch_size is a whole number, found 1.5",
    ),
    (
        {"method": {"name": "pasta"}, "training": {"batch_size": True}},
        "training.batch_size is a whole number, found True",
    ),
    ({"method": {"name": "pasta"}, "training": {"precision": "int3"}}, 'is "auto" or "float32" or "bfloat16"'),
    ({"method": {"name": "pasta"}, "task": {"text": "a"}}, "task.text is a list, found 'a'"),
    ({"method": {"name": "pasta"}, "task": {"text": [1]}}, "task.text is a list, found [1]"),
    ({"method": {"name": "pasta", "head": {}}}, "[method] has no key 'head'. The keys are"),
    *(
        ({"method": {"name": "pasta"}, table: {key: value}}, f"{table}.{key} is {wanted}, found {value}")
        for table, key, value, wanted in (
            ("task", "stride", -1, "at least 0"),
            ("task", "answer_length", 0, "at least 1"),
            ("task", "dropout", 1.0, "at least 0 and below 1"),
            ("training", "epochs", 0.0, "above 0"),
            ("training", "epochs", inf, "above 0"),
            ("training", "batch_size", 0, "at least 1"),
            ("training", "learning_rate", nan, "at least 0"),
            ("training", "learning_rate", -1.0, "at least 0"),
            ("training", "head_learning_rate", -1.0, "at least 0"),
            ("training", "attention_learning_rate", nan, "at least 0"),
            ("training", "weight_decay", -1.0, "at least 0"),
            ("training", "warmup", -1.0, "at least 0"),
            ("training", "clip", -1.0, "at least 0"),
            ("training", "accumulate", 0, "at least 1"),
            ("training", "patience", -1, "at least 0"),
            ("training", "eval_steps", -1, "at least 0"),
            ("training", "attention_dropout", 2.0, "at least 0 and below 1"),
            ("training", "seed", -1, "between 0 and 4294967295"),
            ("training", "seed", 2**32, "between 0 and 4294967295"),
        )
    ),
    ({"method": {"name": "pasta"}, "training": {"schedule": "foo"}}, 'training.schedule is "linear" or "cosine"'),
]


@pytest.mark.parametrize(("tables", "match"), WRONG, ids=range(len(WRONG)))
def test_wrong_recipes(tables: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(match)) as caught:
        recipe_of(tables)
    assert "\n" not in str(caught.value)


def test_every_number_of_a_recipe_has_its_range() -> None:
    """Or a check where it is used."""
    elsewhere = {"task.validation", "task.shots", "task.max_length", "task.false_alarms", "task.num_beams"}
    numbers = {
        f"{table}.{name}"
        for table, kind in (("task", TaskOptions), ("training", TrainingOptions))
        for name, hint in get_type_hints(kind).items()
        if {int, float} & {hint, *get_args(hint)}
    }
    assert numbers == {*RANGES, *elsewhere, "task.max_new_tokens"}


def test_wrong_files_and_overrides(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no recipe .*none.toml.: wanted a TOML file"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "a.toml").write_text("a = ")
    with pytest.raises(ConfigError, match=r"a\.toml is not TOML"):
        read_recipe(tmp_path / "a.toml")
    recipe = recipe_of({"method": {"name": "pasta"}})
    with pytest.raises(ConfigError, match=re.escape("'dropout' could be task.dropout or method.dropout")):
        recipe.override({"dropout": 0.1})
    with pytest.raises(ConfigError, match=r"\[training\] has no key 'epoch'"):
        recipe.override({"training.epoch": 1})
    with pytest.raises(ConfigError, match="choose another method with --method"):
        recipe.override({"name": "attempt"})
    for wrong in ("epochs", "=3"):
        with pytest.raises(ConfigError, match="wanted key=value, found"):
            parse_set([wrong])


@pytest.mark.parametrize("method", METHODS)
def test_every_option_of_a_method_can_be_set(method: str) -> None:
    options = method_options(method)
    assert "init_weights" in options
    assert not {"head", "peft_type", "task_type", "target_modules"} & set(options)
    config = METHODS[method].config()
    plain = {key: value for key in options if (value := getattr(config, key)) is not None}
    assert recipe_of({"method": {"name": method, **plain}}).options == plain
    assert set(known_keys(method)) == {"task", "method", "training"}
