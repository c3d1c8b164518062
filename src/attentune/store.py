"""The adapter folder: the contract between training and serving. Written whole or not at all, read with every check.

    adapter_config.json         pure peft
    adapter_model.safetensors   pure peft: the method's tensors and the head
    task.json                   the task card: all that prediction needs besides
    recipe.toml                 how it was made
    metrics.json                how good it is
    log.jsonl                   how training went, a line an evaluation
    search.json, search.html    how method and settings were chosen, where `search` chose them
    README.md                   the model card

There is never a pickle in it. It is written beside its place and renamed, so that a kill leaves the old folder or the
new one, whole; if it strikes between the two renames the old one is found again at the next look.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from peft import PeftConfig
from pydantic_core import from_json
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from attentune.backbones import same_backbone
from attentune.card import TaskCard, model_card
from attentune.errors import ConfigError, StoreError
from attentune.heads import HeadConfig
from attentune.method import METHODS, MethodConfig
from attentune.tasks.verbalise import Cloze

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "task.json"
RECIPE, METRICS, LOG, README = "recipe.toml", "metrics.json", "log.jsonl", "README.md"
SEARCH, SEARCH_PAGE = "search.json", "search.html"
FILES = frozenset({CONFIG, WEIGHTS, CARD, RECIPE, METRICS, LOG, README, SEARCH, SEARCH_PAGE})
"""All that an adapter folder may hold."""


LEFT = frozenset({".cache", ".gitattributes", ".DS_Store"})
"""What downloads and desktops leave there; it may go with an adapter."""


class Saves(Protocol):
    """What writes the peft part: a PeftModel."""

    def save_pretrained(self, save_directory: str, **options: Any) -> None:
        """Write adapter_config.json and adapter_model.safetensors."""
        ...


@dataclass(frozen=True)
class Stored:
    """An adapter folder, read and checked; the tensors stay in the file."""

    folder: Path
    card: TaskCard
    config: dict[str, Any]
    """As the file says it."""
    method: MethodConfig
    """The config as peft makes it of the file."""
    metrics: dict[str, Any]
    recipe: str


def write(
    folder: str | Path, model: Saves, card: TaskCard, recipe: str, metrics: Mapping[str, Any], log: str = ""
) -> Path:
    """Write an adapter folder; an older one at the same place is replaced.

    Raises:
        StoreError: something that is no adapter, or more than one, is at the place.
    """
    target = check_writable(folder)
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    model.save_pretrained(str(fresh), safe_serialization=True, save_embedding_layers=False)
    (fresh / CARD).write_text(card.to_json(), encoding="utf-8")
    (fresh / RECIPE).write_text(recipe, encoding="utf-8")
    (fresh / METRICS).write_text(as_json(metrics), encoding="utf-8")
    if log:
        (fresh / LOG).write_text(log, encoding="utf-8")
    # safetensors writes for its owner only; the adapter is for whom the rest of the folder is for.
    (fresh / WEIGHTS).chmod((fresh / CARD).stat().st_mode)
    (fresh / README).write_text(readme(fresh, card, metrics), encoding="utf-8")
    _replace(target, fresh)
    return target


def copy(made: Path, folder: str | Path, metrics: Mapping[str, Any], more: Mapping[str, str] | None = None) -> Path:
    """Put a copy of the adapter folder `made` at `folder`, with other metrics and perhaps `more` files {name: text}.

    An older adapter at the place is replaced.

    Raises:
        StoreError: something that is no adapter, or more than one, is at the place.
    """
    target = check_writable(folder)
    card = read(made).card
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(made, fresh, ignore=lambda _, names: set(names) - FILES)
    (fresh / METRICS).write_text(as_json(metrics), encoding="utf-8")
    (fresh / README).write_text(readme(fresh, card, metrics), encoding="utf-8")
    for name, text in (more or {}).items():
        (fresh / name).write_text(text, encoding="utf-8")
    _replace(target, fresh)
    return target


def readme(folder: Path, card: TaskCard, metrics: Mapping[str, Any]) -> str:
    """The model card of a folder's tensors, with this task card and these metrics."""
    return model_card(card, metrics, (folder / WEIGHTS).stat().st_size, (folder / LOG).is_file())


def check_fits(task: str, card: TaskCard, found: str, where: str) -> None:
    """Whether a backbone with the fingerprint `found`, loaded from `where`, is that of the adapter.

    Raises:
        StoreError: it is another one.
    """
    wanted = card.backbone
    if not same_backbone(found, wanted.fingerprint):
        raise StoreError(
            f"adapter {task!r} was trained on {wanted.id} with fingerprint {wanted.fingerprint}; "
            f"the weights at {where} have {found}"
        )


def as_json(value: Any) -> str:
    """As the JSON files of a folder are written."""
    return json.dumps(finite(value), indent=2) + "\n"


def finite(value: Any) -> Any:
    """Plain values with None for NaN and infinity, which JSON cannot say."""
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_writable(folder: str | Path) -> Path:
    """The place of a new adapter folder: free, empty, or an older adapter; else a StoreError.

    Where `folder` is a link it is the place that the link names: the link stays.
    """
    target = _linked(Path(folder).expanduser().absolute())
    recover(target)
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / CONFIG).is_file()):
        raise StoreError(f"{folder} exists and is no adapter folder; name another one")
    more = sorted({path.name for path in target.iterdir()} - FILES - LEFT) if target.is_dir() else []
    if more:
        found = ", ".join(more[:3]) + (" ..." if len(more) > 3 else "")
        raise StoreError(
            f"{folder} holds more than an adapter, {found}, and all that is there goes when a new adapter takes its "
            "place; name another folder"
        )
    return target


def tell_replaced(target: Path, report: Callable[[str], None], own: Path | None = None) -> None:
    """Say that an adapter is where the new one will be, unless it is `own`, the one that is changed."""
    same = own is not None and own.expanduser().resolve() == target.resolve()
    if (target / CONFIG).is_file() and not same:
        report(f"{target.name} holds an adapter already; the new one takes its place when it is done")


def place_of(home: Path, name: str) -> Path:
    """The place of a task's new adapter folder among others in `home`.

    Raises:
        ConfigError: the name is not that of a folder.
        StoreError: as `check_writable`.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise ConfigError(f"a task's name is that of its folder, found {name!r}")
    return check_writable(home / name)


def read(folder: str | Path) -> Stored:
    """Read and check an adapter folder.

    Raises:
        StoreError: there is none, a file of it is missing or damaged, or its method is not registered.
    """
    place = Path(folder).expanduser().absolute()
    recover(_linked(place))
    if not place.is_dir():
        raise StoreError(f"no adapter folder at {folder}")
    missing = [name for name in (CONFIG, WEIGHTS, CARD) if not (place / name).is_file()]
    if missing:
        raise StoreError(f"{folder} is no adapter folder of attentune: it has no {', '.join(missing)}")
    card = TaskCard.from_json((place / CARD).read_bytes(), f"{folder}/{CARD}")
    if card.method not in METHODS:
        raise StoreError(
            f"{folder} uses method {card.method!r}; known are {', '.join(METHODS)} "
            "(one of your own is registered before: attentune.register)"
        )
    method = peft_config(place)
    _check_config(method, card, folder)
    _check_whole(place)
    return Stored(
        folder=place,
        card=card,
        config=_read_json(place / CONFIG),
        method=cast("MethodConfig", method),
        metrics=_read_json(place / METRICS) if (place / METRICS).is_file() else {},
        recipe=_read_text(place / RECIPE) if (place / RECIPE).is_file() else "",
    )


def peft_config(folder: Path) -> PeftConfig:
    """The config of an adapter folder, of any kind of adapter that peft knows.

    Raises:
        StoreError: it cannot be read.
    """
    path = folder / CONFIG
    kind = _read_json(path).get("peft_type")
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if isinstance(config, MethodConfig) and config.head is not None:
            HeadConfig(**config.head)
    except KeyError as error:
        raise StoreError(f"{path} names peft_type {kind!r}, which peft does not know") from error
    except Exception as error:  # values of any wrong kind
        raise StoreError(f"{path} is no config of an adapter: {error}") from error
    return config


def _check_config(config: Any, card: TaskCard, folder: str | Path) -> None:
    """Whether peft's part and the card are of one adapter."""
    if not isinstance(config, METHODS[card.method].config):
        found = getattr(config.peft_type, "value", config.peft_type)
        raise StoreError(f"{folder} holds a {found} adapter, and its card says {card.method}")
    if config.head is None:
        return
    head, task = HeadConfig(**config.head), card.task
    wanted = "masked" if isinstance(task, Cloze) else task.head
    if (head.kind, head.num_labels) != (wanted, task.num_outputs):
        raise StoreError(
            f"{folder} has a {head.kind} head with {head.num_labels} outputs, and its card's {task.kind} wants a "
            f"{wanted} head with {task.num_outputs}"
        )


def _check_whole(folder: Path) -> None:
    """Whether the file of tensors is one and has its full length, seen by its head alone."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt"):
            return
    except Exception as error:
        raise _unreadable(folder, error) from error


def metrics_of(folder: Path) -> dict[str, Any]:
    """What the folder says of how good it is, to be shown; empty where it says nothing that JSON can give again."""
    try:
        found = finite(from_json((folder / METRICS).read_bytes()))
    except (OSError, ValueError):  # Also half of a surrogate pair, and a depth without end.
        return {}
    return found if isinstance(found, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path} holds no JSON object")
    return found


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} is no text: {error}") from error


def _replace(target: Path, fresh: Path) -> None:
    """Put `fresh` where `target` is. Between the renames only `.old` exists, which `recover` moves back."""
    old = aside(target)
    if target.exists():
        os.rename(target, old)
    os.rename(fresh, target)
    shutil.rmtree(old, ignore_errors=True)


def tensors(folder: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of an adapter folder by name, and the SHA-256 of their file.

    Raises:
        StoreError: they cannot be read.
    """
    try:
        content = (folder / WEIGHTS).read_bytes()
        return load(content), hashlib.sha256(content).hexdigest()
    except Exception as error:  # safetensors raises more than its own type, TypeError for odd dtypes say
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> StoreError:
    """Why the tensors cannot be read, without where they lie."""
    reason = error.strerror or "" if isinstance(error, OSError) else str(error).splitlines()[0]
    return StoreError(f"the tensors of {folder.name} cannot be read: {reason}")


def recover(target: Path) -> None:
    """Put back what a kill between the two renames of a replacement left aside."""
    if target.name:  # not the root of the disk
        put_back(aside(target), target)


def put_back(old: Path, target: Path) -> None:
    """Move a folder from aside back to its place, or take it away where another has the place.

    It stays as it is where nobody may write.
    """
    if not (old.is_dir() or old.is_symlink()) or not os.access(target.parent, os.W_OK):
        return
    if old.is_dir() and not target.exists():
        os.rename(old, target)
    elif old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old, ignore_errors=True)


def _linked(place: Path) -> Path:
    """The place itself, or that which a link there names."""
    return place.resolve() if place.is_symlink() else place


def aside(target: Path) -> Path:
    """Where a folder lies while another takes its place."""
    return target.with_name(f".{target.name}.old")
