"""The model card as its reader meets it: what it says runs, the hub can read it, and nothing in it is made up."""

import contextlib
import io
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from test_cli import run
from test_train import QUICK, rows_of

from attentune.card import model_card
from attentune.card.readme import EXAMPLES, GIVES, PIPELINES
from attentune.evaluation.meanings import meaning
from attentune.evaluation.metrics import NAMES
from attentune.tasks import KINDS
from attentune.tasks.answer import QuestionAnswering
from attentune.tasks.generate import Generation
from attentune.training.train import Result, train

EXAMPLE = ("good film", "bad rain")
SPLITS = {"train": 48, "validation": 16, "test": 24}


@pytest.fixture(scope="module", params=["classification", "pair", "regression", "tagging"])
def made(request: pytest.FixtureRequest, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A small adapter in a folder whose name wants quoting."""
    kind: str = request.param
    data = {split: rows_of(kind, count, seed) for seed, (split, count) in enumerate(SPLITS.items())}
    folder = tmp_path_factory.mktemp("adapters") / f"my {kind}"
    return train(data, "pasta", folder, str(tiny_bert), **QUICK)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_what_the_card_shows_runs_where_the_folder_lies(
    made: Result, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made.folder.parent)
    text = (made.folder / "README.md").read_text(encoding="utf-8")
    (python,), (shell,) = blocks(text, "python"), blocks(text, "bash")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(python, "README.md", "exec"), {})
    assert printed.getvalue().startswith("[{")
    inline = re.findall(r"`(attentune predict .* TEXT .*?)`", text)
    assert len(inline) == made.card.task.has_score
    for shown in (shell, *(line.replace("TEXT", shlex.join(EXAMPLE[: 1 + made.card.task.pair])) for line in inline)):
        program, *arguments = shlex.split(shown)
        assert program == "attentune"
        assert run(*arguments, "--json") == 0
        assert json.loads(capsys.readouterr().out)


def test_the_hub_reads_it(made: Result) -> None:
    data = ModelCard.load(made.folder / "README.md").data.to_dict()
    assert data["library_name"] == "peft"
    assert data["base_model"] == made.card.backbone.id
    assert data["base_model_relation"] == "adapter"
    assert made.card.method in data["tags"]
    assert data["pipeline_tag"] == PIPELINES.get(made.card.task.kind, "text-classification")


def test_rows_scores_and_the_backbone_are_those_of_the_run(made: Result) -> None:
    text = (made.folder / "README.md").read_text(encoding="utf-8")
    metric = made.card.task.main_metric
    around = made.metrics["intervals"]["test"][metric]
    assert around["low"] <= made.metrics["test"][metric] <= around["high"]
    interval = f"{made.metrics['test'][metric]:.3f} ({around['low']:.3f} to {around['high']:.3f})"
    assert interval in next(line for line in text.splitlines() if line.startswith(f"| **{metric}** "))
    assert "| rows | 48 for training, 16 for validation, 24 for test |" in text
    assert f"fingerprint `{made.card.backbone.fingerprint}`" in text
    assert f"after {made.card.max_length} tokens" in text
    for label in made.card.task.labels:
        assert f"`{label}`" in text
    if made.card.task.kind == "classification":
        counts = made.metrics["run"]["rows_by_class"]
        assert sum(counts.values()) == SPLITS["train"]
        assert "| training rows of a class |" in text
    assert "{" not in text.replace("[{", "")


def test_a_card_without_any_metrics(made: Result) -> None:
    text = model_card(made.card, {}, 2048, log=False)
    assert "No scores were taken." in text
    assert "2 KiB" in text
    assert "Nothing was measured" in text
    assert "recipe.toml" not in text


@pytest.mark.parametrize("kind", ["question_answering", "generation"])
def test_what_is_said_of_other_kinds_is_true_of_them(made: Result, kind: str) -> None:
    task: Any = {"question_answering": QuestionAnswering(), "generation": Generation()}[kind]
    name = "tone-😀"
    metrics = {"validation": {task.main_metric: 0.5}, "baseline": {task.main_metric: 0.1}, "run": {"steps": 3}}
    text = model_card(replace(made.card, name=name, task=task), metrics, 2048, log=False)
    assert f'attentune.load("{name}")' in text
    assert "linear model" not in text
    assert ("`shared words`" in text, "are cut after" in text) == (kind == "question_answering", kind == "generation")
    assert ("recipe.toml" in text, "log.jsonl" in text) == (True, False)


def test_every_kind_and_every_score_has_words() -> None:
    assert set(GIVES) == set(KINDS) >= set(EXAMPLES) | set(PIPELINES)
    scores: set[Any] = {name for names in NAMES.values() for name in names}
    assert all(meaning(name) for name in scores)
