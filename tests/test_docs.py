"""Every code block of the documents runs, in order, offline, in an empty folder of its own.

- ```python blocks of one document share one namespace. No block may be excused. An ```output block after one is what
  it prints on stdout, compared as below.
- ```console blocks: each `$ attentune ...` runs (a trailing backslash continues it) and must succeed; other commands
  are for the reader. If lines follow, they must be what the command prints on stdout: blank lines and runs of spaces do
  not count; a line `...` stands for any lines, `...` within a line for any text; a number written with decimals may
  differ by 5 % or by 0.02, the larger of the two; all else is compared to the letter.

A document runs in a process of its own (this file as a script), since an example may register a method.
"""

import io
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^( *)(`{3,})(.*)$")
DECIMAL = re.compile(r"-?\d+\.\d+")
SECONDS_PER_DOCUMENT = 600


class Block(NamedTuple):
    info: str  # what follows the opening fence
    line: int  # of the document, where the block's first line stands
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
    literals, numbers = DECIMAL.split(shown), [float(number) for number in DECIMAL.findall(shown)]
    pattern = rf"({DECIMAL.pattern})".join(re.escape(literal).replace(r"\.\.\.", ".*") for literal in literals)
    match = re.fullmatch(pattern, found)
    return match is not None and all(
        math.isclose(float(a), b, rel_tol=0.05, abs_tol=0.02) for a, b in zip(match.groups(), numbers, strict=True)
    )


def same_output(shown: list[str], found: list[str]) -> bool:
    if not shown:
        return not found
    if shown[0] == "...":
        return any(same_output(shown[1:], found[start:]) for start in range(len(found) + 1))
    return bool(found) and same_line(shown[0], found[0]) and same_output(shown[1:], found[1:])


def squeezed(lines: list[str]) -> list[str]:
    return [" ".join(line.split()) for line in lines if line.strip()]


def run_python(document: Path, block: Block, shown: Block | None, namespace: dict[str, Any]) -> None:
    padding = "\n" * (block.line - 1)  # so that a traceback shows the line of the document
    code = compile(padding + "\n".join(block.lines), str(document), "exec")
    with redirect_stdout(io.StringIO()) as printed:
        exec(code, namespace)
    if shown is not None:
        found = printed.getvalue()
        where = f"{document.name}, block at line {block.line}"
        assert same_output(squeezed(shown.lines), squeezed(found.splitlines())), f"{where} printed\n{found}"


def run_console(document: Path, block: Block) -> None:
    for command, shown in commands_of(block):
        program, *arguments = shlex.split(command, comments=True)
        if program != "attentune":
            continue
        script = Path(sys.executable).with_name(program)
        done = subprocess.run([script, *arguments], capture_output=True, text=True, check=False)
        where = f"{document.name}, block at line {block.line}: $ {command}"
        assert done.returncode == 0, f"{where}\nended with {done.returncode}\n{done.stdout}{done.stderr}"
        if shown := squeezed(shown):
            assert same_output(shown, squeezed(done.stdout.splitlines())), f"{where}\nprinted\n{done.stdout}"


def run_document(document: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    blocks = list(blocks_of(document.read_text(encoding="utf-8")))
    for before, block, after in zip([None, *blocks], blocks, [*blocks[1:], None], strict=False):
        if block.info == "python":
            run_python(document, block, after if after and after.info == "output" else None, namespace)
        elif block.info == "console":
            run_console(document, block)
        elif block.info == "output":
            assert getattr(before, "info", None) == "python", f"{document.name}, line {block.line}: the output of what?"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_runs(document: Path, tmp_path: Path) -> None:
    assert document.exists(), f"{document.name} is missing"
    excused = [
        f"line {block.line}: ```{block.info}"
        for block in blocks_of(document.read_text(encoding="utf-8"))
        if block.info not in ("python", "console") and re.match(r"py|console", block.info, re.IGNORECASE)
    ]
    assert not excused, f"write ```python or ```console, so that the block runs: {excused}"
    work = tmp_path / "work"
    work.mkdir()
    nowhere = "http://127.0.0.1:9"
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "hub"),  # empty: no document may lean on what was downloaded before
        "HF_HUB_OFFLINE": "1",
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "NO_PROXY": "127.0.0.1,localhost",  # a document may talk to the server that it starts
        "COLUMNS": "120",
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        [sys.executable, __file__, str(document)],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS_PER_DOCUMENT,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    ("shown", "found", "same"),
    [
        (["accuracy 0.91"], ["accuracy 0.92"], True),
        (["accuracy 0.91"], ["accuracy 0.81"], False),
        (["120.0 texts"], ["125.9 texts"], True),
        (["120.0 texts"], ["127.0 texts"], False),
        (["12 texts"], ["13 texts"], False),
        (["saved in ..."], ["saved in here"], True),
        (["a", "...", "d"], ["a", "b", "c", "d"], True),
        (["a", "...", "d"], ["a", "d"], True),
        (["a"], ["a", "b"], False),
        (["a", "b"], ["a"], False),
    ],
)
def test_rule_of_comparison(shown: list[str], found: list[str], same: bool) -> None:
    assert same_output(shown, found) is same


def test_blocks_and_commands_are_read() -> None:
    text = "before\n\n  ```console\n  $ attentune a \\\n      --b\n  shown\n  $ make test\n  ```\n"
    console, nested = blocks_of(text + "````md\n```python\n````\n")
    assert (console.info, console.line) == ("console", 4)
    assert [(shlex.split(command), shown) for command, shown in commands_of(console)] == [
        (["attentune", "a", "--b"], ["shown"]),
        (["make", "test"], []),
    ]
    assert nested == Block("md", 10, ["```python"])


if __name__ == "__main__":
    run_document(Path(sys.argv[1]))
