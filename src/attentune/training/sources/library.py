"""A library of source prompts: a folder with two small files a source.

    NAME.safetensors    `prompt` [m,E], float32
    NAME.json           the card: task, backbone and its fingerprint, m, E, the prompt's sha256, scores, how it was made

The card is written last and removed first, so that a source is there as a whole or not at all.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from attentune.backbones import same_backbone
from attentune.card import Backbone
from attentune.errors import ConfigError, StoreError
from attentune.methods.attempt import TARGET

FORMAT = 1
KEY = "prompt"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True)
class SourceCard:
    """What is known of a source prompt."""

    name: str
    task: str
    """What it was trained on, for people."""
    backbone: Backbone
    length: int
    """m"""
    width: int
    """E"""
    sha256: str
    made: str
    """How: a recipe (TOML), or the file that it was read from."""
    score: dict[str, float] = field(default_factory=dict[str, float])
    """Of its own task on validation rows; empty where nobody knows."""

    def to_json(self) -> str:
        """As NAME.json holds it."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> "SourceCard":
        """A NAME.json -> card; `where` stands in errors."""
        try:
            card: dict[str, Any] = json.loads(text)
            found = card.pop("format")
            if found != FORMAT:
                raise StoreError(f"{where} has format {found}, this attentune reads format {FORMAT}")
            card["backbone"] = Backbone.from_card(card["backbone"])
            return cls(**card)
        except StoreError:
            raise
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise StoreError(f"{where} is no card of a source prompt: {error}") from error


def check_source_name(name: str) -> str:
    """The name, if it can be that of a source.

    Raises:
        ConfigError: it could leave the folder, or means something else in a mixture.
    """
    if not NAME.fullmatch(name) or name == TARGET:
        raise ConfigError(
            f"a source's name is made of letters, digits, - and _, at most 100, and is not {TARGET!r}; found {name!r}"
        )
    return name


def digest(prompt: Tensor) -> str:
    """The sha256 of a prompt's shape and float32 values."""
    values = prompt.detach().cpu().float().contiguous()
    return hashlib.sha256(str(tuple(values.shape)).encode() + values.numpy().tobytes()).hexdigest()


class Library:
    """A folder of source prompts."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()

    def names(self) -> list[str]:
        """All sources, in the order of the alphabet.

        Raises:
            StoreError: there is no such folder.
        """
        if not self.folder.is_dir():
            raise StoreError(f"no library of source prompts at {self.folder}")
        return sorted(path.stem for path in self.folder.glob("*.json") if NAME.fullmatch(path.stem))

    def card(self, name: str) -> SourceCard:
        """The card of a source.

        Raises:
            ConfigError: it is not in the library.
        """
        path = self._file(name, "json")
        if not path.is_file():
            raise ConfigError(f"no source {name!r} in {self.folder}; there are {', '.join(self.names()) or 'none'}")
        return SourceCard.from_json(path.read_bytes(), str(path))

    def prompt(self, name: str) -> Tensor:
        """[m,E], checked against its card.

        Raises:
            StoreError: the file is missing, damaged, or not the one that the card was written for.
        """
        card, path = self.card(name), self._file(name, "safetensors")
        try:
            prompt = load(path.read_bytes())[KEY]
        except (OSError, SafetensorError, KeyError) as error:
            raise StoreError(f"{path} holds no tensor {KEY!r}: {error}") from error
        if digest(prompt) != card.sha256:
            raise StoreError(f"{path} is not what its card says; remove the source {name!r} and add it again")
        return prompt

    def add(self, card: SourceCard, prompt: Tensor) -> None:
        """Write a new source.

        Raises:
            ConfigError: the name cannot be one, or is taken.
        """
        self.check_free(card.name)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._file(card.name, "safetensors"), save({KEY: prompt.detach().cpu().float().contiguous()}))
        write_whole(self._file(card.name, "json"), card.to_json().encode())

    def remove(self, name: str) -> None:
        """Take a source out of the library; adapters that mix it keep their own copy.

        Raises:
            ConfigError: it is not there.
        """
        self.card(name)
        self._file(name, "json").unlink()
        self._file(name, "safetensors").unlink(missing_ok=True)

    def check_free(self, name: str) -> None:
        """Raises:
        ConfigError: the name cannot be one, or is taken.
        """
        if self._file(name, "json").exists():
            raise ConfigError(f"there is a source {name!r} in {self.folder}; remove it first, or choose another name")

    def equal(self, names: Sequence[str], length: int | None = None) -> list[SourceCard]:
        """Cards of sources that can be mixed, of one length m (of `length`, where it is given).

        Raises:
            ConfigError: none is named, one is named twice, is not there, or is of another length.
        """
        if not names:
            raise ConfigError(f"{self.folder} holds no source prompt; add one with `attentune sources add` or `train`")
        if len(set(names)) < len(names):
            raise ConfigError(f"a source is mixed once; found {', '.join(names)}")
        cards = [self.card(name) for name in names]
        wanted = length or cards[0].length
        other = [card for card in cards if card.length != wanted]
        if other:
            found = ", ".join(f"{card.name} {card.length}" for card in other)
            raise ConfigError(f"prompts of one mixture have equal length: wanted {wanted} rows, found {found}")
        return cards

    def check_backbone(self, names: Sequence[str], backbone: Backbone) -> None:
        """Raises:
        StoreError: one of the sources was made on another backbone.
        """
        for card in map(self.card, names):
            if not same_backbone(card.backbone.fingerprint, backbone.fingerprint):
                raise StoreError(
                    f"source {card.name!r} was made on {card.backbone.id} with fingerprint "
                    f"{card.backbone.fingerprint}; {backbone.id} has {backbone.fingerprint}"
                )

    def _file(self, name: str, ending: str) -> Path:
        return self.folder / f"{check_source_name(name)}.{ending}"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it, so that it is there whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    os.replace(fresh, path)


def card_for(
    name: str, prompt: Tensor, backbone: Backbone, task: str, made: str, score: Mapping[str, Any] | None = None
) -> SourceCard:
    """The card of a prompt [m,E]."""
    length, width = prompt.shape
    return SourceCard(name, task, backbone, length, width, digest(prompt), made, dict(score or {}))
