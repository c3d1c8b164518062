"""attentune: one frozen transformer, any number of text tasks, kilobytes each, all of them in one batch.

Importing it registers its methods with peft.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn

from attentune.anatomy import Anatomy, Place, register_architecture
from attentune.errors import AttentuneError, ConfigError
from attentune.heads import HeadConfig
from attentune.method import METHODS, Method, MethodConfig, Site
from attentune.methods import BUILT_IN
from attentune.methods.attempt import AttemptConfig
from attentune.methods.kernel_mix import KernelMixConfig
from attentune.methods.pasta import PastaConfig
from attentune.methods.prefix_propagation import PrefixPropagationConfig
from attentune.methods.tiny_attention import TinyAttentionConfig
from attentune.model import TaskModel
from attentune.tuner import register

if TYPE_CHECKING:
    from attentune.comparison.compare import compare
    from attentune.comparison.plan import Conditions as ComparisonConditions
    from attentune.comparison.report import report as draw_comparison
    from attentune.comparison.sets import Reading as ComparisonColumns
    from attentune.longformer import lengthen
    from attentune.predict import load, predict_many
    from attentune.search.search import search as search_adapter
    from attentune.training.many import train_many
    from attentune.training.recalibrate import recalibrate
    from attentune.training.seeds import train_seeds
    from attentune.training.sources.edit import with_sources as edit_sources
    from attentune.training.sources.library import Library as SourceLibrary
    from attentune.training.sources.made import keep_file as add_source
    from attentune.training.sources.made import train_source
    from attentune.training.train import train

__version__ = version("attentune")

__all__ = [
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
]

for _method in BUILT_IN:
    register(_method)

# Trainer, datasets and scikit-learn take seconds to import, which a server or a plain peft user need not spend.
# Name -> its module, and the name that it has there: `compare` or `Library` say enough inside their packages.
_LAZY = {
    "ComparisonColumns": ("attentune.comparison.sets", "Reading"),
    "ComparisonConditions": ("attentune.comparison.plan", "Conditions"),
    "SourceLibrary": ("attentune.training.sources.library", "Library"),
    "add_source": ("attentune.training.sources.made", "keep_file"),
    "compare": ("attentune.comparison.compare", "compare"),
    "draw_comparison": ("attentune.comparison.report", "report"),
    "edit_sources": ("attentune.training.sources.edit", "with_sources"),
    "lengthen": ("attentune.longformer", "lengthen"),
    "load": ("attentune.predict", "load"),
    "predict_many": ("attentune.predict", "predict_many"),
    "recalibrate": ("attentune.training.recalibrate", "recalibrate"),
    "search_adapter": ("attentune.search.search", "search"),  # `attentune.search` is the package
    "train": ("attentune.training.train", "train"),
    "train_many": ("attentune.training.many", "train_many"),
    "train_seeds": ("attentune.training.seeds", "train_seeds"),
    "train_source": ("attentune.training.sources.made", "train_source"),
}


def _without_optuna(*given: Any, **named: Any) -> NoReturn:
    """Stands for `search_adapter` where Optuna is not installed; the name must be there, for `import *`."""
    raise ConfigError("searching needs Optuna: pip install 'attentune[search]'")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        module, own = _LAZY[name]
        try:
            return getattr(import_module(module), own)
        except ModuleNotFoundError as error:
            if error.name != "optuna":
                raise
            return _without_optuna
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
