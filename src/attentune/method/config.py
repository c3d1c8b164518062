"""What every method's configuration has."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar

from peft.config import PeftConfig

from attentune.errors import ConfigError
from attentune.method.method import Method, peft_name


@dataclass
class MethodConfig(PeftConfig):
    """What every method's config has. Fields are JSON; `None` means: chosen from the backbone when first used."""

    method: ClassVar[Method | None] = None

    target_modules: list[str] | None = field(
        default=None, metadata={"help": "not used: the anatomy of the architecture says where a method acts"}
    )
    exclude_modules: list[str] | None = field(default=None, metadata={"help": "not used, see target_modules"})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules of the model that are trained and saved too, e.g. a native head"}
    )
    layers_to_transform: list[int] | None = field(
        default=None, metadata={"help": "blocks that are edited, counted from 0; none named: all"}
    )
    head: dict[str, Any] | None = field(
        default=None, metadata={"help": "the task's head: a HeadConfig, or nothing for a native head"}
    )
    init_weights: bool | str = field(
        default=True,
        metadata={"help": "true: start at the unchanged model; false: a random start; 'paper': the authors' start"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # pyright: ignore[reportUnknownMemberType]
        method = type(self).method
        if method is None:
            raise ConfigError(f"{type(self).__name__} belongs to no registered method; call attentune.register first")
        self.peft_type = peft_name(method)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        if is_dataclass(self.head) and not isinstance(self.head, type):
            self.head = asdict(self.head)
        if isinstance(self.layers_to_transform, int):
            self.layers_to_transform = [self.layers_to_transform]
        blocks: Any = self.layers_to_transform
        if isinstance(blocks, str) or not all(isinstance(block, int) for block in blocks or ()):
            raise ConfigError(f"layers_to_transform is a list of blocks, counted from 0, found {blocks!r}")
        if self.layers_to_transform == []:
            raise ConfigError("layers_to_transform names no block; leave it out to edit all of them")
        if (self.head or {}).get("pooling") == "prefix" and not method.prompt_length(self):
            raise ConfigError(f"a head with pooling prefix reads a prompt row, and {method.name} has none as it is set")
        if self.init_weights not in (True, False, "paper"):
            raise ConfigError(f"init_weights is true, false or 'paper', not {self.init_weights!r}")
        dropout = getattr(self, "dropout", 0.0)
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout is at least 0 and below 1, not {dropout}")

    def key(self) -> str:
        """Adapters with equal keys have equal shapes and run as one group; fields marked `record` enter no formula."""
        own = {f.name for f in fields(self) if not f.metadata.get("record")} - _SHARED_FIELDS
        return repr(sorted((name, getattr(self, name)) for name in own))


_SHARED_FIELDS = {f.name for f in fields(PeftConfig)} | {"modules_to_save", "head", "init_weights"}
