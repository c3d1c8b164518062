"""Texts -> tokens -> logits -> calibrated probabilities -> answers: one backbone, any number of tasks, mixed batches.

    loading     adapter folders -> a Predictor, or an Adapter: `load`, `load_many`, `predict_many`
    adapter     Adapter: one task on its backbone
    predictor   Predictor: rows of any tasks -> jobs -> logits -> answers
    weights     of the prompts that an adapter mixes, for each row

Tasks that write have texts in the place of logits; they share the backbone's tensors with the others. Batches are
sorted by length, answers come back in the order of the inputs.
"""

from attentune.predict.adapter import Adapter
from attentune.predict.loading import load, load_fitting, load_many, predict_many
from attentune.predict.predictor import Job, Predictor
from attentune.predict.weights import mixes_nothing, prompt_weights

__all__ = [
    "Adapter",
    "Job",
    "Predictor",
    "load",
    "load_fitting",
    "load_many",
    "mixes_nothing",
    "predict_many",
    "prompt_weights",
]
