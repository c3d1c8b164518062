"""TaskModel: a frozen backbone, a place for heads, and any number of adapters of any method.

LanguageModel is the same for a backbone that writes: its own language head takes the place of ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import cast_adapter_dtype
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from attentune import store
from attentune.anatomy import stacks_of
from attentune.errors import ConfigError, StoreError, UnsupportedError
from attentune.forward import rows, source_tokens
from attentune.heads import Heads, States, TaskOutput, no_prefix
from attentune.method import MethodConfig
from attentune.sites import AdapterLayer, stacks_in
from attentune.tuner import SiteTuner


class Adapted(nn.Module):
    """A frozen backbone with any number of adapters, of any methods."""

    base_model_prefix = "backbone"

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        stacks_of(backbone)
        self.backbone: Any = backbone
        self._tuners: dict[str, SiteTuner] = {}
        self._configs: dict[str, MethodConfig] = {}

    @property
    def host(self) -> nn.Module:
        """Where adapters are put in, and where the names of saved tensors begin."""
        return self

    @property
    def config(self) -> Any:
        """The backbone's config."""
        return self.backbone.config

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        """The backbone's precision."""
        return self.backbone.dtype

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.backbone.get_input_embeddings()

    def enable_input_require_grads(self) -> None:
        """Let gradients reach checkpointed blocks."""
        self.backbone.enable_input_require_grads()

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Trade compute for memory in the backbone's blocks; older transformers call it gradient checkpointing."""
        backbone = self.backbone
        name = "activation_checkpointing_enable"
        getattr(backbone, name if hasattr(backbone, name) else "gradient_checkpointing_enable")(*args, **kwargs)

    gradient_checkpointing_enable = activation_checkpointing_enable

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether it is on."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.backbone.modules())

    def add_adapter(self, name: str, config: MethodConfig, low_cpu_mem_usage: bool = False) -> None:
        """Add a new adapter, of any method; it becomes active when it is the first.

        Raises:
            ConfigError: the name is taken.
        """
        if name in self._configs:
            raise ConfigError(f"an adapter named {name!r} is loaded already; loaded are {sorted(self._configs)}")
        active = self._active()
        try:
            self._inject(name, config, low_cpu_mem_usage)
        except Exception:
            self._take_off(name)
            self.set_adapter(active)
            raise
        # Adapters are float32 over a backbone of half the precision, as those that peft makes.
        cast_adapter_dtype(self.host, name)
        self._configs[name] = config
        self.host.__dict__["peft_config"] = dict(self._configs)
        self.set_adapter(active or [name])

    def _inject(self, name: str, config: MethodConfig, low_cpu_mem_usage: bool) -> None:
        method = type(config).method
        assert method is not None
        tuner = self._tuners.get(method.name)
        if tuner is None:
            kind: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]  # pyright: ignore[reportArgumentType]
            # A tuner that found the configs of other methods on the model would warn and take them for its own.
            self.host.__dict__.pop("peft_config", None)
            self._tuners[method.name] = kind(self.host, {name: config}, name, low_cpu_mem_usage=low_cpu_mem_usage)
        else:
            tuner.peft_config[name] = config
            # peft looks up what is active among the tuner's own adapters, and it may be another method's.
            tuner.active_adapter = name
            tuner.inject_adapter(self.host, name, low_cpu_mem_usage=low_cpu_mem_usage)

    def _take_off(self, name: str) -> None:
        """Remove all that was put in of an adapter that did not come about."""
        for layer in self.modules():
            if isinstance(layer, AdapterLayer):
                layer.set_adapter([n for n in layer.active_adapters if n != name])
                layer.delete_adapter(name)
            elif isinstance(layer, ModulesToSaveWrapper):
                layer.delete_adapter(name, new_active_adapters=[])
        for tuner in self._tuners.values():
            tuner.peft_config.pop(name, None)
        self.host.__dict__["peft_config"] = dict(self._configs)

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Add a saved adapter: `adapter_config.json` and `adapter_model.safetensors`.

        Raises:
            StoreError: the folder is incomplete or damaged, or its tensors do not fit.
            ConfigError: the name is taken, or the method is not registered.
        """
        folder = Path(folder)
        if not (folder / store.CONFIG).is_file() or not (folder / store.WEIGHTS).is_file():
            raise StoreError(f"{folder} is no adapter: it holds no {store.CONFIG} and {store.WEIGHTS}")
        config: Any = store.peft_config(folder)
        if not isinstance(config, MethodConfig):
            raise UnsupportedError(f"{folder} holds a {config.peft_type} adapter, which attentune does not run")
        tensors, _ = store.tensors(folder)
        config.inference_mode = True
        self.add_adapter(name, config)
        try:
            result = set_peft_model_state_dict(self.host, tensors, adapter_name=name)
            lost = [k for k in result.missing_keys if k.endswith(f".{name}")] + list(result.unexpected_keys)
            if lost:
                raise StoreError(
                    f"{folder} does not fit this backbone: {len(lost)} tensors do not match, {lost[0]} first"
                )
        except RuntimeError as error:
            self.delete_adapter(name)
            raise StoreError(f"{folder} does not fit this backbone: {str(error).splitlines()[-1].strip()}") from error
        except StoreError:
            self.delete_adapter(name)
            raise

    def delete_adapter(self, name: str) -> None:
        """Take an adapter off; nothing of it is left.

        Raises:
            ConfigError: it is not loaded.
        """
        if name not in self._configs:
            raise ConfigError(f"no adapter {name!r} is loaded; loaded are {sorted(self._configs)}")
        method = type(self._configs[name]).method
        assert method is not None
        active = [n for n in self._active() if n != name]
        self._tuners[method.name].set_adapter(active)
        self._tuners[method.name].delete_adapter(name)
        del self._configs[name]
        self.host.__dict__["peft_config"] = dict(self._configs)
        self.set_adapter(active)

    def set_adapter(self, names: str | list[str]) -> None:
        """Choose which adapters serve batches without `adapter_names`; [] is the backbone alone."""
        names = [names] if isinstance(names, str) else names
        unknown = sorted(set(names) - set(self._configs))
        if unknown:
            raise ConfigError(f"no adapters {unknown} are loaded; loaded are {sorted(self._configs)}")
        frozen = all(self._configs[n].inference_mode for n in names)
        for layer in self.modules():
            if isinstance(layer, AdapterLayer):
                layer.set_adapter(names, inference_mode=frozen)
            elif isinstance(layer, ModulesToSaveWrapper):
                layer.set_adapter([n for n in names if n in layer.modules_to_save], inference_mode=frozen)
        for tuner in self._tuners.values():
            tuner.active_adapter = names

    def _active(self) -> list[str]:
        return next((list(t.active_adapters) for t in self._tuners.values()), [])


class TaskModel(Adapted):
    """A backbone and a place for heads.

    Give it to `peft.get_peft_model` with a config that has a `head`; or let it hold adapters of several methods at once
    and give each row of a batch its own by `adapter_names`. Of an encoder-decoder the encoder is used. `vocabulary` is
    the backbone's masked-LM head, which adapters with words for classes read.
    """

    def __init__(self, backbone: nn.Module, vocabulary: nn.Module | None = None) -> None:
        config: Any = backbone.config
        if getattr(config, "is_encoder_decoder", False) and hasattr(backbone, "get_encoder"):
            backbone = backbone.get_encoder()  # pyright: ignore[reportCallIssue, reportUnknownVariableType]
        super().__init__(backbone)
        self.heads = Heads(vocabulary)
        self.name_or_path: str = getattr(config, "_name_or_path", "") or ""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        adapter_names: Sequence[str] | None = None,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> TaskOutput:
        """input_ids [B,T], attention_mask [B,T] -> logits, with the active adapter or each row's own.

        Raises:
            UnsupportedError: an unknown name, or as many names as there are not rows.
        """
        kwargs.pop("return_dict", None)
        if adapter_names is not None:
            lead = kwargs.get("inputs_embeds") if input_ids is None else input_ids
            with rows(self, list(adapter_names), dict(self._configs), lead):
                return self.forward(input_ids, attention_mask, None, output_hidden_states, **kwargs)
        states = self.states(input_ids, attention_mask, **kwargs)
        answer = self.heads(states)
        if output_hidden_states:
            answer.last_hidden_state = states.last
        return answer

    def states(self, input_ids: Tensor | None, attention_mask: Tensor | None, **kwargs: Any) -> States:
        """What the backbone with its adapters makes of a batch: all that heads read."""
        if self.config.model_type == "longformer" and kwargs.get("global_attention_mask") is None:
            lead: Tensor = kwargs["inputs_embeds"][..., 0] if input_ids is None else input_ids
            first = torch.zeros_like(lead, dtype=torch.long)
            at = first[:, 0] if attention_mask is None else attention_mask.int().argmax(1)
            kwargs["global_attention_mask"] = first.scatter(1, at[:, None], 1)
        out = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        pooler = getattr(out, "pooler_output", None)
        return States(out.last_hidden_state, attention_mask, pooler, self._prefix(), input_ids, self.heads.vocabulary)

    def _prefix(self) -> Callable[[], Tensor | None]:
        """What gives [B,D] the first prompt row's last state, of the batch that has just run."""
        stack = next(iter(stacks_in(self.backbone)), None)
        frame = None if stack is None else stack.frame
        if stack is None or frame is None or frame.states is None or stack.front is None or not frame.width:
            return no_prefix
        return partial(_first_of, frame.states, stack.front.columns)


def _first_of(states: Tensor, columns: Tensor) -> Tensor:
    """[B,W+T,D] and [B,W] which of the first W are prompt rows -> [B,D] the first of these."""
    first = columns.int().argmax(1)
    return states[torch.arange(len(first), device=first.device), first]


class LanguageModel(Adapted):
    """A backbone with its language head, T5ForConditionalGeneration say, and any number of adapters.

    Tensors have the names that plain peft gives them on the same model.
    """

    @property
    def host(self) -> nn.Module:
        return self.backbone

    @property
    def peft_config(self) -> dict[str, MethodConfig]:
        """Adapter -> its config."""
        return dict(self._configs)

    def forward(self, input_ids: Tensor, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """input_ids [B,T] -> what the backbone answers, with the active adapter or each row's own.

        Raises:
            UnsupportedError: an unknown name, or as many names as there are not rows.
        """
        with self._chosen(adapter_names, input_ids):
            return self.backbone(input_ids=input_ids, **kwargs)

    def generate(self, input_ids: Tensor, adapter_names: Sequence[str] | None = None, **options: Any) -> Tensor:
        """input_ids [B,T] -> tokens [B,T'], else as `forward`; `options` are those of transformers."""
        with self._chosen(adapter_names, input_ids), source_tokens(self, int(input_ids.shape[1])):
            return self.backbone.generate(input_ids=input_ids, **options)

    def _chosen(self, names: Sequence[str] | None, batch: Tensor) -> AbstractContextManager[None]:
        return nullcontext() if names is None else rows(self, list(names), self.peft_config, batch)


def twin(model: nn.Module) -> nn.Module:
    """The same modules over the same tensors: hooks of its own, and no memory."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})
