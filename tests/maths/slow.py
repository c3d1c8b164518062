"""What the slow references are made of. Lists of Python floats; nothing of torch and nothing of the package."""

import math
from collections.abc import Sequence

Vector = Sequence[float]
Matrix = Sequence[Vector]


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def apply(matrix: Matrix, x: Vector, bias: Vector | None = None) -> list[float]:
    """Matrix [o,i], x [i], bias [o] -> [o]"""
    return plus([dot(row, x) for row in matrix], bias or [0.0] * len(matrix))


def plus(*vectors: Vector) -> list[float]:
    return [math.fsum(values) for values in zip(*vectors, strict=True)]


def times(factor: float, vector: Vector) -> list[float]:
    return [factor * x for x in vector]


def softmax(scores: Vector) -> list[float]:
    powers = [math.exp(s - max(scores)) for s in scores]
    return [p / math.fsum(powers) for p in powers]


def weighted(weights: Vector, vectors: Sequence[Vector]) -> list[float]:
    """sum_j weights[j] * vectors[j]"""
    return plus(*(times(w, v) for w, v in zip(weights, vectors, strict=True)))


def layer_norm(x: Vector, weight: Vector, bias: Vector, eps: float = 1e-5) -> list[float]:
    mean = math.fsum(x) / len(x)
    variance = math.fsum((v - mean) ** 2 for v in x) / len(x)
    return [(v - mean) / math.sqrt(variance + eps) * w + b for v, w, b in zip(x, weight, bias, strict=True)]


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def own(rows: Sequence, b: int):
    """What row b of the batch reads of tensors with a row axis: its own, or the only one."""
    return rows[0] if len(rows) == 1 else rows[b]
