"""Golden cases: per method, how a case of the authors is run by our library and what is compared."""

from collections.abc import Callable

from golden_cases import attempt, kernel_mix, pasta, prefix_propagation, tiny_attention
from golden_cases.case import Case
from golden_cases.ledger import Ledger

FAMILIES: dict[str, Callable[[Case], Ledger]] = {
    "attempt": attempt.check,
    "kernel_mix": kernel_mix.check,
    "pasta": pasta.check,
    "prefix_propagation": prefix_propagation.check,
    "tiny_attention": tiny_attention.check,
}
"""By the method that a case names."""
