"""Backward only where it is needed, and what the frozen blocks below the first edited one make of a text, kept.

No autograd graph is made below the first edited block. Where a config edits the upper blocks only
(`layers_to_transform`), a row also enters the first of them as the same states in every epoch: they are kept by the
row's tokens, in memory and, when they are many, on disk, and the lower blocks are not run at all. They are computed in
evaluation mode: dropout below the first edited block does not act, above it does.

Each task keeps its own, until it is done; tasks that train at the same time share the memory for it.
"""

import inspect
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from attentune.errors import ConfigError, UnsupportedError
from attentune.method import MethodConfig, Site
from attentune.sites import memory, stacks_in

MEMORY = 2 * 1024**3
"""Bytes of states that are kept in memory; the rest goes to disk."""


@dataclass
class Room:
    """The memory for states that is left to all who share it."""

    free: int = MEMORY
    """Bytes."""


class Kept:
    """States [t,D] by key: in memory while `room` is left, then as safetensors files in `folder`."""

    def __init__(self, folder: Path, room: Room) -> None:
        self.folder, self.room = folder, room
        self.beside: tuple[Any, ...] | None = None
        """What a block hands on beside the states, none of it tensors; None: it hands on the states alone."""
        self._near: dict[bytes, Tensor] = {}
        self._far: dict[bytes, Path] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._near or key in self._far

    def put(self, states: Mapping[bytes, Tensor]) -> None:
        """Keep more."""
        fresh = {key: value.cpu().contiguous() for key, value in states.items() if key not in self}
        size = _bytes(fresh)
        if size <= self.room.free:
            self._near |= fresh
            self.room.free -= size
        elif fresh:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / f"{os.getpid()}-{len(self._far)}.safetensors"
            save_file({key.hex(): value for key, value in fresh.items()}, file)
            self._far |= dict.fromkeys(fresh, file)

    def get(self, key: bytes) -> Tensor:
        """What was kept."""
        if key in self._near:
            return self._near[key]
        with safe_open(self._far[key], "pt") as file:
            return file.get_tensor(key.hex())

    def close(self) -> None:
        """Forget everything, and give the room back."""
        self.room.free += _bytes(self._near)
        self._near, self._far = {}, {}
        shutil.rmtree(self.folder, ignore_errors=True)


def _bytes(states: Mapping[bytes, Tensor]) -> int:
    return sum(value.nbytes for value in states.values())


class NoInputGradients(TrainerCallback):
    """Takes back what transformers does with checkpointing: ask for gradients of the embeddings.

    They serve re-entrant checkpoints, which we do not use, and drag the backward through every frozen block.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Once the Trainer has set checkpointing up."""
        ask_no_input_gradients(given["model"])


def ask_no_input_gradients(model: nn.Module) -> None:
    """Let the graph begin at the first parameter that is trained."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.disable_input_require_grads()


class _EnoughError(Exception):
    """The states are there; nothing after them needs to run."""


class FrozenPart:
    """The blocks below `first` of one model, which run once for each row.

    `kept` says where the states lie: one place, or one for each row of the batch that comes next.

    Raises:
        UnsupportedError: the architecture has several stacks, or its blocks hand on more than states.
    """

    def __init__(self, model: nn.Module, first: int, kept: Sequence[Kept]) -> None:
        self.first, self.kept = first, kept
        stacks = stacks_in(model)
        if len(stacks) != 1:
            raise UnsupportedError(
                "cache_frozen is for one stack of blocks; this backbone has an encoder and a decoder"
            )
        (self._stack,) = stacks
        self._host = self._stack.host
        self._names = list(inspect.signature(self._host.forward).parameters)
        blocks = [self._host.get_submodule(self._stack.anatomy.block_path(i)) for i in range(first)]
        for index, block in enumerate(blocks):
            block.forward = partial(self._block, index, block.forward)
        self._rows: list[Tensor] | None = None
        self._mask: Tensor | None = None
        self._states: Tensor | None = None
        self._recorded: Any = None
        self._recording = False
        # First of all hooks: by the second the batch in flight is noted down, and recording is a batch of its own.
        self._host.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True)
        self._host.register_forward_hook(self._after)

    def _before(self, host: nn.Module, args: tuple[Any, ...], call: dict[str, Any]) -> Any:
        if self._recording:
            return None
        self._rows = self._states = None
        call = {**dict(zip(self._names, args, strict=False)), **call}
        if memory.given_in(call, self._stack.cache_name) is not None:
            # What is written step by step leaves keys and values in every block.
            return None
        if "use_cache" in self._names:
            # A cache would have none of blocks that do not run.
            call["use_cache"] = False
        tokens, mask = call.get("input_ids"), call.get("attention_mask")
        if tokens is None or mask is None:
            raise UnsupportedError("cache_frozen knows rows by input_ids and attention_mask")
        keys, self._mask = _keys(call, mask), mask.bool()
        places = list(self.kept) * (len(keys) if len(self.kept) == 1 else 1)
        if any(key not in kept for key, kept in zip(keys, places, strict=True)):
            fresh: defaultdict[Kept, dict[bytes, Tensor]] = defaultdict(dict)
            recorded, beside = self._record(call)
            for key, kept, row, real in zip(keys, places, recorded, self._real(), strict=True):
                fresh[kept][key] = row[: len(real)][real]
            for kept, states in fresh.items():
                kept.beside = beside
                kept.put(states)
        self._rows = [kept.get(key) for key, kept in zip(keys, places, strict=True)]
        return (), call

    def _real(self) -> Tensor:
        """[B,m+T] where the batch in flight has a token, or a row that its adapter puts in front."""
        assert self._mask is not None
        frame, front = self._stack.frame, self._stack.front
        if frame is None or front is None or not frame.width:
            return self._mask
        return torch.cat([front.columns, self._mask], 1)

    def _record(self, call: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...] | None]:
        """[B,m+T',D] what leaves the frozen blocks, and what stands beside; T' has the architecture's own padding."""
        training = [module for module in self._host.modules() if module.training]
        self._recording = True
        try:
            self._host.eval()
            with torch.no_grad():
                self._host(**call)
        except _EnoughError:
            pass
        finally:
            self._recording = False
            for module in training:
                module.training = True
        recorded, self._recorded = self._recorded, None
        if not isinstance(recorded, tuple):
            return recorded, None
        states, *beside = cast("tuple[Any, ...]", recorded)
        if any(torch.is_tensor(x) for x in beside):
            raise UnsupportedError("cache_frozen: the blocks of this backbone hand on more than their states")
        return states, tuple(beside)

    def _placed(self, rows: list[Tensor], length: int) -> Tensor:
        """Rows [t,D] of what is real -> [B,length,D]; what stands at padding is seen by none."""
        real = self._real().cpu()
        states = torch.zeros(len(rows), length, rows[0].shape[-1], dtype=rows[0].dtype)
        for i, row in enumerate(rows):
            states[i, : real.shape[1]][real[i]] = row
        return states

    def _block(self, index: int, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if self._rows is None:
            out = forward(*args, **kwargs)
            if self._recording and index == self.first - 1:
                self._recorded = out
                raise _EnoughError
            return out
        if self._states is None:
            entering: Tensor = args[0] if args else kwargs["hidden_states"]
            self._states = self._placed(self._rows, entering.shape[1]).to(entering.device)
        # That of the places, which another model may have filled: the tasks' own and their common one share them.
        beside = self.kept[0].beside
        return self._states if beside is None else (self._states, *beside)

    def _after(self, host: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        self._rows = self._mask = self._states = None


def _keys(call: Mapping[str, Any], mask: Tensor) -> list[bytes]:
    """A key of each row: where it begins, and all that the backbone reads of it, without the padding."""
    inputs = [call[name].cpu() for name in sorted(call) if torch.is_tensor(call[name])]
    real = mask.bool().cpu()
    starts = real.int().argmax(1).numpy()
    return [
        b"".join([starts[i].tobytes(), *(one[i][real[i]].numpy().tobytes() for one in inputs)])
        for i in range(len(real))
    ]


def freeze(model: nn.Module, kept: Kept, adapter: str = "default") -> FrozenPart:
    """Keep what the blocks below the first edited one give; their dropout no longer acts.

    Raises:
        ConfigError: the first block is edited, or a prompt that is trained stands in front of it.
        UnsupportedError: as `FrozenPart`.
    """
    config: MethodConfig = cast("Any", model).peft_config[adapter]
    method = type(config).method
    assert method is not None
    if Site.PROMPT in method.sites_of(config) and not method.prompt_is_fixed:
        raise ConfigError(f"cache_frozen keeps what no training changes, and {method.name} trains what stands in front")
    first = min(config.layers_to_transform or [0])
    if not first:
        raise ConfigError(
            "cache_frozen keeps what leaves the blocks below the first edited one, and block 0 is edited; "
            "name upper blocks in layers_to_transform"
        )
    return FrozenPart(model, first, [kept])
