"""What can be chosen: the method, its options that name values to try, its blocks, learning rates, pooling.

A method says in its configuration which values of an option are worth trying: `metadata={"search": (1, 2, 4)}`. So a
method that is registered from outside is searched like the ones of the library.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

import optuna

from attentune.method import Site
from attentune.methods import METHODS
from attentune.training.recipe import Recipe, shipped_recipe

SPREAD = 8.0
"""A learning rate lies between the recipe's divided and multiplied by this."""
POOLINGS = ("cls", "mean")
BLOCKS = ("all", "upper half", "last")


def choices(method: str) -> dict[str, Sequence[Any]]:
    """Option -> the values to try."""
    return {f.name: f.metadata["search"] for f in fields(METHODS[method].config) if "search" in f.metadata}


def blocks(name: str, layers: int) -> list[int] | None:
    """The blocks that an entry of BLOCKS names; None: all."""
    first = {"all": 0, "upper half": layers // 2, "last": layers - 1}[name]
    return None if first == 0 else list(range(first, layers))


def starts(methods: Sequence[str], kind: str, pair: bool) -> list[dict[str, Any]]:
    """What is tried first: each method as its recipe has it, as far as the space holds that."""
    first: list[dict[str, Any]] = []
    for method in methods:
        recipe = shipped_recipe(kind, method, pair)
        config = METHODS[method].config(**recipe.options)
        known = {key: getattr(config, key) for key, values in choices(method).items() if getattr(config, key) in values}
        given = {f"{method}.{key}": value for key, value in known.items()}
        given |= {f"{method}.learning_rate": recipe.training.learning_rate, f"{method}.blocks": BLOCKS[0]}
        head = recipe.training.head_learning_rate
        given |= {} if head is None else {"head_learning_rate": head}
        given |= {"pooling": recipe.task.pooling} if recipe.task.pooling in POOLINGS else {}
        first.append({"method": method, **given})
    return first


def suggest(
    trial: optuna.Trial,
    methods: Sequence[str],
    kind: str,
    pair: bool,
    layers: int,
    fixed: Mapping[str, Any],
    pools: bool,
) -> Recipe:
    """A recipe of the space; `fixed` are keys of a recipe that are not searched, `pools` says that the head pools."""
    method: str = trial.suggest_categorical("method", list(methods))
    recipe = shipped_recipe(kind, method, pair).override(fixed)
    taken = {key.rpartition(".")[2] for key in fixed}
    changes: dict[str, Any] = {}
    for key, values in choices(method).items():
        if key not in taken:
            changes[f"method.{key}"] = trial.suggest_categorical(f"{method}.{key}", list(values))
    if "layers_to_transform" not in taken and _has_blocks(METHODS[method].edits):
        chosen = blocks(trial.suggest_categorical(f"{method}.blocks", list(BLOCKS)), layers)
        if chosen is not None:
            changes["method.layers_to_transform"] = chosen
    for key in ("learning_rate", "head_learning_rate"):
        middle = getattr(recipe.training, key)
        if key not in taken and middle is not None:
            name = f"{method}.{key}" if key == "learning_rate" else key
            changes[f"training.{key}"] = trial.suggest_float(name, middle / SPREAD, middle * SPREAD, log=True)
    if pools and "pooling" not in taken:
        changes["task.pooling"] = trial.suggest_categorical("pooling", list(POOLINGS))
    return recipe.override(changes)


def _has_blocks(sites: Collection[Site]) -> bool:
    return bool(set(sites) - {Site.PROMPT})
