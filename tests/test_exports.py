"""The public names: few, listed once, importable, documented."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import attentune
from attentune.errors import ConfigError

PUBLIC = {
    "METHODS",
    "Anatomy",
    "AttemptConfig",
    "AttentuneError",
    "ComparisonColumns",
    "ComparisonConditions",
    "HeadConfig",
    "KernelMixConfig",
    "Method",
    "MethodConfig",
    "PastaConfig",
    "Place",
    "PrefixPropagationConfig",
    "Site",
    "SourceLibrary",
    "TaskModel",
    "TinyAttentionConfig",
    "__version__",
    "add_source",
    "compare",
    "draw_comparison",
    "edit_sources",
    "lengthen",
    "load",
    "predict_many",
    "recalibrate",
    "register",
    "register_architecture",
    "search_adapter",
    "train",
    "train_many",
    "train_seeds",
    "train_source",
}
RENAMED = {
    "ComparisonColumns": "attentune.comparison.sets.Reading",
    "ComparisonConditions": "attentune.comparison.plan.Conditions",
    "SourceLibrary": "attentune.training.sources.library.Library",
    "add_source": "attentune.training.sources.made.keep_file",
    "draw_comparison": "attentune.comparison.report.report",
    "edit_sources": "attentune.training.sources.edit.with_sources",
    "search_adapter": "attentune.search.search.search",
}
"""Public name -> what it is called in its module."""


def test_all_is_the_agreed_list() -> None:
    assert len(attentune.__all__) == len(set(attentune.__all__))
    assert set(attentune.__all__) == PUBLIC


def test_nothing_else_is_importable() -> None:
    found = {name for name in dir(attentune) if not name.startswith("_")}
    modules = {name for name in found if isinstance(getattr(attentune, name), ModuleType)}
    assert found - modules == PUBLIC - {"__version__"}


@pytest.mark.parametrize("name", sorted(PUBLIC - {"METHODS", "__version__"}))
def test_public_names_are_documented(name: str) -> None:
    assert getattr(attentune, name).__doc__, f"attentune.{name} has no docstring"


@pytest.mark.parametrize("name", RENAMED)
def test_public_names_of_things_that_have_another_inside(name: str) -> None:
    module, _, own = RENAMED[name].rpartition(".")
    assert getattr(attentune, name) is getattr(importlib.import_module(module), own)


@pytest.mark.parametrize("name", sorted(PUBLIC - {"METHODS", "__version__", "AttentuneError"}))
def test_every_public_name_stands_in_the_reference(name: str) -> None:
    folder = Path(__file__).parents[1] / "docs" / "reference"  # its page of errors is made from the whole module
    pages = "".join((folder / page).read_text(encoding="utf-8") for page in ("python.md", "methods.md"))
    assert re.search(rf"(auto(function|class):: |attentune\.){name}\b", pages)


def test_importing_imports_nothing_that_trains_compares_or_searches() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, attentune; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    modules = set(done.stdout.split())
    assert "attentune.methods" in modules
    assert not modules & {f"attentune.{name}" for name in ("training", "predict", "comparison", "search", "cli")}
    assert not modules & {"attentune.serving", "datasets", "pandas", "scipy.stats", "seqeval", "sklearn"}


def test_every_name_is_there_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "attentune.search.search", raising=False)
    names: dict[str, object] = {}
    exec("from attentune import *", names)
    assert names.keys() >= PUBLIC
    with pytest.raises(ConfigError, match=r"searching needs Optuna: pip install 'attentune\[search\]'"):
        attentune.search_adapter([{"text": "rain", "label": "wet"}])
