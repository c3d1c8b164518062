"""A recipe: a TOML file with [task], [method] and [training] tables, strict, saved with the result.

    [task]                      [method]                    [training]
    kind = "classification"     name = "pasta"              epochs = 10
    max_length = 128            ...fields of its config     learning_rate = 1e-2

Recipes ship inside the package: `recipes/<task>/<method>.toml`, and in `recipes/papers/<method>/` the settings of the
methods' authors, which name backbone and data by their hub ids.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from attentune.errors import ConfigError
from attentune.methods import METHODS
from attentune.tasks.columns import KINDS
from attentune.training.ranges import check_ranges

FOLDERS = (
    "classification", "pair", "multilabel", "regression", "tagging", "question_answering", "multiple_choice",
    "generation", "long_documents",
)  # fmt: skip
FEW = 20
"""Names that a sentence can list."""


def option(default: Any, text: str) -> Any:
    """A field with its line of help."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TaskOptions:
    """[task]: what is learned from which columns."""

    data: str | None = option(None, "what is learned from, where the command names nothing: a file, a folder, a hub id")
    kind: str | None = option(None, f"{', '.join(KINDS)}; guessed when not given")
    text: list[str] = field(
        default_factory=list[str],
        metadata={"help": "the column of the text, the two of a pair (question, context), that of the words; guessed"},
    )
    label: str | None = option(None, "the column to learn; guessed")
    choices: list[str] = field(
        default_factory=list[str],
        metadata={"help": "the columns of the choices, or the one with lists of them; guessed"},
    )
    validation: float = option(0.1, "share of training rows set aside when there is no validation split")
    shots: int | None = option(
        None,
        "learn from this many training rows in all, drawn by the seed, classes or labels evenly; template becomes auto",
    )
    max_length: int = option(128, "most tokens of a sequence; what is longer is cut (a context: into windows)")
    stride: int = option(64, "tokens that neighbouring windows of a context share")
    answer_length: int = option(30, "most tokens of an answer in a context")
    metric: str | None = option(None, "the score that chooses the best epoch; by default the main one of the kind")
    template: str | None = option(
        None, "classes as words in a gap of this sentence, '{text} It was {mask}.'; auto: one that fits; or none"
    )
    words: list[str] = field(
        default_factory=list[str], metadata={"help": "class=word for the gap; by default the names of the classes"}
    )
    pooling: str = option("mean", "what the head reads of a text: cls, mean, pooler, last or prefix")
    dropout: float = option(0.1, "dropout before the head while training")
    out_of_scope: str | None = option(None, "the class of texts that are not for the task: not learned, but detected")
    false_alarms: float | None = option(
        None,
        "share of validation rows that may be flagged out_of_scope; by default the out-of-scope rows choose the "
        "threshold, and without such rows there is none",
    )
    prompt: str | None = option(
        None,
        "generation: what the model reads, {text} in it; by default the text alone, for "
        "decoder-only models and a line break",
    )
    num_beams: int = option(4, "generation: beams of the search; 1: greedy")
    max_new_tokens: int = option(64, "generation: most tokens of an answer")

    def __post_init__(self) -> None:
        check_ranges("task", self)


@dataclass(frozen=True)
class TrainingOptions:
    """[training]: how it is learned, and on which backbone."""

    backbone: str | None = option(None, "where the command names none: a folder or a hub id; by default minilm")
    epochs: float = option(10.0, "passes over the training rows, at most")
    batch_size: int = option(32, "rows in a step, on each process")
    learning_rate: float = option(1e-2, "of the method's tensors")
    head_learning_rate: float | None = option(None, "of the head; by default that of the method")
    attention_learning_rate: float | None = option(
        None, "of the attention over prompts (attempt); by default that of the method"
    )
    weight_decay: float = option(0.0, "decoupled, as in AdamW")
    schedule: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt", "constant", "constant_with_warmup"
    ] = option("linear", "how the rate falls")
    warmup: float = option(0.06, "share of the steps in which the rate rises from 0; from 1 on their number")
    clip: float = option(1.0, "largest norm of the gradient; 0: any")
    accumulate: int = option(1, "batches whose gradients make one step")
    patience: int = option(3, "evaluations without a better score before training ends; 0: never ends early")
    eval_steps: int = option(0, "steps between evaluations (and checkpoints); 0: once an epoch")
    precision: Literal["auto", "float32", "bfloat16"] = option("auto", "auto: bfloat16 on GPUs that have it")
    dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, "numbers of the frozen backbone; by default those of its file. What is trained stays float32"
    )
    quantise: Literal["int8", "nf4"] | None = option(
        None, "int8: the frozen blocks multiply in it, on a CPU; nf4: they keep their weights in 4 bits"
    )
    checkpointing: bool = option(False, "compute activations anew in the backward pass: long texts in less memory")
    attention_dropout: float | None = option(
        None, "dropout of the backbone's attention weights; by default its own. 0 lets long texts train faster"
    )
    cache_frozen: bool = option(
        False, "compute once for each row what leaves the blocks below the first edited one; dropout there does not act"
    )
    seed: int = option(0, "of the start values, the order of rows and dropout")
    report_to: list[str] = field(
        default_factory=list[str], metadata={"help": "follow the run in tensorboard, wandb or mlflow; log.jsonl always"}
    )

    def __post_init__(self) -> None:
        check_ranges("training", self)


@dataclass(frozen=True)
class Recipe:
    """What to train: the three tables. `options` are fields of the method's config."""

    method: str
    task: TaskOptions = field(default_factory=TaskOptions)
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    training: TrainingOptions = field(default_factory=TrainingOptions)

    def tables(self) -> dict[str, dict[str, Any]]:
        """As plain tables; what is None is left out, as TOML has no word for it."""
        task = {f.name: getattr(self.task, f.name) for f in fields(self.task)}
        training = {f.name: getattr(self.training, f.name) for f in fields(self.training)}
        tables = {"task": task, "method": {"name": self.method, **self.options}, "training": training}
        return {name: {k: v for k, v in table.items() if v not in (None, [])} for name, table in tables.items()}

    def to_toml(self) -> str:
        """As a file that `read_recipe` reads back to an equal recipe."""
        blocks = (
            "\n".join([f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())])
            for name, table in self.tables().items()
        )
        return "\n\n".join(blocks) + "\n"

    def override(self, changes: Mapping[str, Any]) -> "Recipe":
        """A recipe with some keys changed: `training.epochs` or, where only one table has it, `epochs`."""
        tables = self.tables()
        known = known_keys(self.method)
        for key, value in changes.items():
            table, name = _locate(key, known)
            if name == "name" and value != self.method:
                raise ConfigError(f"the recipe is for {self.method}; choose another method with --method")
            tables[table][name] = value
        return recipe_of(tables)


def read_recipe(path: str | Path) -> Recipe:
    """A TOML file, or the name of one that ships (`papers/pasta/mrpc`) -> recipe, every key checked."""
    shipped = resources.files("attentune") / "recipes" / f"{path}.toml"
    try:
        ships = not Path(path).exists() and shipped.is_file()
        text = shipped.read_text(encoding="utf-8") if ships else Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"no recipe {str(path)!r}: wanted a TOML file, or one that ships, as {', '.join(_papers())}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the recipe {path}: {error}") from error
    return parse_recipe(text, str(path))


def _papers() -> list[str]:
    """The recipes of the papers."""
    methods = (resources.files("attentune") / "recipes" / "papers").iterdir()
    files = ((method.name, file.name) for method in methods if method.is_dir() for file in method.iterdir())
    return sorted(f"papers/{method}/{name.removesuffix('.toml')}" for method, name in files if name.endswith(".toml"))


def parse_recipe(text: str, name: str = "the recipe") -> Recipe:
    """TOML -> recipe, every key checked; `name` stands in errors."""
    try:
        return recipe_of(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not TOML: {error}") from error


def recipe_of(tables: Mapping[str, Any]) -> Recipe:
    """Plain tables -> recipe."""
    _check_keys(tables, ("task", "method", "training"), "a recipe", "table")
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"{name} is a table of a recipe, [{name}], found {table!r}")
    method = dict(tables.get("method", {}))
    name = method.pop("name", None)
    if name not in METHODS:
        raise ConfigError(f"[method] needs a name, one of {', '.join(METHODS)}; found {name!r}")
    hints = method_options(name)
    _check_keys(method, list(hints), "[method]")
    for key, value in method.items():
        method[key] = checked(f"method.{key}", value, hints[key])
    return Recipe(
        method=name,
        task=_options(TaskOptions, "task", tables.get("task", {})),
        options=method,
        training=_options(TrainingOptions, "training", tables.get("training", {})),
    )


def shipped_recipe(kind: str, method: str, pair: bool = False) -> Recipe:
    """The recipe of the package for a kind of task and a method; for a method without one, the defaults."""
    folder = "pair" if pair and kind == "classification" else kind
    file = resources.files("attentune") / "recipes" / folder / f"{method}.toml"
    if file.is_file():
        return parse_recipe(file.read_text(encoding="utf-8"), f"{folder}/{method}.toml")
    return recipe_of({"method": {"name": method}})


def method_options(method: str) -> dict[str, Any]:
    """The config fields that a recipe may set -> their types."""
    config = METHODS[method].config
    hints = get_type_hints(config)
    own = [f.name for f in fields(config) if "help" in f.metadata and f.name not in NOT_IN_RECIPES]
    shared = {f.name for f in fields(config) if f.name in PEFT_FIELDS}
    return {name: hints[name] for name in own if name not in shared}


PEFT_FIELDS = frozenset(
    {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
)
NOT_IN_RECIPES = frozenset({"head", "target_modules", "exclude_modules", "modules_to_save"})


def known_keys(method: str) -> dict[str, list[str]]:
    """Table -> its keys."""
    return {
        "task": [f.name for f in fields(TaskOptions)],
        "method": ["name", *method_options(method)],
        "training": [f.name for f in fields(TrainingOptions)],
    }


def parse_set(assignments: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts -> values: TOML where the value reads as TOML, else the text itself.

    Keys come out with their table in front, `training.seed`, so that none is taken for a parameter of a function that
    takes keys of a recipe as keywords; a key that is in several tables stays as it is, for the method to decide.

    Raises:
        ConfigError: a text of another form, or a key that no recipe has.
    """
    changes: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"wanted key=value, found {assignment!r}")
        try:
            found = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found = value.strip()
        changes[_with_table(key.strip())] = found
    return changes


def _with_table(key: str) -> str:
    """`seed` -> `training.seed`, by the keys of all methods."""
    tables = [known_keys(method) for method in METHODS]
    known = {name: list(dict.fromkeys(key for one in tables for key in one[name])) for name in tables[0]}
    if "." in key or sum(key in names for names in known.values()) > 1:
        return key
    return ".".join(_locate(key, known))


def _locate(key: str, known: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    table, dot, name = key.partition(".")
    if dot and table in known:
        _check_keys([name], known[table], f"[{table}]")
        return table, name
    homes = [table for table, names in known.items() if key in names]
    if len(homes) == 1:
        return homes[0], key
    if homes:
        raise ConfigError(f"{key!r} could be {' or '.join(f'{home}.{key}' for home in homes)}; name the one you mean")
    _check_keys([key], list(dict.fromkeys(name for names in known.values() for name in names)), "a recipe")
    raise AssertionError("unreachable")


def _check_keys(keys: Any, known: Sequence[str], where: str, what: str = "key") -> None:
    for key in keys:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f", did you mean {near[0]!r}?" if near else "."
            there = f" The {what}s are {', '.join(known)}" if not near or len(known) <= FEW else ""
            raise ConfigError(f"{where} has no {what} {key!r}{hint}{there}")


def _options(kind: Any, table: str, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind)
    _check_keys(values, list(hints), f"[{table}]")
    return replace(kind(), **{key: checked(f"{table}.{key}", value, hints[key]) for key, value in values.items()})


def checked(key: str, value: Any, hint: Any) -> Any:
    """The value if it fits the type (whole numbers fit float), else a ConfigError that names the key."""
    for choice in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        if choice is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if _fits(value, choice):
            return value
    raise ConfigError(f"{key} is {_name(hint)}, found {value!r}")


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind))
    if origin in (list, tuple):
        inner = get_args(kind)[0]
        return isinstance(value, list) and all(_fits(item, inner) for item in cast("list[Any]", value))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    plain = kind if isinstance(kind, type) else origin
    return kind is Any or (isinstance(plain, type) and isinstance(value, plain))


def _name(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_name(choice) for choice in get_args(hint) if choice is not NoneType)
    if get_origin(hint) is Literal:
        return " or ".join(json.dumps(choice) for choice in get_args(hint))
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list"}
    return words.get(get_origin(hint) or hint, str(hint))


def _toml(value: Any) -> str:
    """One value as TOML. JSON writes texts, numbers, booleans and flat lists as TOML reads them, but for U+007F."""
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
