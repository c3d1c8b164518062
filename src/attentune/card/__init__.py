"""What an adapter folder tells: the task card for programs, the model card for people."""

from attentune.card.readme import model_card
from attentune.card.task_card import Backbone, TaskCard

__all__ = ["Backbone", "TaskCard", "model_card"]
