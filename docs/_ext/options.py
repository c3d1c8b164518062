"""The `options` directive: the fields of a dataclass with their defaults and lines of help, as a table."""

import re
from dataclasses import MISSING, Field, fields
from typing import Any, get_type_hints

from generated import Generated, code, imported, prose, table
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata


def kind_of(hint: Any) -> str:
    """A type hint as one reads it."""
    name = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
    return re.sub(r"\b(typing|collections\.abc)\.", "", name).replace("NoneType", "None")


def default_of(field: Field[Any]) -> str:
    """What the field is when nothing is said."""
    if field.default is not MISSING:
        return repr(field.default)
    return "" if field.default_factory is MISSING else repr(field.default_factory())


def options(config: type[Any], own: bool = True) -> str:
    """The fields that have a line of help and are the class's own; or those that it has from its base."""
    hints = get_type_hints(config)
    base = (
        {field.name for field in fields(config.__bases__[0])}
        if hasattr(config.__bases__[0], "__dataclass_fields__")
        else set()
    )
    rows = [
        [code(f.name), code(kind_of(hints[f.name])), code(default_of(f)), prose(f.metadata["help"])]
        for f in fields(config)
        if "help" in f.metadata and ((f.name not in base) is own) and not f.metadata["help"].startswith("filled in:")
    ]
    return table(["key", "type", "default", "what it is"], rows)


class Options(Generated):
    """`{options} attentune.PastaConfig`."""

    required_arguments = 1

    def markdown(self) -> str:
        """The table."""
        return options(imported(self.arguments[0]))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive."""
    app.add_directive("options", Options)
    return {"parallel_read_safe": True}
