"""Small sets of every kind of task, and one comparison of them on a tiny backbone."""

import json
import shutil
from pathlib import Path

import pytest
from test_train import rows_of
from transformers import BertConfig, BertModel

from attentune.comparison.compare import compare

from .kit import both, quick


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a kind of task: `tone` has a test split that is large enough, the others go by cross-validation."""
    root = tmp_path_factory.mktemp("sets")
    sizes = {"tone": (40, 12, 200), "mood": (24, 12, 200)}
    kinds = {
        "tone": "classification", "mood": "classification", "grade": "regression", "pair": "pair", "many": "multilabel",
        "tags": "tagging", "choices": "multiple_choice", "asked": "question_answering",
    }  # fmt: skip
    for name, kind in kinds.items():
        (root / name).mkdir()
        for seed, (split, count) in enumerate(
            zip(("train", "validation", "test"), sizes.get(name, (30, 5, 5)), strict=True)
        ):
            lines = "\n".join(json.dumps(row) for row in rows_of(kind, count, seed))
            (root / name / f"{split}.jsonl").write_text(lines)
    return root


@pytest.fixture(scope="session")
def roomy_bert(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_bert` with room for the windows of a context."""
    folder = shutil.copytree(tiny_bert, tmp_path_factory.mktemp("roomy") / "bert")
    BertModel(BertConfig.from_pretrained(tiny_bert, max_position_embeddings=128)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def compared(sets: Path, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, two contenders, two rates, two seeds; the lines of progress in `lines.txt`."""
    folder, lines = tmp_path_factory.mktemp("compared"), list[str]()
    compare(*both(sets), folder, quick(tiny_bert), rates=2, report=lines.append)
    (folder / "lines.txt").write_text("\n".join(lines))
    return folder
