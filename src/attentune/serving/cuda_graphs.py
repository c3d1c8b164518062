"""Runs recorded on a GPU, as functions of tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from weakref import WeakSet

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Run = Callable[[Tensors], Tensors]
"""Tensors of fixed shapes -> tensors of fixed shapes; nothing else goes in or out."""

WARM_UPS = 2
"""Runs before the one that is recorded: libraries choose kernels and take workspaces in the first."""
_RECORDING = threading.Lock()
"""A process records one at a time."""


class CudaGraphs:
    """Records on a GPU; all that one object records shares its memory, as one replay runs at a time.

    Between two replays nothing is kept there: inputs lie outside, and outputs are copied.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._warming, self._recording = torch.cuda.Stream(), torch.cuda.Stream()
        self._alive: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def __call__(self, run: Run, example: Tensors) -> Run:
        """Record a run."""
        inputs = {name: value.clone() for name, value in example.items()}
        # Held while it records: a pool may be shared only as long as one of its graphs is there.
        other = next(iter(self._alive), None)
        graph = torch.cuda.CUDAGraph()
        with _RECORDING, torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            self._warming.wait_stream(here)
            with torch.cuda.stream(self._warming):
                for _ in range(WARM_UPS):
                    run(inputs)
            here.wait_stream(self._warming)
            pool = None if other is None else other.pool()
            # The outer one gives the stream back even if recording fails. Other threads go on fetching rows of tasks.
            with (
                torch.cuda.stream(here),
                torch.cuda.graph(graph, pool, self._recording, capture_error_mode="thread_local"),
            ):
                outputs = run(inputs)
        self._alive.add(graph)

        def replay(given: Tensors) -> Tensors:
            for name, value in given.items():
                inputs[name].copy_(value)
            graph.replay()
            return {name: value.clone() for name, value in outputs.items()}

        return replay
