"""The bank: any number of tasks on one frozen backbone; adding, replacing and removing one touches no other."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary, finalize

import torch
from torch import Tensor
from transformers import PreTrainedModel

from attentune import quantised, store
from attentune.anatomy import max_length
from attentune.backbones import fingerprint, load_backbone
from attentune.card import TaskCard
from attentune.errors import ConfigError, StoreError, UnknownTaskError, UnsupportedError
from attentune.forward import memo, requested
from attentune.heads import States, TaskOutput
from attentune.method import METHODS, MethodConfig
from attentune.model import TaskModel
from attentune.serving.entry import Entry, check_card, check_known, check_sizes, flat_row
from attentune.serving.graphs import Graphs
from attentune.serving.head import Head
from attentune.serving.held import Held, answers, first_block, groups, order_of, parts
from attentune.serving.sharing import Plan, plan
from attentune.serving.shelf import Shelf, digest, frozen_tensors
from attentune.serving.tiers import Tiers
from attentune.sites import Stack, stacks_in
from attentune.sites.fan import Fan, fanned
from attentune.sites.rows import BASE, RowRequest
from attentune.vocabulary import vocabulary_head


class Bank:
    """Tasks by name on one backbone, called as a TaskModel is: ids, mask, a name a row -> logits.

    A batch may mix tasks, methods, shapes, label counts, token and text heads, and rows of the bare backbone
    ("__base__") at will; every row's answer is that of its adapter alone. Tasks may be added, replaced and removed
    while batches run: a batch keeps what it began with.
    """

    def __init__(
        self,
        backbone: str | PreTrainedModel = "minilm",
        *,
        dtype: torch.dtype | None = None,
        quantise: str | None = None,
        cuda_graphs: bool = False,
        device: str | torch.device | None = None,
        hot_bytes: int | None = None,
        warm_bytes: int | None = None,
    ) -> None:
        """Load the backbone, in `dtype` or that of its file; with `quantise` its blocks multiply in "int8", on a CPU,
        or keep their weights in 4 bits, "nf4".

        `hot_bytes` bounds what adapters take on the device, `warm_bytes` in memory (on a CPU only the latter counts);
        what does not fit is read from its folder when it is asked for. With `cuda_graphs` batches of one method and
        shape are recorded, see `Graphs`; every new size of a batch takes longer the first time.

        Raises:
            ConfigError: `cuda_graphs` without a GPU.
        """
        place = torch.device(quantised.device_for(quantise, device))
        if cuda_graphs and place.type != "cuda":
            raise ConfigError(f"cuda_graphs wants a backbone on a GPU (CUDA), and this one is on the {place.type}")
        self.backbone = backbone if isinstance(backbone, str) else None
        base = load_backbone(backbone, dtype) if isinstance(backbone, str) else backbone
        self.fingerprint = fingerprint(base)
        self.model = TaskModel(base).eval().requires_grad_(False)
        self.model.to(place)
        if quantise is not None:
            quantised.quantise(self.model.backbone, quantise)
        self.device = self.model.device
        self.tiers = Tiers(self._read, self.device, hot_bytes, warm_bytes)
        self.graphs = Graphs(self.model) if cuda_graphs else None
        self._tasks: dict[str, Entry] = {}
        # A shelf lives as long as an entry that stands on it, which a batch in flight holds, too.
        self._shelves: WeakValueDictionary[tuple[str, str, str], Shelf] = WeakValueDictionary()
        self._numbers = itertools.count()
        self._gone: list[str] = []
        self._interned: WeakValueDictionary[int, Any] = WeakValueDictionary()
        # One forward at a time: a batch in flight lives on the model. Installing a shelf's hooks waits for it, too.
        self._running = threading.RLock()

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def names(self) -> list[str]:
        """The tasks."""
        return list(self._tasks)

    def entry(self, name: str) -> Entry:
        """The present version of a task.

        Raises:
            UnknownTaskError: there is none of that name.
        """
        entry = self._tasks.get(name)
        if entry is None:
            raise UnknownTaskError(f"there is no task {name!r}")
        return entry

    @property
    def cold(self) -> list[str]:
        """The tasks whose row is not in memory."""
        return [name for name, entry in list(self._tasks.items()) if entry not in self.tiers.warm.rows]

    def card(self, name: str) -> TaskCard:
        """The card of a task; raises as `entry` does."""
        return self.entry(name).card

    def add(self, name: str, folder: str | Path, pinned: bool = False) -> Entry:
        """Add a task from its adapter folder, or replace the one of that name; checked before anything changes.

        Raises as `stage` does.
        """
        entry = self.stage(name, folder)
        self.tiers.pin(entry, pinned)
        if (old := self.publish(entry)) is not None:
            self.tiers.drop(old)
        return entry

    def stage(self, name: str, folder: str | Path) -> Entry:
        """Read and check an adapter folder, without serving it under its name yet: an entry that batches may name.

        Raises:
            StoreError: the folder is incomplete or damaged, belongs to another backbone, does not fit it, holds numbers
                that are not finite, or its card does not fit its head.
            UnsupportedError: an adapter that the bank does not serve.
            ConfigError: the name is reserved.
        """
        if name == BASE:
            raise ConfigError(f"{BASE} is the name of the bare backbone; choose another")
        stored = store.read(folder)
        store.check_fits(name, stored.card, self.fingerprint, self.backbone or "the bank")
        if stored.card.task.head == "language":
            raise UnsupportedError(
                f"adapter {name!r} writes texts, which the bank does not serve; attentune.predict_many does"
            )
        tensors, sha256 = store.tensors(stored.folder)
        config, head = stored.method, Head.of(stored.method, int(self.model.config.hidden_size))
        check_card(stored.card, config, max_length(self.model.config))
        check_sizes(config, tensors)
        if head.kind == "masked":
            self._bring_vocabulary(name)
        shelf = self._shelf(config, tensors)
        check_known(shelf, head, config, tensors)
        row = flat_row(shelf, head, tensors)
        prompts = METHODS[stored.card.method].mixes(config)
        entry = Entry(name, stored.folder, self._intern(stored.card), shelf, head, row.nbytes, sha256, prompts)
        self.tiers.put(entry, row)
        return entry

    def publish(self, entry: Entry) -> Entry | None:
        """Serve an entry under its name from now on; returns the one that it replaces."""
        old = self._tasks.get(entry.name)
        self._tasks[entry.name] = entry
        return old if old is not entry else None

    def remove(self, name: str) -> None:
        """Take a task out; raises as `entry` does."""
        entry = self.entry(name)
        del self._tasks[name]
        self.tiers.drop(entry)

    def hold(self, task: str | Entry) -> Held:
        """Fetch a task's row, from wherever it is, for batches to come.

        Raises:
            UnknownTaskError: there is none of that name.
            StoreError: it is cold and cannot be read.
        """
        entry = self.entry(task) if isinstance(task, str) else task
        return Held(entry, self.tiers.get(entry))

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        adapter_names: Sequence[str | Held],
        *,
        prompt_attention: bool = False,
        **inputs: Tensor,
    ) -> TaskOutput:
        """input_ids [B,T], attention_mask [B,T], a task (or a held one) a row -> logits; raises as `hold` does.

        With `prompt_attention` the output has the weights of the prompts that are mixed for each row, too.
        """
        if len(adapter_names) != len(input_ids):
            raise UnsupportedError(
                f"{len(adapter_names)} names were given for {len(input_ids)} rows; one each is wanted"
            )
        fetched = {n: self.hold(n) for n in dict.fromkeys(adapter_names) if isinstance(n, str) and n != BASE}
        held = [n if isinstance(n, Held) else fetched.get(n) for n in adapter_names]
        given = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        with self._running, torch.inference_mode():
            self._clear()
            there = {key: value.to(self.device) for key, value in given.items()}
            order = order_of(held)
            if order == sorted(order):
                return self._answer(held, there, prompt_attention)
            rows = torch.tensor(order, device=self.device)
            output = self._answer(
                [held[i] for i in order],
                {key: value.index_select(0, rows) for key, value in there.items()},
                prompt_attention,
            )
            return output.in_rows(order)

    def _answer(self, held: Sequence[Held | None], given: dict[str, Tensor], prompt_attention: bool) -> TaskOutput:
        states, weights = self._run(held, given, prompt_attention)
        output = answers(held, states)
        output.prompt_attention = weights
        return output

    def _run(
        self, held: Sequence[Held | None], given: dict[str, Tensor], prompt_attention: bool
    ) -> tuple[States, list[Tensor | None] | None]:
        """The rows through the backbone, [B,T] each, and the weights of the prompts that are mixed for each."""
        stacks = stacks_in(self.model.backbone)
        shared = plan(given, parts(held, stacks[0].joints)) if stacks else None
        if shared is not None:
            states = self._fanned(held, given, stacks[0], shared)
        elif self.graphs is not None and (recorded := self.graphs(held, given)) is not None:
            return recorded[0], recorded[1] if prompt_attention else None
        else:
            with self._requested(held, stacks):
                states = self.model.states(**given)
        if not prompt_attention:
            return states, None
        weights = memo(self.model, "prompt_attention")
        return states, list[Tensor | None]([None] * len(held) if weights is None else weights)

    def _fanned(self, held: Sequence[Held | None], given: Mapping[str, Tensor], stack: Stack, shared: Plan) -> States:
        """One text for many tasks is one row until they part."""
        lead = torch.tensor(shared.lead, device=self.device)
        apart = [held[i] if first_block(held[i], stack.joints) < shared.block else None for i in shared.lead]
        rows = torch.tensor(shared.rows, device=lead.device)
        fan = Fan(shared.block, rows, tuple(groups(held, lead.device)), len(lead))
        with self._requested(apart, [stack]), fanned(stack, fan):
            states = self.model.states(**{key: value.index_select(0, lead) for key, value in given.items()})
        return replace(states, mask=given["attention_mask"], tokens=given["input_ids"])

    def _requested(self, held: Sequence[Held | None], stacks: Sequence[Stack]) -> AbstractContextManager[None]:
        names = [BASE if one is None else one.entry.name for one in held]
        return requested(stacks, RowRequest.given(names, tuple(groups(held, self.device)), self.device))

    def _read(self, key: Hashable) -> Tensor:
        entry = cast("Entry", key)
        tensors, sha256 = store.tensors(entry.folder)
        if sha256 != entry.sha256:
            raise StoreError(f"the tensors of {entry.name!r} are others than when it was checked")
        return flat_row(entry.shelf, entry.head, tensors)

    def _bring_vocabulary(self, task: str) -> None:
        """The backbone's masked-LM head, when the first task asks for it."""
        with self._running:
            if self.model.heads.vocabulary is not None:
                return
            found = vocabulary_head(self.backbone, self.model.backbone) if self.backbone else None
            if found is None:
                raise StoreError(
                    f"adapter {task!r} has words for its classes, and the bank's backbone has no masked-LM head"
                )
            self.model.heads.vocabulary = found.to(self.device)

    def _shelf(self, config: MethodConfig, tensors: Mapping[str, Tensor]) -> Shelf:
        shared = frozen_tensors(config, tensors)
        key = (type(config).__name__, config.key(), digest(shared))
        with self._running:
            self._clear()
            shelf = self._shelves.get(key)
            if shelf is None:
                shelf = self._shelves[key] = Shelf(self.model, f"shelf{next(self._numbers)}", config, shared)
                # Whoever lets go of it last, in whichever thread, only says so.
                finalize(shelf, self._gone.append, shelf.name).atexit = False
            return shelf

    def _clear(self) -> None:
        """Take off the model what stood for shelves that are gone; no batch may be running."""
        while self._gone:
            self.model.delete_adapter(self._gone[0])
            del self._gone[0]

    def _intern(self, card: TaskCard) -> TaskCard:
        """The card, sharing what it has in common with other tasks' cards."""

        def known(part: Any) -> Any:
            same = self._interned.get(hash(part))
            if same != part:
                same = self._interned[hash(part)] = part
            return same

        return replace(card, task=known(card.task), columns=known(card.columns), backbone=known(card.backbone))
