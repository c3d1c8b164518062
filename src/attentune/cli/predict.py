"""`attentune predict` and `attentune evaluate`."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Collection, Iterable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from attentune.cli import precision, show, trust
from attentune.cli.named import named
from attentune.errors import ConfigError, DataError

if TYPE_CHECKING:
    from attentune.predict import Predictor

Form = Literal["text", "pair", "choices"]
"""What one row is made of when texts are given: one text, two, or all of them."""
MARKED = "surrogateescape"
"""Bytes that are no UTF-8 become halves of characters, so that the refusal can name the input that holds them."""

Batch = Annotated[int, typer.Option("--batch-size", help="Rows in a batch.")]
Beams = Annotated[int | None, typer.Option("--num-beams", help="Beams of tasks that write; 1: greedy.")]
Longest = Annotated[int | None, typer.Option("--max-new-tokens", help="Most tokens of a text that is written.")]
Backbone = Annotated[str | None, typer.Option(help="Another place to load the same backbone from.")]
AbstainAt = Annotated[
    float | None, typer.Option("--abstain-at", metavar="P", help="Abstain where the answer's probability is below P.")
]


def predict_command(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[DIR] [TEXT]...", help="The adapter, then texts.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Texts: lines of a .txt file, or a data file. Default: stdin.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="NAME=DIR instead of DIR; repeatable.")] = None,
    abstain_at: AbstainAt = None,
    coverage: Annotated[
        float | None,
        typer.Option(metavar="P", help="Sets (numbers: intervals) that hold the truth with P: 0.9, 0.95 ..."),
    ] = None,
    backbone: Backbone = None,
    batch_size: Batch = 32,
    num_beams: Beams = None,
    max_new_tokens: Longest = None,
    attention: Annotated[
        bool, typer.Option("--attention", help="Also the weights of the prompts that each answer was made with.")
    ] = False,
    json: show.Json = False,
) -> None:
    """Answer texts with one adapter, or with several in mixed batches.

    Example: attentune predict sentiment "what a good film"

    Several: attentune predict --task tone=tone --task intent=intent "please call me back" answers the text by each;
    rows of a JSONL file that have a "task" are answered by that task alone. A pair is two TEXTs, or a line with a tab;
    so are a question and its context. A question with choices is the question, then each choice.
    """
    from attentune.predict import load_many, predict_many

    given = list(words or [])
    if not task and not given:
        raise ConfigError("no adapter given; wanted a folder, or --task name=folder")
    alone = None if task else given.pop(0)
    folders = {alone: alone} if alone is not None else named(task or [], "--task wants NAME=DIR")
    predictor = load_many(folders, backbone, None, **_decoding(num_beams, max_new_tokens))
    inputs = _inputs(given, file, form_of([card.task for card in predictor.cards.values()]))
    names = [alone] * len(inputs) if alone is not None else _tasks_of(inputs)
    answers = predict_many(predictor, inputs, names, batch_size, abstain_at=abstain_at, coverage=coverage)
    if attention:
        _add_attention(predictor, inputs, names, answers, batch_size)
    if json:
        for answer in answers:
            show.as_json(answer)
        return
    columns = {name for card in predictor.cards.values() for name in (*card.columns.inputs, *card.columns.choices)}
    told = _summary if names is not None else _by_task
    rows = [(_short(item, columns), told(answer)) for item, answer in zip(inputs, answers, strict=True)]
    show.table(["input", "answer"], rows)


def evaluate_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The adapter.")],
    data: Annotated[str, typer.Argument(help="Labelled rows: a file, a folder or a hub data set id.")],
    split: Annotated[str | None, typer.Option(help="train, validation or test; by default the last there is.")] = None,
    abstain_at: AbstainAt = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page with the reliability and risk diagrams.")
    ] = None,
    backbone: Backbone = None,
    batch_size: Batch = 32,
    num_beams: Beams = None,
    max_new_tokens: Longest = None,
    dtype: precision.Dtype = None,
    quantise: precision.Quantise = None,
    json: show.Json = False,
) -> None:
    """Score an adapter on labelled rows, and how far its probabilities can be trusted.

    Example: attentune evaluate sentiment test.csv --abstain-at 0.8 --report sentiment.html

    What int8 costs: attentune evaluate sentiment test.csv --quantise int8 shows the scores with and without it.
    """
    from attentune.predict import load

    if report is not None and not report.absolute().parent.is_dir():
        raise ConfigError(f"--report {report}: there is no folder {report.absolute().parent}")
    if report is not None and report.is_dir():
        raise ConfigError(f"--report {report}: that is a folder; name a file in it")
    options: dict[str, Any] = {**_decoding(num_beams, max_new_tokens)}
    adapter = load(folder, backbone, None, dtype=precision.of(dtype), quantise=quantise, **options)
    found = adapter.judge(data, split, batch_size, abstain_at=abstain_at)
    if report is not None:
        trust.write(report, adapter, found)
        show.progress(f"{report} written")
    if dtype or quantise:
        plain = load(folder, backbone, None, **options).judge(data, split, batch_size, abstain_at=abstain_at)
        precision.show_both(plain, found, "-".join(filter(None, (dtype, quantise))), json)
        return
    if json:
        show.as_json({**found.scores, **found.trust})
        return
    show.table(["score", "value"], list(found.scores.items()))
    if found.trust:
        show.table(["trust", "value"], list(found.trust.items()))


def _decoding(num_beams: int | None, max_new_tokens: int | None) -> dict[str, int]:
    given = {"num_beams": num_beams, "max_new_tokens": max_new_tokens}
    return {name: value for name, value in given.items() if value is not None}


def _add_attention(
    predictor: Predictor, inputs: list[Any], names: list[str] | None, answers: list[Any], batch_size: int
) -> None:
    """Put `attention` into every answer."""
    each = names is not None
    tasks = names or [task for _ in inputs for task in predictor.cards]
    rows = inputs if each else [text for text in inputs for _ in predictor.cards]
    flat = answers if each else [answer for by_task in answers for answer in by_task.values()]
    for answer, weights in zip(flat, predictor.attention(rows, tasks, batch_size), strict=True):
        answer["attention"] = weights


def form_of(tasks: Sequence[Any]) -> Form:
    """Which texts make a row, if all tasks agree."""
    if all(task.kind == "multiple_choice" for task in tasks):
        return "choices"
    return "pair" if all(task.pair and task.kind != "multiple_choice" for task in tasks) else "text"


def _inputs(texts: list[str], file: Path | None, form: Form) -> list[Any]:
    if texts and file:
        raise ConfigError(f"texts were given and --file {file}; wanted one of them")
    if texts:
        if form == "choices":
            return [texts]
        if form == "text":
            return texts
        if len(texts) % 2:
            raise DataError(f"a pair is two texts, found {len(texts)}")
        return [texts[i : i + 2] for i in range(0, len(texts), 2)]
    if file is None:
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8-sig", errors=MARKED)
        return from_lines(sys.stdin, form)
    if file.suffix == ".txt":
        with file.open(encoding="utf-8-sig", errors=MARKED) as lines:
            return from_lines(lines, form)
    from attentune.tasks.sources import read

    return cast("list[Any]", next(iter(read(file).values())).rows)


def from_lines(lines: Iterable[str], form: Form) -> list[Any]:
    """A text a line; for pairs and choices tabs between the texts; a line that is a JSON object or list is a row.

    Raises:
        DataError: a line is empty or nested too deeply, or there is none.
    """
    found = [_from_line(line.rstrip("\r\n"), number, form) for number, line in enumerate(lines, 1)]
    if not found:
        raise DataError("no text to answer; give it after the adapter, as lines on standard input, or with --file")
    return found


def _from_line(line: str, number: int, form: Form) -> Any:
    if not line.strip():
        raise DataError(f"line {number} is empty; wanted a text")
    if line[0] in "{[":
        try:
            return jsonlib.loads(line)
        except jsonlib.JSONDecodeError:
            pass
        except RecursionError as error:
            raise DataError(f"line {number} is nested too deeply to be read as JSON") from error
    return line if form == "text" else line.split("\t")


def _tasks_of(inputs: Sequence[Any]) -> list[str] | None:
    """The task that each row names; None where none does, so that every task answers it.

    Raises:
        DataError: some rows name one, and others do not.
    """
    rows = [cast("dict[str, Any]", row) if isinstance(row, dict) else {} for row in inputs]
    found = ["" if row.get("task") is None else str(row["task"]) for row in rows]
    if not any(found):
        return None
    if "" in found:
        raise DataError(f"input {found.index('') + 1} names no task, and others do; name one in every row, or in none")
    return found


def _short(item: Any, columns: Collection[str], limit: int = 60) -> str:
    """An input in one line: of a row the input columns, or all there is where it has none of them."""
    if isinstance(item, dict):
        row = cast("dict[str, Any]", item)
        item = [value for name, value in row.items() if name in columns] or list(row.values())
    text = " | ".join(map(str, cast("list[Any]", item))) if isinstance(item, list) else str(item)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _by_task(answers: dict[str, dict[str, Any]]) -> str:
    """{task: answer} in one line for people."""
    return "; ".join(f"{task}: {_summary(answer)}" for task, answer in answers.items())


def _summary(answer: dict[str, Any]) -> str:
    """An answer in one line for people."""
    if "attention" in answer:
        weights = sorted(answer["attention"].items(), key=lambda item: -item[1])
        rest = {key: value for key, value in answer.items() if key != "attention"}
        return f"{_summary(rest)}, of {', '.join(f'{name} {weight:.2f}' for name, weight in weights)}"
    if answer.get("truncated"):
        return f"{_summary({**answer, 'truncated': False})} (the text was cut)"
    told = _told(answer)
    if answer.get("abstained"):
        told = f"abstains: {told}"
    if answer.get("out_of_scope"):
        told = f"out of scope: {told}"
    if "prediction_set" in answer:
        return f"{told} {{{', '.join(map(str, answer['prediction_set']))}}}"
    if "interval" in answer:
        return "{} [{:.4g}, {:.4g}]".format(told, *answer["interval"])
    return told


def _told(answer: dict[str, Any]) -> str:
    if "label" in answer:
        return f"{answer['label']} ({answer['score']:.3f})"
    if "value" in answer:
        return f"{answer['value']:.4g}"
    if "labels" in answer:
        return ", ".join(answer["labels"]) or "(none)"
    if "choice" in answer:
        return f"{answer['choice']} ({answer['score']:.3f})"
    if "answer" in answer:
        return f"{answer['answer'] or '(no answer)'} ({answer['score']:.3f})"
    if "text" in answer:
        return answer["text"]
    return ", ".join(f"{span['text']} [{span['label']}]" for span in answer["spans"]) or "(none)"
