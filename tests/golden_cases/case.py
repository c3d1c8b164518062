"""A golden case: what the authors' own code computed, read from `<case>.json` and `<case>.safetensors`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

COMMITTED = Path(__file__).parent.parent / "golden"
INDEX = "index.json"
"""The list of a folder's cases, where it has one."""


def folder() -> Path:
    """`ATTENTUNE_GOLDEN`, else the committed subset."""
    return Path(os.environ.get("ATTENTUNE_GOLDEN") or COMMITTED)


def names(folder: Path) -> list[str]:
    """Every case of a folder, by its JSON."""
    return sorted(path.stem for path in folder.glob("*.json") if path.name != INDEX)


@dataclass(frozen=True)
class Case:
    """One case."""

    folder: Path
    name: str
    attention: str = "eager"
    """Which of transformers' implementations runs it; only eager shows attentions."""

    @cached_property
    def about(self) -> dict[str, Any]:
        """The JSON."""
        return json.loads((self.folder / f"{self.name}.json").read_text(encoding="utf-8"))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under its full name."""
        return load_file(self.folder / f"{self.name}.safetensors")

    @property
    def method(self) -> str:
        return self.about["method"]

    @property
    def switches(self) -> dict[str, Any]:
        """What the authors' config said."""
        return self.about.get("official_config") or self.about.get("official_config_extra") or {}

    def group(self, name: str) -> dict[str, Tensor]:
        """The tensors of one group, the group's name taken off; copies, so that a case can be run twice."""
        start = f"{name}/"
        return {key.removeprefix(start): value.clone() for key, value in self.tensors.items() if key.startswith(start)}

    def leaves(self, name: str) -> dict[str, Tensor]:
        """A group's tensors as leaves that collect gradients."""
        return {key: value.requires_grad_() for key, value in self.group(name).items()}

    def inputs(self, *wanted: str) -> dict[str, Tensor]:
        """Those of the wanted inputs that the case has."""
        return {key: value for key, value in self.group("input").items() if key in wanted}

    def backbone(self) -> Any:
        """The frozen model with the case's weights, in eval mode; what the case has gradients of is trainable."""
        kind, about = getattr(transformers, self.about["config_class"]), self.about["config"]
        config = kind(**about, attn_implementation=self.attention)
        model = getattr(transformers, self.about["backbone_class"])(config, **self.about.get("backbone_kwargs", {}))
        state = self.group("backbone")
        if not about.get("tie_word_embeddings", True):
            # T5Config ties whatever it is told.
            model.lm_head.weight = nn.Parameter(state["lm_head.weight"].clone())
        missing, unexpected = model.load_state_dict(state, strict=False)
        tied = set(getattr(model, "_tied_weights_keys", None) or ())
        assert set(missing) <= tied, f"{self.name}: the backbone lacks {missing}"
        assert not unexpected, f"{self.name}: the backbone has no place for {unexpected}"
        return model.eval()
