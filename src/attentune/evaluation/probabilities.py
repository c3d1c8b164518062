"""From logits to probabilities: the one place, used by validation, prediction and serving alike."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> Array:
    """Softmax of z / temperature over the last axis: logits [..., C] -> probabilities [..., C]."""
    z = np.asarray(logits, dtype=np.float64) / temperature
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(logits: NDArray[np.floating], temperature: float = 1.0) -> Array:
    """1 / (1 + exp(-z / temperature)), each on its own: logits [..., C] -> probabilities [..., C]."""
    z = np.asarray(logits, dtype=np.float64) / temperature
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, e) / (1.0 + e)
