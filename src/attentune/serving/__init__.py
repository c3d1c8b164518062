"""Serving: a bank of any number of tasks on one frozen backbone, and what answers requests from it."""

from attentune.serving.bank import Bank
from attentune.serving.engine import Ask, Engine

__all__ = ["Ask", "Bank", "Engine"]
