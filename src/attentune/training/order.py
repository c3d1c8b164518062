"""The rows of a task, and the order in which they come: neighbours are of like length."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from attentune.tasks import Features


class Examples(Dataset[Features]):
    """Features as the Trainer wants them."""

    def __init__(self, features: Sequence[Features]) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Features:
        return self.features[index]


class ByLength(Sampler[int]):
    """Rows in an order where neighbours are of like length, another one each epoch.

    On a CPU padding is what training waits for. Drawn from seed and epoch alone, so that a resumed run sees the same.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=draw))

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch


def by_length(features: Sequence[Features]) -> list[int]:
    """An order with rows of like length next to each other: scores do not depend on it, padding does."""
    return sorted(range(len(features)), key=lambda i: -len(features[i]))
