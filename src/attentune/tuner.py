"""The peft side: finds the sites, and puts a SiteLayer at each.

The only file that knows how peft injects adapters. A method becomes known to peft by `register`; from then on
`get_peft_model`, `PeftModel`, `AutoPeftModel...`, transformers' own `add_adapter` and `Trainer` work with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from attentune.anatomy import Place, stacks_of
from attentune.errors import ConfigError, UnsupportedError
from attentune.forward import check_rows, rows, source_tokens
from attentune.heads import HeadLayer, Heads, MergedHead
from attentune.method import METHODS, Method, MethodConfig, Site, peft_name
from attentune.sites import STACK_CHILD, AdapterLayer, SiteLayer, Stack, prefix_attention, stacks_in


class SiteTuner(BaseTuner):
    """One method on one model; `register` makes a subclass of it per method."""

    tuner_layer_cls = AdapterLayer
    prefix: str = ""
    method: ClassVar[Method]

    # --- injection ---------------------------------------------------------------------------------------------------

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        if not isinstance(peft_config, type(self).method.config):
            raise ConfigError(
                f"{type(self).method.name} takes a {type(self).method.config.__name__}, "
                f"not a {type(peft_config).__name__}"
            )
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        method, self._targets = type(self).method, dict[str, list[tuple[Site, Place, Stack, int]]]()
        found = stacks_of(model)
        if Site.PROMPT in method.edits:
            found = [entry for entry in found if entry[2].prompts]
            if not found:
                raise UnsupportedError(f"{method.name} puts rows in front of an encoder's or decoder-only model's text")
        stacks = {path: _stack(model, path) for path, _, _ in found}
        dims = {path: stack.dims() for path, stack in stacks.items()}
        for path in stacks:
            method.resolve(peft_config, dims[path])
        self._dims = {id(stack): dims[path] for path, stack in stacks.items()}
        for path, stack in stacks.items():
            self._find_targets(peft_config, path, stack)

    def _find_targets(self, cfg: MethodConfig, path: str, stack: Stack) -> None:
        method, anatomy = type(self).method, stack.anatomy
        layers = anatomy.layers(stack.config)
        blocks = range(layers) if cfg.layers_to_transform is None else cfg.layers_to_transform
        outside = [i for i in blocks if not 0 <= i < layers]
        if outside:
            raise ConfigError(f"layers_to_transform names {outside}; the blocks are 0 to {layers - 1}")
        pools_prompt = method.pools_prompt(cfg) or (cfg.head or {}).get("pooling") == "prefix"
        if pools_prompt and anatomy.causal:
            raise UnsupportedError(
                f"{stack.config.model_type} reads from left to right, so that a prompt row in front of the text sees "
                "nothing of it and cannot be pooled; pooling 'last' reads the whole text"
            )
        for site in method.sites_of(cfg):
            if site == Site.PROMPT:
                self._target(path, anatomy.embed, site, Place(anatomy.embed), stack, 0)
                continue
            if site == Site.KEY_VALUE and not anatomy.interface:
                raise UnsupportedError(
                    f"{method.name} with this config gives keys and values to self-attention, and "
                    f"{stack.config.model_type} offers no way into it; BERT, RoBERTa, XLM-R, ELECTRA, DistilBERT, "
                    "ModernBERT, BART, GPT-2, Llama and Qwen do"
                )
            if site == Site.BLOCK_OUTPUT and getattr(stack.config, "chunk_size_feed_forward", 0):
                raise UnsupportedError(
                    f"{method.name} acts on what leaves a block as a whole; set chunk_size_feed_forward to 0"
                )
            place = Place(anatomy.attention) if site == Site.KEY_VALUE else anatomy.places[site]
            for index in blocks:
                self._target(path, anatomy.block_path(index, place.path), site, place, stack, index)
        for site in method.taps(cfg):
            stack.tap(site, blocks)

    def _target(self, path: str, inner: str, site: Site, place: Place, stack: Stack, index: int) -> None:
        key = ".".join(part for part in (path, inner) if part)
        self._targets.setdefault(key, []).append((site, place, stack, index))

    def _check_target_module_exists(self, peft_config: Any, key: str) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return key in self._targets

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        method = type(self).method
        for site, place, stack, index in self._targets[current_key]:
            child = f"{site}_{method.name}"
            layer = getattr(target, child, None)
            if layer is None:
                layer = SiteLayer(target, method, site, place, stack, index)
                target.add_module(child, layer)
                stack.adopt(layer)
                if site == Site.KEY_VALUE:
                    prefix_attention.install(target)
            layer.add(adapter_name, peft_config, self._dims[id(stack)], peft_config.inference_mode)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add one adapter, its head included.

        Raises:
            ConfigError: the config has a head and the model has no place for one.
        """
        cfg: Any = self.peft_config[adapter_name]
        place = next((m for m in model.modules() if isinstance(m, Heads)), None)
        if cfg.head is not None and place is None:
            raise ConfigError(
                f"the config has a head, and {type(model).__name__} has no place for one; wrap the backbone in an "
                "attentune.TaskModel, or leave `head` out to use the architecture's own"
            )
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if cfg.head is None or place is None:
            return
        child = f"head_{type(self).method.name}"
        if not hasattr(place, child):
            place.add_module(child, HeadLayer())
        dims = next(iter(self._dims.values()))
        active = adapter_name in self.active_adapters
        layer: HeadLayer = getattr(place, child)
        before = {tensor: tensor.requires_grad for tensor in layer.parameters()}
        layer.add(adapter_name, cfg, dims.hidden, dims.words, cfg.inference_mode)
        layer.set_adapter(self.active_adapters, inference_mode=cfg.inference_mode or not active)
        for tensor, trained in before.items():
            tensor.requires_grad_(trained)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        found = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        # peft drops keys that hold another adapter's name, also where a module of the path is called so.
        for path, layer in model.named_modules():
            tensors = layer.tensors(adapter_name) if isinstance(layer, AdapterLayer) else {}
            keys = {f"{path}.{key}.{adapter_name}": value.detach() for key, value in tensors.items()}
            found |= {k: v for k, v in keys.items() if any(f".{name}." in k for name in unwanted_adapter_names)}
        return found

    # --- one forward -------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model; peft calls its `forward`, past the hooks. Generation does not come this way."""
        given = kwargs.get("input_ids", args[0] if args else None)
        check_rows(self.model, kwargs.get("inputs_embeds") if given is None else given)
        return self.model(*args, **kwargs)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Generator[None]:
        names, tokens = kwargs.get("adapter_names"), kwargs.get("input_ids", args[0] if args else kwargs.get("inputs"))
        source = int(tokens.shape[1]) if torch.is_tensor(tokens) else None
        lead = tokens if torch.is_tensor(tokens) else kwargs.get("inputs_embeds")
        chosen = nullcontext() if names is None else rows(self.model, names, self.peft_config, lead)
        with source_tokens(self.model, source), chosen:
            yield

    # --- the life of an adapter --------------------------------------------------------------------------------------

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge into the base weights, all or nothing.

        Raises:
            UnsupportedError: the method has no merged form, or a projection has no bias to merge one into.
        """
        before = {layer: list(layer.merged_adapters) for layer in self._layers()}
        try:
            for layer in self._layers():
                layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        except Exception:
            for layer, names in before.items():
                if layer.merged_adapters != names:
                    layer.unmerge()
                    layer.merge(adapter_names=names)
            raise

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge:
            self.merge_adapter(adapter_names, safe_merge)
        else:
            self.unmerge_adapter()
        mine = set(self._layers())
        kept = (adapter_names or list(self.active_adapters))[:1] if merge else []
        for module in list(self.model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, HeadLayer) and child.configs.keys() & set(kept):
                    module.merged = MergedHead(child.config(kept[0]), child.tensors(kept[0]))
                if child in mine:
                    delattr(module, name)
                    _forget(module, child)
                elif isinstance(child, AuxiliaryTrainingWrapper):
                    setattr(module, name, _unwrapped(child, merge))
        _clear_stacks(self.model)
        self.model.__dict__.pop("peft_config", None)
        return self.model

    def fold_adapter(self, adapter_name: str) -> None:
        """Replace what served training only (an MLP that makes prefixes, say) by the plain tensors that it makes.

        Exact; nothing happens where the method has nothing to fold. The config changes alike.
        """
        method, cfg = type(self).method, self.peft_config[adapter_name]
        if method.fold is None or method.folded(cfg):
            return
        fold, folded = method.fold, method.folded_config(cfg)
        layers = [layer for layer in self._layers() if isinstance(layer, SiteLayer) and adapter_name in layer.configs]
        entrances = {
            id(layer.stack): _with_rows(layer.tensors(adapter_name)) for layer in layers if layer.site == Site.PROMPT
        }
        new = [
            fold(cfg, layer.site, _with_rows(layer.tensors(adapter_name)), entrances.get(id(layer.stack), {}))
            for layer in layers
        ]
        for layer, tensors in zip(layers, new, strict=True):
            like = next(iter(layer.tensors(adapter_name).values()), layer.stack.dims().words)
            layer.put(adapter_name, folded, tensors, like, method.frozen(folded), folded.inference_mode)
        self.peft_config[adapter_name] = folded

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter off. If it was the active one, another takes its place, the same at every site.

        peft lets each site choose, among the adapters that act there.
        """
        active = list(self.active_adapters)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Adapter .* was active which is now deleted")
            super().delete_adapter(adapter_name)
        if adapter_name not in active or not self.peft_config:
            return
        others = [name for name in active if name != adapter_name]
        if not others:
            others = [min(self.peft_config)]
            told = f"Adapter {adapter_name} was active which is now deleted. Setting active adapter to {others[0]}."
            warnings.warn(told, stacklevel=2)
        self.set_adapter(others, inference_mode=all(self.peft_config[name].inference_mode for name in others))

    def _layers(self) -> list[AdapterLayer]:
        mine = type(self).method
        return [
            m
            for m in self.model.modules()
            if isinstance(m, AdapterLayer) and (not isinstance(m, SiteLayer) or m.method is mine)
        ]


def _unwrapped(wrapper: Any, merge: bool) -> nn.Module:
    """A native head as it was, or, when merging, as the active adapter trained it."""
    active = list(wrapper.active_adapters)
    trained = getattr(wrapper, "modules_to_save", None)
    return trained[active[0]] if merge and active and trained is not None else wrapper.original_module


def _with_rows(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value[None] for key, value in tensors.items()}


def _stack(model: nn.Module, path: str) -> Stack:
    """The Stack of the module at `path`; all of a model's are installed together, once, whatever tuners come.

    Together, for a decoder must see what its encoder put in front, also where nothing acts in the decoder.
    """
    stacks: dict[str, Stack] = {}
    for at, module, anatomy in stacks_of(model):
        if not hasattr(module, STACK_CHILD):
            encoder = next(iter(stacks.values()), None)
            stack = Stack(module, anatomy, _config_of(module, model), encoder)
            module.add_module(STACK_CHILD, stack)
            stack.listen(model)
        stacks[at] = getattr(module, STACK_CHILD)
    if path not in stacks:
        raise UnsupportedError(f"there is no stack at {path!r}")
    return stacks[path]


def _config_of(module: nn.Module, model: nn.Module) -> Any:
    return getattr(module, "config", None) or model.config


def _forget(host: nn.Module, layer: nn.Module) -> None:
    if not isinstance(layer, SiteLayer):
        return
    layer.remove()
    if layer.site == Site.KEY_VALUE and not any(isinstance(c, SiteLayer) for c in host.children()):
        prefix_attention.uninstall(host)
    layer.stack.release(layer)


def _clear_stacks(model: nn.Module) -> None:
    """Take the stacks off a model in which nothing acts any more."""
    stacks = stacks_in(model)
    if any(stack.layers for stack in stacks):
        return
    for stack in stacks:
        stack.remove()
        delattr(stack.host, STACK_CHILD)


def register(method: Method) -> Method:
    """Make a method known to attentune and to peft.

    Raises:
        ConfigError: the name is taken by another method.
    """
    if METHODS.get(method.name, method) is not method:
        raise ConfigError(f"a method named {method.name!r} is registered already; registered are {sorted(METHODS)}")
    method.config.method = method
    key: Any = peft_name(method)
    # Part of every saved tensor's name, "...block_input_pasta.shift": by it peft tells missing tensors from others, and
    # transformers finds where an adapter's name belongs.
    prefix = f"{method.name}."
    tuner = type(
        f"{method.config.__name__.removesuffix('Config')}Model", (SiteTuner,), {"prefix": prefix, "method": method}
    )
    PEFT_TYPE_TO_CONFIG_MAPPING[key] = method.config
    PEFT_TYPE_TO_TUNER_MAPPING[key] = tuner
    PEFT_TYPE_TO_PREFIX_MAPPING[key] = prefix
    METHODS[method.name] = method
    return method
