"""The parameters of one site for every adapter, and the hook by which they act."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from attentune.anatomy import Place
from attentune.errors import ConfigError, UnsupportedError
from attentune.method import Dims, Frame, Group, Method, MethodConfig, Params, Site
from attentune.sites import merge

if TYPE_CHECKING:
    from attentune.sites.stack import Stack


FRESH = (nn.Linear, nn.LayerNorm)
"""Hosts whose output is a tensor of its own, which nobody else holds."""


class AdapterLayer(nn.Module, BaseTunerLayer):
    """Tensors by adapter name, in the containers that peft saves, switches and deletes."""

    def __init__(self) -> None:
        super().__init__()
        self.configs: dict[str, MethodConfig] = {}
        self.adapter_layer_names: tuple[str, ...] = ()
        self.other_param_names: tuple[str, ...] = ("configs",)
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []

    def put(
        self,
        name: str,
        cfg: MethodConfig,
        tensors: Mapping[str, Tensor],
        like: Tensor,
        frozen: tuple[str, ...] = (),
        inference_mode: bool = False,
    ) -> None:
        """Add or replace one adapter's tensors, on the device and in the floating dtype of `like`."""
        dtype = like.dtype if like.dtype.is_floating_point else torch.float32
        for key in self.adapter_layer_names:
            if name in getattr(self, key) and key not in tensors:
                del getattr(self, key)[name]
        for key, value in tensors.items():
            if key not in self.adapter_layer_names:
                if hasattr(self, key):
                    raise ConfigError(
                        f"a tensor cannot be named {key!r}: every layer of peft has an attribute of that name"
                    )
                setattr(self, key, nn.ParameterDict())
                self.adapter_layer_names = (*self.adapter_layer_names, key)
            getattr(self, key)[name] = nn.Parameter(value.detach().clone().to(like.device, dtype))
        self.configs[name] = cfg
        if frozen:
            self.frozen_peft_weight_names = {**self.frozen_peft_weight_names, name: frozen}
        self.set_adapter(list(self.active_adapters), inference_mode=inference_mode)

    def hollow(self, name: str) -> None:
        """Forget an adapter's tensors and keep its place: a bank holds them, and hands them over with each batch."""
        for key in self.adapter_layer_names:
            if name in getattr(self, key):
                del getattr(self, key)[name]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One adapter's tensors, without the row axis."""
        return {key: getattr(self, key)[name] for key in self.adapter_layer_names if name in getattr(self, key)}

    def params(self, group: Group) -> Params:
        """The tensors of a group's rows, [R, ...]: R = 1 for a single adapter, else a row each."""
        if group.tensors is not None:
            return group.tensors[self]
        sets = [self.tensors(name) for name in group.names]
        if group.which is None:
            return {key: value[None] for key, value in sets[0].items()}
        return {key: torch.stack([s[key] for s in sets]).index_select(0, group.which) for key in sets[0]}

    def groups(self, given: Sequence[Group] | None) -> list[Group]:
        """Those of a batch's groups that this layer serves; None: its active adapters."""
        if self._disable_adapters:
            return []
        if given is not None:
            return [group for group in given if group.names[0] in self.configs]
        found: list[Group] = []
        for name in self.active_adapters:
            if name in self.configs and name not in self.merged_adapters:
                method = type(self.configs[name]).method
                assert method is not None
                found.append(Group(method, self.configs[name], (name,)))
        return found

    def _get_available_adapters(self) -> set[str]:
        return set(self.configs)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters active, and trainable unless `inference_mode`; names that are elsewhere are none here."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Nothing to merge here."""

    def unmerge(self) -> None:
        """Nothing to unmerge here."""


class SiteLayer(AdapterLayer):
    """One site of one block: a named child of its host, acting through the host's forward hooks."""

    def __init__(self, host: nn.Module, method: Method, site: Site, place: Place, stack: Stack, index: int) -> None:
        super().__init__()
        # In tuples, so that they do not become submodules of this one.
        self._host, self._stack = (host,), (stack,)
        self.method, self.site, self.place, self.index = method, site, place, index
        self._kept: merge.Kept | None = None
        self._handle: Any = None
        if site in (Site.BLOCK_INPUT, Site.CONTEXT):
            self._handle = host.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True)
        elif site not in (Site.PROMPT, Site.KEY_VALUE):
            self._handle = host.register_forward_hook(self._after, prepend=True, with_kwargs=True)

    @property
    def stack(self) -> Stack:
        """The stack whose frame this site reads."""
        return self._stack[0]

    def get_base_layer(self) -> nn.Module:
        """The host."""
        return self._host[0]

    def add(self, name: str, cfg: MethodConfig, dims: Dims, inference_mode: bool = False) -> None:
        """Start one adapter at this site."""
        own = f"_{self.method.name}."
        like = next((p for n, p in self._host[0].named_parameters() if own not in n), dims.words)
        tensors = self.method.init(cfg, self.site, dims)
        self.put(
            name,
            cfg,
            tensors,
            like if like.device.type != "meta" else dims.words,
            self.method.frozen(cfg),
            inference_mode,
        )

    def remove(self) -> None:
        """Take the hook off the host."""
        if self._handle is not None:
            self._handle.remove()

    def edit(self, group: Group, x: Any, y: Tensor, frame: Frame, fresh: bool = False) -> Any:
        """The method's edit for one group's rows; a `fresh` y may be lost. The only place where dtypes change: adapters
        may be float32 over a bfloat16 base.
        """
        p = self.params(group)
        work = y.dtype
        for dtype in {value.dtype for value in p.values()}:
            work = torch.promote_types(work, dtype)
        if any(value.dtype != work for value in p.values()):
            p = {key: value.to(work) for key, value in p.items()}
        if not group.prepared:
            p = self.method.prepare(group.cfg, self.site, p)
        x = x.to(work) if torch.is_tensor(x) and x.is_floating_point() else x
        frame.here = f"{self.method.name} {self.site} {self.index} {' '.join(group.names)}"
        frame.fresh = (fresh or y.dtype != work) and not torch.is_grad_enabled()
        return self.method.edits[self.site](group.cfg, p, x, y.to(work), frame)

    def _run(self, x: Tensor, y: Tensor) -> Tensor | None:
        """The edited y; None where none of the batch's adapters acts here, as at most sites of a bank."""
        frame = self.stack.frame
        if frame is None or not (groups := self.groups(frame.groups)):
            return None
        if self.place.time_first:
            x, y = x.transpose(0, 1), y.transpose(0, 1)
        if self.place.part[1] > 1:
            self.stack.see_parts(y, frame, self.index)
        if frame.uniform or len(y) == frame.batch:
            # A projection that is called again on relative embeddings [1,P,D] is not a row of the batch: Stack runs
            # such attentions once per adapter, where one serves all.
            for group in groups:
                y = self._edit_rows(group, x, y, frame)
        return y.transpose(0, 1) if self.place.time_first else y

    def _edit_rows(self, group: Group, x: Tensor, y: Tensor, frame: Frame) -> Tensor:
        view = self.stack.view(group, frame)
        fresh = self._is_fresh(y, frame)
        if group.rows is None:
            return self._edit_part(group, x, y, view, fresh)
        if not fresh and not torch.is_grad_enabled():
            y, fresh = y.clone(), True
            frame.own = self.site, y
        part = self._edit_part(group, group.take(x), group.take(y), view, fresh or group.start is None)
        return group.put(y, part, fresh)

    def _is_fresh(self, y: Tensor, frame: Frame) -> bool:
        """Whether nobody else holds y, so that an edit may write over it: it is the host's own output, or an edit's
        at the same place. Copying the batch costs more than many an edit.
        """
        if torch.is_grad_enabled():  # Autograd would copy more than is saved: a Linear's output is a view to it.
            return False
        leaves = self.site not in (Site.BLOCK_INPUT, Site.CONTEXT)
        # What leaves a block enters the next one as it is, and whoever asked for hidden states holds it in between.
        mine = frame.own is not None and frame.own[0] == self.site and y is frame.own[1]
        return mine or (leaves and isinstance(self._host[0], FRESH))

    def _edit_part(self, group: Group, x: Tensor, y: Tensor, frame: Frame, fresh: bool) -> Tensor:
        i, n = self.place.part
        if n > 1:
            pieces = list(y.chunk(n, -1))
            pieces[i] = self.edit(group, x, pieces[i], frame).to(y.dtype)
            return torch.cat(pieces, -1)
        if self.place.residual:
            stream = frame.seen[Site(self.place.residual)] + y
            return y + (self.edit(group, x, stream, frame) - stream).to(y.dtype)
        return self.edit(group, x, y, frame, fresh).to(y.dtype)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        h: Tensor = args[0] if args else kwargs["hidden_states"]
        edited = self._run(h, h)
        if edited is None:
            return None
        return ((edited, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": edited})

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        x: Any = args[0] if args else kwargs.get("hidden_states")
        edited = self._run(x, out[0] if isinstance(out, tuple) else out)
        return (edited, *out[1:]) if isinstance(out, tuple) and edited is not None else edited

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the host's weight.

        Raises:
            UnsupportedError: the method has no merged form, or the host cannot hold it.
        """
        if self.method.merge is None:
            raise UnsupportedError(
                f"{self.method.name} has no merged form: what it adds depends on more than one linear map. "
                "Methods that merge: kernel_mix"
            )
        wanted = self.active_adapters if adapter_names is None else adapter_names
        for name in [n for n in wanted if n in self.configs and n not in self.merged_adapters]:
            p = {key: value[None] for key, value in self.tensors(name).items()}
            key_weight, key_bias = self.stack.key_projection(self.index)
            weight, bias = self.method.merge(self.configs[name], self.site, p, key_weight, key_bias)
            self._kept = merge.add(self._host[0], self.place.part, weight, bias, self._kept, safe_merge, self.site)
            self.merged_adapters.append(name)

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters of the site on or off; merged ones are unmerged first, as peft's own are."""
        if not enabled:
            self.unmerge()
        super().enable_adapters(enabled)

    def unmerge(self) -> None:
        """Put the host's kept weight back, bit for bit."""
        if self._kept is not None:
            merge.restore(self._host[0], self.place.part, self._kept)
        self._kept, self.merged_adapters = None, []
