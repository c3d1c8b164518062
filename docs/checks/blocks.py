"""Every code block of a document runs, in order; what the document shows must be what comes out.

- ```python blocks of one document share one namespace. An ```output block right after one is what it prints.
- ```console blocks: each `$ attentune ...` and `$ curl ...` runs (a trailing backslash continues it) and must succeed;
  other commands are for the reader. Lines that follow are what it prints on stdout. A command that ends in `&` runs in
  the background until the document ends; the lines that follow are waited for.
- ```toml blocks with a [method] table are recipes, and are read as such.
- ```bash blocks are not run: they need a network, a cluster, or an hour. Their `attentune` commands must be such as the
  command line takes: known commands and options, nothing missing.

Shown and printed lines are compared so: blank lines and runs of spaces do not count; a line `...` stands for any lines,
`...` within a line for any text; a number written with decimals may differ by 5 % or by 0.02, the larger of the two;
all else is compared to the letter.

As a script it runs one document in the folder where it is started: an example may register a method.
"""

import io
import math
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

FENCE = re.compile(r"^( *)(`{3,})(.*)$")
DECIMAL = re.compile(r"-?\d+\.\d+")
PROGRAMS = ("attentune", "curl")
SECONDS_OF_A_START = 120


class Block(NamedTuple):
    """A fenced block: what follows the opening fence, the document's line where it begins, and its lines."""

    info: str
    line: int
    lines: list[str]


def blocks_of(text: str) -> Iterator[Block]:
    """The fenced blocks, in order, without their indentation."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        number += 1
        if not opening:
            continue
        indent, fence, info = opening.groups()
        start = number
        while number < len(lines) and not re.fullmatch(rf" *{fence}`* *", lines[number]):
            number += 1
        assert number < len(lines), f"the block opened at line {start} is never closed"
        yield Block(info.strip(), start + 1, [line.removeprefix(indent) for line in lines[start:number]])
        number += 1


def commands_of(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Each `$ command` of a console block with the output shown below it."""
    text = "\n".join(block.lines).replace("\\\n", " ")
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        yield command, shown


def same_line(shown: str, found: str) -> bool:
    """Equal but for decimals that are near and `...` that is anything."""
    literals, numbers = DECIMAL.split(shown), [float(number) for number in DECIMAL.findall(shown)]
    pattern = rf"({DECIMAL.pattern})".join(re.escape(literal).replace(r"\.\.\.", ".*") for literal in literals)
    match = re.fullmatch(pattern, found)
    return match is not None and all(
        math.isclose(float(a), b, rel_tol=0.05, abs_tol=0.02) for a, b in zip(match.groups(), numbers, strict=True)
    )


def same_output(shown: list[str], found: list[str]) -> bool:
    """Line by line; a line `...` is any lines."""
    if not shown:
        return not found
    if shown[0] == "...":
        return any(same_output(shown[1:], found[start:]) for start in range(len(found) + 1))
    return bool(found) and same_line(shown[0], found[0]) and same_output(shown[1:], found[1:])


def squeezed(lines: list[str]) -> list[str]:
    """Without blank lines and runs of spaces."""
    return [" ".join(line.split()) for line in lines if line.strip()]


def compare(where: str, shown: list[str], printed: str) -> None:
    """Raise unless what was printed is what is shown, where anything is."""
    wanted = squeezed(shown)
    assert not wanted or same_output(wanted, squeezed(printed.splitlines())), f"{where}\nprinted\n{printed}"


def run_python(document: Path, block: Block, namespace: dict[str, Any]) -> str:
    """What the block prints."""
    padding = "\n" * (block.line - 1)  # so that a traceback shows the line of the document
    code = compile(padding + "\n".join(block.lines), str(document), "exec")
    with redirect_stdout(io.StringIO()) as printed:
        exec(code, namespace)
    return printed.getvalue()


def script(program: str) -> str:
    """The `attentune` of this very Python; other programs are looked up by the system."""
    return str(Path(sys.executable).with_name(program)) if program == "attentune" else program


def start(where: str, command: list[str], shown: list[str]) -> subprocess.Popen[bytes]:
    """Start a command and wait until it has printed the lines shown."""
    log = Path(f"background-{abs(hash(where))}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    until = time.monotonic() + SECONDS_OF_A_START
    while not same_output([*squeezed(shown), "..."], squeezed(log.read_text().splitlines())):
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            raise AssertionError(f"{where}\nprinted\n{log.read_text()}")
        time.sleep(0.1)
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    """As the reader would, by Ctrl-C; harder where that does not help."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run_console(document: Path, block: Block, background: ExitStack) -> None:
    """Run the commands that are ours, one after another."""
    for command, shown in commands_of(block):
        program, *arguments = shlex.split(command, comments=True)
        if program not in PROGRAMS:
            continue
        where = f"{document.name}, block at line {block.line}: $ {command}"
        if arguments and arguments[-1] == "&":
            background.callback(stop, start(where, [script(program), *arguments[:-1]], shown))
            continue
        done = subprocess.run([script(program), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{where}\nended with {done.returncode}\n{done.stdout}{done.stderr}"
        compare(where, shown, done.stdout)


def parse_commands(document: Path, block: Block) -> None:
    """Every `attentune` command of a block must be one that the command line takes; none of them runs."""
    for line in "\n".join(block.lines).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0] != "attentune":
            continue
        from typer.main import get_command

        from attentune.cli import app

        command: Any = get_command(app)
        arguments = words[1 : words.index("&") if "&" in words else None]
        try:
            context = command.make_context("attentune", arguments)
            while hasattr(command, "resolve_command"):
                name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
                context = command.make_context(name, rest, parent=context)
        except Exception as error:
            raise AssertionError(f"{document.name}, block at line {block.line}: {line}\n{error}") from error


def run_document(document: Path) -> None:
    """All blocks of a Markdown file."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed: str | None = None
    with ExitStack() as background:
        for block in blocks_of(document.read_text(encoding="utf-8")):
            before, printed = printed, None
            where = f"{document.name}, block at line {block.line}"
            if block.info == "python":
                printed = run_python(document, block, namespace)
            elif block.info == "output":
                assert before is not None, f"{where}: the output of what? It follows a python block."
                compare(where, block.lines, before)
            elif block.info == "console":
                run_console(document, block, background)
            elif block.info == "bash":
                parse_commands(document, block)
            elif block.info == "toml" and any(line.strip() == "[method]" for line in block.lines):
                from attentune.training.recipe import parse_recipe

                parse_recipe("\n".join(block.lines), where)


def excused(text: str) -> list[str]:
    """Blocks that look as if they ran, and do not."""
    return [
        f"line {block.line}: ```{block.info}"
        for block in blocks_of(text)
        if block.info not in ("python", "console") and re.match(r"py|console", block.info, re.IGNORECASE)
    ]


if __name__ == "__main__":
    run_document(Path(sys.argv[1]))
