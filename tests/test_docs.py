"""The rules by which documents are run and compared; `make docs` applies them to every page."""

import shlex
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "docs" / "checks"))

from blocks import Block, blocks_of, commands_of, excused, parse_commands, run_console, run_document, same_output

ROOT = Path(__file__).parents[1]


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


def test_no_block_is_excused() -> None:
    assert excused("```python\n```\n```console\n```\n```bash\n```\n") == []
    assert excused("```py\n```\n```python no-run\n```\n") == ["line 2: ```py", "line 4: ```python no-run"]


@pytest.mark.parametrize(("printed", "right"), [("0.91 in all", True), ("0.51 in all", False)])
def test_output_is_compared(printed: str, right: bool, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        f"```python\nnumber = 0.9\n```\n```python\nprint(number, 'in all')\n```\n```output\n{printed}\n```\n"
    )
    if right:
        run_document(page)
    else:
        with pytest.raises(AssertionError, match=r"page.md, block at line 8\nprinted\n0.9 in all"):
            run_document(page)


def test_output_belongs_to_python(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```output\n1\n```\n")
    with pytest.raises(AssertionError, match="the output of what"):
        run_document(page)


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("attentune train data.csv --method pasta --output here  # a comment", None),
        ("attentune sources attention here --output heat.svg", None),
        ("attentune serve models --port 8000 &", None),
        ("make demo", None),
        ("attentune train data.csv", "output"),
        ("attentune train data.csv --output here --colour red", "--colour"),
        ("attentune sources mix", "mix"),
        ("attentune paint", "paint"),
    ],
)
def test_commands_for_the_reader_are_parsed(command: str, fault: str | None) -> None:
    block = Block("bash", 1, [command])
    if fault is None:
        parse_commands(Path("page.md"), block)
    else:
        with pytest.raises(AssertionError, match=fault):
            parse_commands(Path("page.md"), block)


def test_a_command_in_the_background_is_waited_for_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("blocks.script", lambda program: sys.executable)
    page = Path("page.md")
    with ExitStack() as background:
        code = "import time; print('up', flush=True); time.sleep(60)"
        run_console(page, Block("console", 1, [f'$ attentune -c "{code}" &', "up"]), background)
    with ExitStack() as background, pytest.raises(AssertionError, match="fell over"):
        run_console(page, Block("console", 1, ["$ attentune -c \"raise SystemExit('fell over')\" &", "up"]), background)


def test_the_picture_of_the_architecture_is_what_its_script_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import picture_architecture as picture

    kept = picture.TARGET.read_text(encoding="utf-8")
    monkeypatch.setattr(picture, "TARGET", tmp_path / "drawn.svg")
    picture.main()
    assert (tmp_path / "drawn.svg").read_text(encoding="utf-8") == kept
