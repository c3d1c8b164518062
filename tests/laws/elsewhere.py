"""Every method on a device that is not the CPU, without having one: `python -m laws.elsewhere` prints what was found.

Tensors without numbers stand on a device of another name. An operation on tensors of two devices fails as it would on a
GPU, and what makes the host wait for the device, a number that Python looks at or a copy to the host, is counted. A
process of its own, for such a device is there for all of torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from serving.kit import adapter
from serving.test_bank import BASE, backbone, batch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from attentune import TaskModel
from attentune.backbones import fingerprint
from attentune.serving import Bank
from laws.cells import ONE_A_METHOD, adapted, add, refused
from laws.zoo import answer, batch_of, to_learn

KINDS = ("bert", "roberta", "electra", "distilbert", "mpnet", "bart", "t5", "gpt2", "llama")
"""Of each way to tell positions, to fuse projections and to keep a cache. DeBERTa and Longformer run code of their own
that wants numbers."""
OURS = [form for form in ONE_A_METHOD if form.method != "loreft"]
NAME = "elsewhere"
DEVICE = f"{NAME}:0"


class Module(backend_registration._DummyBackendModule):  # pyright: ignore[reportPrivateUsage]
    """What torch asks a device of."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """No other than a GPU."""
        return [torch.float16, torch.bfloat16]


LOOKS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
MAKE = torch.tensor
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Waits(TorchDispatchMode):
    """Counts numbers that Python looks at, and lets all be true and 1; and copies to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.is_set_to.default:
            return True
        if func in LOOKS:
            self.count += args[0].device.type == NAME
            return args[0].dtype == torch.bool or 1
        found = func(*args, **(kwargs or {}))
        if func in COPIES:
            self.count += found.device.type == "cpu" and any(
                torch.is_tensor(given) and given.device.type == NAME for given in args
            )
        return found


def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
    """torch.tensor, which does not know that tensors may have no numbers."""
    found = MAKE(data, *args, **kwargs)
    return found if device is None else torch.zeros(found.shape, dtype=found.dtype, device=device)


@contextmanager
def elsewhere() -> Generator[tuple[FakeTensorMode, Waits]]:
    """Run what is inside on tensors without numbers."""
    mode, waits = FakeTensorMode(allow_non_fake_inputs=True), Waits()
    with patch("torch.tensor", tensor), patch("torch.as_tensor", tensor), mode, waits:
        yield mode, waits


def there(value: Tensor, mode: FakeTensorMode) -> Tensor:
    """A tensor like `value`, on the device and without its numbers."""
    return FakeTensor(mode, value.detach().to("meta"), torch.device(DEVICE))


def move(model: nn.Module, mode: FakeTensorMode) -> None:
    """Put a model's parameters and buffers on the device."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(there(value, mode), value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = there(value, mode)


def forwards(form: Any, kind: str) -> int:
    """One adapter, mixed rows, and a training step; how often the host waited."""
    model, inputs = adapted(form, kind), batch_of(kind, (9, 12, 7, 9))
    add(model, "same", form, 2)
    with elsewhere() as (mode, waits):
        move(model, mode)
        given = {name: there(value, mode) for name, value in inputs.items()}
        with torch.no_grad():
            answer(model, given)
            answer(model, given, adapter_names=["default", "same", BASE, "default"])
        answer(model.train(), to_learn(kind, given)).sum().backward()
        assert all(p.grad.device.type == NAME for p in model.parameters() if p.grad is not None)
        assert any(p.grad is not None for p in model.parameters())
    return waits.count


def bank(folder: Path) -> int:
    """Every method in one batch of a bank, and each alone; how often the host waited."""
    options: dict[str, dict[str, Any]] = {"prefix_propagation": {"length": 3}, "attempt": {"length": 3, "sources": 2}}
    names = [form.method for form in OURS]
    folders = {
        f"{name} {i}": adapter(backbone("bert"), folder / name / str(i), name, i, **options.get(name, {}))
        for name in names
        for i in range(2)
    }
    folders["tags"] = adapter(backbone("bert"), folder / "tags", "kernel_mix", kind="token")
    base = backbone("bert")
    print_of_base = fingerprint(base)
    with (
        patch("attentune.serving.bank.fingerprint", lambda model: print_of_base),  # of numbers, which are gone
        patch("attentune.serving.bank.digest", lambda tensors: ""),
        # The model is there already, and parameters without numbers cannot be put in place of others.
        patch.object(TaskModel, "to", lambda self, place: self),  # pyright: ignore[reportUnknownLambdaType]
        elsewhere() as (mode, waits),
    ):
        move(base, mode)
        served = Bank(base, device=DEVICE)
        for name, path in folders.items():
            served.add(name, path)
        waits.count = 0
        for names in ([*folders, BASE], *([name] * 2 for name in folders)):
            logits = served(adapter_names=names, **batch("bert", (9,) * len(names))).logits
            assert logits is not None
            assert logits.device.type == NAME
    return waits.count


def mixing() -> int:
    """What must be found: two devices in one operation."""
    with elsewhere() as (mode, _):
        return int((there(torch.ones(2), mode) + torch.ones(2)).device.type == NAME)


def waiting() -> int:
    """What must be counted: three waits."""
    with elsewhere() as (mode, waits):
        value = there(torch.ones(2), mode)
        bool(value.any())
        value[0].item()
        value.cpu()
    return waits.count


def found(run: Callable[[], int]) -> int | str:
    """How often the host waited, or what went wrong."""
    try:
        return run()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


def main() -> None:
    """Print, as JSON, how often the host waited for each cell, or what went wrong."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, Module())  # pyright: ignore[reportPrivateUsage]
    cells = {
        f"{form.method} {kind}": found(lambda form=form, kind=kind: forwards(form, kind))
        for form in OURS
        for kind in KINDS
        if not refused(form, kind)
    }
    with TemporaryDirectory() as folder:
        cells["bank"] = found(lambda: bank(Path(folder)))
    cells |= {"mixing": found(mixing), "waiting": found(waiting)}
    json.dump(cells, sys.stdout)


if __name__ == "__main__":
    main()
