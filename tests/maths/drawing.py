"""Random sizes and tensors for the tests of this folder."""

from collections.abc import Callable

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

few = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)
small = st.integers(1, 4)

ROWS = ("one", "repeated", "different")
"""R = 1; R = B with equal rows; R = B with a row each."""
rows = st.sampled_from(ROWS)


class Drawer:
    """Tensors in float64 from one seed; parameters get the row axis that `how` names."""

    def __init__(self, seed: int, batch: int, how: str = "one") -> None:
        self.batch, self.how = batch, how
        self._generator = torch.Generator().manual_seed(seed)

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def flags(self, *shape: int, chance: float = 0.6) -> Tensor:
        return torch.rand(shape, generator=self._generator) < chance

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self._generator)

    def params(self, *shape: int) -> Tensor:
        """[R, *shape]"""
        if self.how == "different":
            return self.tensor(self.batch, *shape)
        one = self.tensor(1, *shape)
        return one if self.how == "one" else one.repeat(self.batch, *[1] * len(shape))


def close(found: Tensor, wanted: object) -> None:
    torch.testing.assert_close(found, torch.as_tensor(wanted, dtype=found.dtype), rtol=1e-9, atol=1e-9)


def differentiable(function: Callable[..., Tensor], *inputs: Tensor) -> bool:
    """Whether the gradients by autograd equal those by finite differences."""
    return torch.autograd.gradcheck(function, [x.clone().requires_grad_() for x in inputs])
