"""attentune: one frozen transformer, any number of text tasks, kilobytes each, all of them in one batch.

Importing it registers its methods with peft.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from attentune.anatomy import Anatomy, Place, register_architecture
from attentune.errors import AttentuneError
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
    from attentune.longformer import lengthen
    from attentune.predict import load, predict_many
    from attentune.training.many import train_many
    from attentune.training.train import train

__version__ = version("attentune")

__all__ = [
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
]

for _method in BUILT_IN:
    register(_method)

# What trains and predicts imports datasets and Trainer, seconds that a server or a plain peft user need not spend.
_LAZY = {
    "lengthen": "attentune.longformer",
    "load": "attentune.predict",
    "predict_many": "attentune.predict",
    "train": "attentune.training.train",
    "train_many": "attentune.training.many",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
