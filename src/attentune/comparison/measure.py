"""What a run costs besides its score: memory while training, latency of an answer, and where all that was measured."""

import gc
import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from attentune.allocator import give_back_freed_memory
from attentune.environment import processor, version_of

Batch = Mapping[str, Tensor]


class Memory:
    """Peak memory of what happens inside a `with`, sampled: of the process and, where there is one, of the GPU."""

    def __init__(self, seconds: float = 0.02) -> None:
        self.seconds = seconds
        self.resident: list[int] = []
        self.reserved: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        # What a former run of this process has freed is not a cost of this one.
        gc.collect()
        give_back_freed_memory()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def accelerator(self) -> dict[str, int]:
        """The columns of peft, bytes; 0 on a CPU."""
        seen = sorted(self.reserved) or [0]
        return {
            "accelerator_memory_reserved_avg": round(statistics.mean(seen)),
            "accelerator_memory_max": seen[-1],
            "accelerator_memory_reserved_99th": seen[min(int(0.99 * len(seen)), len(seen) - 1)],
        }

    def _watch(self) -> None:
        while not self._over.wait(self.seconds):
            self._look()

    def _look(self) -> None:
        self.resident.append(psutil.Process().memory_info().rss)
        if torch.cuda.is_available():
            self.reserved.append(torch.cuda.memory_reserved())


def latency(
    models: Mapping[str, Callable[[Batch], Any]], batches: Mapping[str, Batch], repeats: Mapping[str, int]
) -> dict[str, dict[str, float]]:
    """Batch name -> model name -> median milliseconds of one call, after two to warm up.

    The models take turns, so that whatever else the machine does meets all of them; `ratio` is the median of the first
    model's time over the second's, turn by turn.
    """
    found: dict[str, dict[str, float]] = {}
    for batch_name, batch in batches.items():
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(repeats[batch_name] + 2):
            for name, model in models.items():
                begin = time.perf_counter()
                with torch.inference_mode():
                    model(batch)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if turn >= 2:
                    seconds[name].append(time.perf_counter() - begin)
        found[batch_name] = {name: round(1000 * statistics.median(times), 4) for name, times in seconds.items()}
        first, second, *_ = seconds.values()
        found[batch_name]["ratio"] = round(statistics.median(a / b for a, b in zip(first, second, strict=True)), 4)
    return found


def parameters(model: nn.Module) -> dict[str, int]:
    """The columns of peft: what is trained and what there is, in numbers."""
    return {
        "num_trainable_params": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "num_total_params": sum(p.numel() for p in model.parameters()),
    }


PACKAGES = ("transformers", "peft", "datasets", "bitsandbytes", "torch", "attentune")


def where() -> dict[str, Any]:
    """The `meta_info` of peft: packages and machine, without what tells whose machine it is.

    That is the kernel's release, and the paths with which torch was built.
    """
    cuda = torch.cuda.is_available()
    return {
        "package_info": {f"{name}-version": version_of(name) for name in PACKAGES},
        "system_info": {
            "system": platform.system(),
            "machine": platform.machine(),
            "processor": processor(),
            "accelerator": torch.cuda.get_device_name() if cuda else "none",
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
        },
        "pytorch_info": "\n".join(
            line for line in torch.__config__.show().splitlines() if "Build settings" not in line
        ),
    }


def middle(lengths: Sequence[int], count: int) -> list[int]:
    """Indices of `count` items of middling length; fewer items are repeated."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    start = max((len(order) - count) // 2, 0)
    chosen = order[start : start + count]
    return [chosen[i % len(chosen)] for i in range(count)]
