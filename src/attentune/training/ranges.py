"""Which numbers of a recipe can be meant.

A training with other numbers would end in an error of torch's or numpy's, or, worse, write an adapter that learned
nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

from attentune.errors import ConfigError

Range = tuple[str, Callable[[float], bool]]
"""In words, and as a test that NaN and infinity fail."""

ABOVE_0: Range = ("above 0", lambda x: 0 < x < float("inf"))
FROM_0: Range = ("at least 0", lambda x: 0 <= x < float("inf"))
FROM_1: Range = ("at least 1", lambda x: x >= 1)
SHARE: Range = ("at least 0 and below 1", lambda x: 0 <= x < 1)
SEED: Range = (f"between 0 and {2**32 - 1}", lambda x: 0 <= x < 2**32)  # numpy takes no other

RANGES: Mapping[str, Range] = {
    "task.stride": FROM_0,
    "task.answer_length": FROM_1,
    "task.dropout": SHARE,
    "training.epochs": ABOVE_0,
    "training.batch_size": FROM_1,
    "training.learning_rate": FROM_0,
    "training.head_learning_rate": FROM_0,
    "training.attention_learning_rate": FROM_0,
    "training.weight_decay": FROM_0,
    "training.warmup": FROM_0,
    "training.clip": FROM_0,
    "training.accumulate": FROM_1,
    "training.patience": FROM_0,
    "training.eval_steps": FROM_0,
    "training.attention_dropout": SHARE,
    "training.seed": SEED,
}
"""By key; what has a check where it is used (max_length beside a prompt, shots of so many rows) is not among them."""


def check_ranges(table: str, options: Any) -> None:
    """Raise a ConfigError if one of the numbers lies outside of its range; None is no number."""
    for key, (words, holds) in RANGES.items():
        home, _, name = key.partition(".")
        value = getattr(options, name) if home == table else None
        if value is not None and not holds(value):
            raise ConfigError(f"{key} is {words}, found {value}")
