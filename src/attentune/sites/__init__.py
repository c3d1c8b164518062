"""Edits at places: the one path by which a method touches a frozen model, in training and in serving."""

from attentune.sites.find import stacks_in
from attentune.sites.layer import AdapterLayer, SiteLayer
from attentune.sites.stack import STACK_CHILD, Stack

__all__ = ["STACK_CHILD", "AdapterLayer", "SiteLayer", "Stack", "stacks_in"]
