"""The `commands` directive: every command of the command line, with its examples, arguments and options."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from generated import Generated, code, prose, table
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata
from typer.main import get_command


def leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The commands that do something, with the words by which they are called."""
    inside = getattr(command, "commands", None)
    if inside is None:
        yield name, command
        return
    for word, one in inside.items():
        yield from leaves(one, f"{name} {word}")


def paragraphs(text: str) -> Iterator[str]:
    """The help; what follows `Example:` or the like up to the end of the paragraph becomes a block of code."""
    for paragraph in text.split("\n\n"):
        line = " ".join(paragraph.split())
        lead, colon, example = line.partition(": ")
        if colon and example.startswith(("attentune ", "curl ")):
            yield f"{prose(lead)}:\n\n```bash\n{example}\n```"
        else:
            yield prose(line)


def default_of(parameter: Any) -> str:
    """The default, where there is one to show."""
    value = parameter.default
    if value is None or value is False or value == () or callable(value) or parameter.required:
        return ""
    return code(str(value).lower() if value is True else getattr(value, "value", value))


def kind_of(hint: Any) -> str:
    """The type of a value as one reads it."""
    if get_origin(hint) is list:
        return kind_of(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return " or ".join(map(code, get_args(hint)))
    return {str: "text", int: "number", float: "decimal number", Path: "path", bool: ""}.get(hint, str(hint))


def rows_of(command: Any) -> Iterator[list[str]]:
    """A row for each argument and option."""
    for parameter in command.params:
        if parameter.name == "help" or getattr(parameter, "hidden", False):
            continue
        if parameter.param_type_name == "argument":
            name = code(parameter.metavar or parameter.name.upper())
        else:
            name = ", ".join(code(word) for word in [*parameter.opts, *parameter.secondary_opts])
        kind = "" if getattr(parameter, "is_flag", False) else kind_of(parameter.type_descriptor.annotation)
        many = parameter.nargs == -1 or (parameter.multiple and "repeatable" not in (parameter.help or ""))
        needed = ["**Required.**"] if parameter.required else []
        variable = getattr(parameter, "envvar", None)
        asked = [f"Environment: {code(variable)}."] if variable else []
        what = " ".join([*needed, prose(parameter.help or ""), *(["Repeatable."] if many else []), *asked])
        yield [name, kind, default_of(parameter), what]


def reference(command: Any, name: str) -> str:
    """A section for each command."""
    sections: list[str] = []
    for words, one in leaves(command, name):
        body = list(paragraphs(one.help or ""))
        options = table(["option", "type", "default", "what it is"], list(rows_of(one)))
        sections.append("\n\n".join([f"## {words}", *body, options]))
    return "\n\n".join(sections)


class Commands(Generated):
    """`{commands}`."""

    def markdown(self) -> str:
        """All of the command line."""
        from attentune.cli import app

        return reference(get_command(app), "attentune")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}
