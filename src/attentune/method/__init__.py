"""What a method is: a table from places of a transformer to pure functions.

    Edit = (cfg, p, x, y, frame) -> y'

`p` holds the parameters of one site, every tensor with a leading row axis [R, ...]: R = 1 (one task) or R = B (a task
per row). Training reads them for one task, serving row by row: the line of mathematics is the same.
"""

from attentune.method.config import MethodConfig
from attentune.method.frame import Frame
from attentune.method.group import Group, Params, start_of
from attentune.method.method import METHODS, Method, peft_name
from attentune.method.site import Dims, Site

__all__ = ["METHODS", "Dims", "Frame", "Group", "Method", "MethodConfig", "Params", "Site", "peft_name", "start_of"]
