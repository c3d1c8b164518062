"""The task card, task.json: everything that prediction needs besides the tensors."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from attentune.confidence import Calibration
from attentune.errors import StoreError
from attentune.tasks import Task, task_from_card
from attentune.tasks.columns import Columns

FORMAT = 1


@dataclass(frozen=True)
class Backbone:
    """Which backbone an adapter was trained on."""

    id: str
    fingerprint: str
    revision: str | None = None

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> "Backbone":
        """The backbone of a card."""
        return cls(str(card["id"]), str(card["fingerprint"]), card.get("revision"))


@dataclass(frozen=True)
class TaskCard:
    """Everything that prediction needs besides the tensors."""

    name: str
    method: str
    task: Task
    columns: Columns
    backbone: Backbone
    max_length: int
    pooling: str
    calibration: Calibration = field(default_factory=Calibration)

    def to_json(self) -> str:
        """As task.json holds it."""
        card = {
            "format": FORMAT,
            "attentune": metadata.version("attentune"),
            "name": self.name,
            "method": self.method,
            "task": self.task.to_card(),
            "columns": self.columns.to_card(),
            "backbone": asdict(self.backbone),
            "max_length": self.max_length,
            "pooling": self.pooling,
            "calibration": self.calibration.to_card(),
        }
        return json.dumps(card, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> "TaskCard":
        """A task.json -> card; `where` stands in errors.

        Raises:
            StoreError: it is no task card, or one of another format.
        """
        try:
            card = json.loads(text)
            json.dumps(card, ensure_ascii=False).encode()  # Half of a surrogate pair could never be given again.
            if card["format"] != FORMAT:
                raise StoreError(f"{where} has format {card['format']}, this attentune reads format {FORMAT}")
            labels = card["task"].get("labels", [])
            if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
                raise StoreError(f"{where} wants a list of texts as its labels, found {labels!r}")
            twice = next((label for label, count in Counter(labels).items() if count > 1), None)
            if twice is not None:
                raise StoreError(f"{where} wants a label of its own for each class, found {twice!r} twice")
            return cls(
                name=str(card["name"]),
                method=str(card["method"]),
                task=task_from_card(card["task"]),
                columns=Columns.from_card(card["columns"]),
                backbone=Backbone.from_card(card["backbone"]),
                max_length=int(card["max_length"]),
                pooling=str(card["pooling"]),
                calibration=Calibration.from_card(card.get("calibration", {})),
            )
        except StoreError:
            raise
        except KeyError as error:
            raise StoreError(f"{where} has no {error.args[0]!r}") from error
        except Exception as error:  # values of any wrong kind
            raise StoreError(f"{where} is no task card: {error}") from error
