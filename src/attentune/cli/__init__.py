"""The command line: `attentune COMMAND --help` shows what each command wants, with an example.

Every command has --json for programs; what people want to know besides goes to stderr. Whatever attentune refuses is
one line on stderr and exit code 2.
"""

import sys
from collections.abc import Sequence

import typer

from attentune.allocator import keep_freed_memory
from attentune.cli import (
    adopt,
    calibrate,
    compare,
    env,
    inspect,
    lengthen,
    merge,
    predict,
    search,
    serve,
    sources,
    train,
    train_many,
)
from attentune.errors import AttentuneError

app = typer.Typer(
    name="attentune",
    help="One frozen transformer, any number of text tasks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("train")(train.train_command)
app.command("train-many")(train_many.train_many_command)
app.command("search")(search.search_command)
app.command("evaluate")(predict.evaluate_command)
app.command("calibrate")(calibrate.calibrate_command)
app.command("predict")(predict.predict_command)
app.command("serve")(serve.serve_command)
app.command("keys")(serve.keys_command)
app.command("compare")(compare.compare_command)
app.command("methods")(inspect.methods_command)
app.command("anatomy")(inspect.anatomy_command)
app.command("merge")(merge.merge_command)
app.command("adopt")(adopt.adopt_command)
app.command("lengthen")(lengthen.lengthen_command)
app.command("env")(env.env_command)
app.add_typer(sources.app, name="sources", help="A library of source prompts, and what adapters make of them.")

__all__ = ["app", "main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script; `arguments` are those of the process unless given."""
    keep_freed_memory()
    try:
        app(args=None if arguments is None else list(arguments), prog_name="attentune")
    except (AttentuneError, OSError) as error:
        print(f"attentune: {error}", file=sys.stderr)
        raise SystemExit(2) from error
