"""The five methods, each in one file that opens with paper, equation, and where the authors' code differs."""

from attentune.method import METHODS
from attentune.methods import attempt, kernel_mix, pasta, prefix_propagation, tiny_attention

BUILT_IN = (tiny_attention.METHOD, pasta.METHOD, prefix_propagation.METHOD, attempt.METHOD, kernel_mix.METHOD)
"""Registered with peft when attentune is imported."""

__all__ = ["BUILT_IN", "METHODS"]
