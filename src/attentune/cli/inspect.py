"""`attentune methods` and `attentune anatomy`."""

from dataclasses import MISSING, fields
from typing import Annotated, Any

import typer

from attentune.cli import show
from attentune.errors import ConfigError, UnsupportedError


def methods_command(
    name: Annotated[str | None, typer.Argument(metavar="[METHOD]", help="Show the options of this method.")] = None,
    json: show.Json = False,
) -> None:
    """List the methods, or the options of one.

    Example: attentune methods pasta
    """
    from attentune.methods import METHODS
    from attentune.training.recipe import method_options

    if name is None:
        rows = [(method.name, _first_line(method.config)) for method in METHODS.values()]
        if json:
            show.as_json([{"name": method, "what": what} for method, what in rows])
        else:
            show.table(["method", "what it adds"], rows)
        return
    if name not in METHODS:
        raise ConfigError(f"no method {name!r}; the methods are {', '.join(METHODS)}")
    config = METHODS[name].config
    options = [(f.name, _default(f), f.metadata["help"]) for f in fields(config) if f.name in method_options(name)]
    if json:
        show.as_json([{"option": option, "default": default, "help": text} for option, default, text in options])
    else:
        show.table(["option", "default", "what"], [(o, "" if d is None else d, text) for o, d, text in options])


def anatomy_command(
    model: Annotated[str, typer.Argument(help="minilm, a folder, or a hub id.")],
    json: show.Json = False,
) -> None:
    """Show where methods can act in a model, and how many parameters each method adds.

    Example: attentune anatomy minilm
    """
    from attentune.anatomy import stacks_of
    from attentune.backbones import load_backbone
    from attentune.methods import METHODS

    backbone = load_backbone(model)
    stacks: list[dict[str, Any]] = [
        {
            "stack": path or "(the model)",
            "blocks": anatomy.layers(backbone.config),
            "causal": anatomy.causal,
            "prompts": anatomy.prompts,
            "sites": {site: place.path or "(the block)" for site, place in anatomy.places.items()},
        }
        for path, _, anatomy in stacks_of(backbone)
    ]
    counts = {name: _count(backbone, name) for name in METHODS}
    total = sum(p.numel() for p in backbone.parameters())
    if json:
        kind = backbone.config.model_type
        show.as_json({"model_type": kind, "parameters": total, "stacks": stacks, "methods": counts})
        return
    for stack in stacks:
        title = f"{stack['stack']}: {stack['blocks']} blocks{', causal' if stack['causal'] else ''}"
        show.table(["site", "module in a block"], list(stack["sites"].items()), title)
    rows = [(name, f"{n:,}" if isinstance(n, int) else n, _share(n, total)) for name, n in counts.items()]
    show.table(["method", "parameters", "of the model"], rows)


def _count(backbone: Any, name: str) -> int | str:
    """Parameters of a method with its default options, or why it cannot act here."""
    from attentune.methods import METHODS
    from attentune.model import TaskModel

    model = TaskModel(backbone)
    try:
        model.add_adapter("count", METHODS[name].config())
    except UnsupportedError as error:
        return str(error)
    found = sum(p.numel() for key, p in model.named_parameters() if ".count" in key and p.requires_grad)
    model.delete_adapter("count")
    return found


def _share(count: int | str, total: int) -> str:
    return f"{count / total:.3%}" if isinstance(count, int) else ""


def _first_line(config: type[Any]) -> str:
    text = (config.__doc__ or "").strip().splitlines()[0].rstrip(".")
    return text.partition(": ")[2] or text


def _default(field: Any) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else None
