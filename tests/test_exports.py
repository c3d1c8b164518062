"""The public names: few, listed once, importable, documented."""

from types import ModuleType

import pytest

import attentune

PUBLIC = {
    "METHODS",
    "Anatomy",
    "AttemptConfig",
    "AttentuneError",
    "HeadConfig",
    "KernelMixConfig",
    "Method",
    "MethodConfig",
    "PastaConfig",
    "Place",
    "PrefixPropagationConfig",
    "Site",
    "TaskModel",
    "TinyAttentionConfig",
    "__version__",
    "lengthen",
    "load",
    "predict_many",
    "register",
    "register_architecture",
    "train",
    "train_many",
}


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
