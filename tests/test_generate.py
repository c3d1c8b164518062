"""Generation end to end: rows, prompts, loss, training through the command line, writing alone and mixed."""

import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSeq2SeqLM
from test_cli import run, write_rows
from test_train import FOLDER
from writers import WRITERS, pairs, save_writer, tokenizer_of

import attentune
from attentune.backbones import fingerprint, load_backbone
from attentune.errors import ConfigError, DataError, UnsupportedError
from attentune.predict import load_many, predict_many
from attentune.serving.bank import Bank
from attentune.tasks.data import load_rows
from attentune.tasks.generate import Generation
from attentune.tasks.task import IGNORED, collate
from attentune.training.seeds import train_seeds

QUICK: dict[str, Any] = {"task": "generation", "epochs": 1, "batch_size": 16, "max_new_tokens": 6, "num_beams": 2}
INPUTS = ["anna ben", "cara dan eva", "finn", "eva anna"]


@pytest.fixture(scope="session")
def writers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny random models by architecture."""
    return {kind: save_writer(kind, tmp_path_factory.mktemp("writers") / kind) for kind in WRITERS}


@pytest.fixture(scope="session")
def adapters(writers: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Adapters by architecture and name: two that write a little and one that classifies."""
    found: dict[str, dict[str, Path]] = {}
    labelled = [{"text": row["source"], "label": row["source"][0]} for row in pairs(40)]
    for kind, folder in writers.items():
        where = tmp_path_factory.mktemp(kind)
        common: dict[str, Any] = {**QUICK, "epochs": 6, "batch_size": 8, "learning_rate": 0.02, "patience": 0}
        attentune.train(pairs(48), "kernel_mix", where / "mix", str(folder), biases=False, **common)
        attentune.train(pairs(48), "prefix_propagation", where / "prefix", str(folder), length=3, seed=1, **common)
        options: dict[str, Any] = {"epochs": 1, "max_length": 20, "init_weights": False}
        attentune.train(labelled, "tiny_attention", where / "names", str(folder), **options)
        found[kind] = {name: where / name for name in ("mix", "prefix", "names")}
    return found


def test_columns_are_guessed(writers: dict[str, Path], tmp_path: Path) -> None:
    lines: list[str] = []
    rows = [{"mr": f"{i} names", "ref": f"text number {i}"} for i in range(20)]
    with pytest.raises(
        UnsupportedError, match=r"minilm is an encoder \(bert\), which writes no text; generation wants"
    ):
        attentune.train(rows, output=tmp_path / "a", report=lines.append)
    assert lines[:2] == ["columns: mr -> ref", "task: generation"]
    few = [{"input": "where is it", "output": ["lost parcel", "late parcel"][i % 2]} for i in range(20)]
    assert attentune.tasks.load_data(few).kind == "classification"


def test_several_references() -> None:
    rows = [{"source": "a", "targets": ["one text", "another text"]}, {"source": "b", "targets": ["a third"]}] * 2
    data = attentune.tasks.load_data({"train": rows, "test": rows}, "generation")
    assert [row["label"] for row in data.train[:3]] == [["one text"], ["another text"], ["a third"]]
    assert data.test[0] == {"text": "a", "label": ["one text", "another text"]}
    for wrong, match in (([], "found an empty list"), ([""], "found nothing"), (7, "found int 7")):
        with pytest.raises(
            DataError, match=f"train row 1, column 'targets': wanted a text or a list of texts, {match}"
        ):
            attentune.tasks.load_data([{"source": "a", "targets": wrong}], "generation")
    pair = [{"sentence1": "a", "sentence2": "b", "label": "c"}]
    with pytest.raises(DataError, match=r"generation reads one text, found sentence1 \+ sentence2 -> label"):
        attentune.tasks.load_data(pair, "generation")


def test_each_split_names_its_answers() -> None:
    """`target` where there is one text, `targets` where there are several: as in data sets of many references."""
    one = [{"source": f"a{i}", "target": f"one text {i}"} for i in range(4)]
    several = [{"source": f"a{i}", "targets": [f"one text {i}", f"another text {i}"]} for i in range(4)]
    load = attentune.tasks.load_data
    data = load({"train": one, "validation": several, "test": several})
    assert (data.kind, data.columns.shown()) == ("generation", "source -> target")
    assert data.test[0] == {"text": "a0", "label": ["one text 0", "another text 0"]}
    assert data.validation == data.test
    assert "columns of test: source -> targets" in data.notes
    other_way = load({"train": several, "validation": one})
    assert [row["label"] for row in other_way.train[:2]] == [["one text 0"], ["another text 0"]]
    assert other_way.validation[0]["label"] == ["one text 0"]
    assert len(load({"train": one, "test": several}).test) == 4
    renamed = [{"source": row["source"], "references": row["targets"]} for row in several]
    assert len(load({"train": one, "test": renamed}).test) == 4
    # The same with a text column that no list of names goes with.
    body = [{"body": row["source"], "target": row["target"]} for row in one]
    bodies = [{"body": row["source"], "targets": row["targets"]} for row in several]
    data = load({"train": body, "test": bodies}, "generation")
    assert data.test[0]["label"] == ["one text 0", "another text 0"]
    assert load_rows({"test": bodies}, data.columns, "generation") == data.test
    # A column that the user names is that of every split.
    with pytest.raises(DataError, match=r"validation row 1 has no column 'target'; it has source, targets"):
        load({"train": one, "validation": several}, "generation", ["source"], "target")
    notes = load({"train": one, "test": several}, "generation", ["source"], "target").notes
    assert "test: left out, it has no column 'target'; it has source, targets" in notes


def test_a_text_is_judged_against_all_references(writers: dict[str, Path], tmp_path: Path) -> None:
    several = [{"source": row["source"], "targets": [row["target"], "ben ben ben"]} for row in pairs(8, 1)]
    data = {"train": pairs(24), "test": several}
    result = attentune.train(data, "kernel_mix", tmp_path / "a", str(writers["t5"]), biases=False, **QUICK)
    assert result.metrics["run"]["test_rows"] == 8
    adapter = attentune.load(result.folder)
    assert adapter.evaluate(data) == pytest.approx(result.metrics["test"])
    rows = load_rows(data, adapter.card.columns, "generation")
    for place in (0, 1):
        written = [{"text": row["label"][place]} for row in rows]
        assert adapter.card.task.score(written, rows)["rouge1"] == pytest.approx(100)


def test_the_seed_of_the_lowest_loss_is_kept(writers: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {**QUICK, "epochs": 2, "metric": "loss", "num_beams": 1}
    rows = pairs(24)
    found = train_seeds(rows, "kernel_mix", tmp_path / "a", str(writers["gpt2"]), seeds=2, biases=False, **options)
    losses: list[float] = []
    for seed in (0, 1):
        one = attentune.train(
            rows, "kernel_mix", tmp_path / str(seed), str(writers["gpt2"]), biases=False, seed=seed, **options
        )
        log = [json.loads(line) for line in (one.folder / "log.jsonl").read_text().splitlines()]
        losses.append(min(line["validation"]["loss"] for line in log))
    assert losses[0] != losses[1]
    assert found.metrics["seeds"]["kept"] == losses.index(min(losses))


def test_a_loss_that_was_not_finite_is_not_the_lowest(writers: dict[str, Path], tmp_path: Path) -> None:
    """Of a finished seed, after a kill: no evaluation gave a number, or the second one alone."""
    options: dict[str, Any] = {**QUICK, "epochs": 2, "metric": "loss", "num_beams": 1, "biases": False, "seeds": 2}
    given = (pairs(24), "kernel_mix", tmp_path / "a", str(writers["gpt2"]))

    def killed(line: str) -> None:
        if line == "seed 1":
            raise KeyboardInterrupt

    for losses, kept in (((None, None), 1), ((None, 0.0), 0)):
        with pytest.raises(KeyboardInterrupt):
            train_seeds(*given, report=killed, **options)
        log = tmp_path / "a.seeds" / "0" / "a" / "log.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        for line, loss in zip(lines, losses, strict=True):
            line["validation"]["loss"] = loss
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert train_seeds(*given, resume=True, **options).metrics["seeds"]["kept"] == kept


ROW = {"text": "anna ben", "label": ["then anna went"]}


def test_what_an_encoder_decoder_reads() -> None:
    task, tokenizer = Generation(), tokenizer_of("t5")
    (features,) = task.encode(tokenizer, [ROW], 10)
    assert tokenizer.decode(features.sequences[0]["input_ids"]) == "anna ben </s>"
    assert tokenizer.decode(features.target) == "then anna went </s>"
    (short,) = Generation(max_new_tokens=2).encode(tokenizer, [ROW], 10)
    assert tokenizer.decode(short.target) == "then anna"
    batch = collate(task, [features, short], tokenizer)
    assert batch["labels"].tolist()[1] == [*short.target, IGNORED, IGNORED]
    assert task.with_answer(features) == features


def test_what_a_decoder_reads() -> None:
    task, tokenizer = Generation(decoder_only=True, prompt="{text} went"), tokenizer_of("gpt2")
    labelled, plain = task.encode(tokenizer, [ROW, {"text": "anna ben"}], 10)
    assert labelled.sequences == plain.sequences
    whole = task.with_answer(labelled)
    assert tokenizer.decode(whole.sequences[0]["input_ids"]) == "<s> anna ben went then anna went </s>"
    assert whole.target == [IGNORED] * 4 + tokenizer("then anna went </s>", add_special_tokens=False)["input_ids"]
    batch = collate(task, [labelled, labelled], tokenizer)
    assert batch["labels"].shape == batch["input_ids"].shape == (2, 8)
    ended = task.encode(tokenizer_of("bart"), [{"text": "anna ben"}], 10)[0]
    assert ended == plain


def test_long_texts_are_cut_inside_the_prompt() -> None:
    task, tokenizer = Generation(prompt="then {text} went"), tokenizer_of("bart")
    (features,) = task.encode(tokenizer, [{"text": "anna ben cara dan"}], 6)
    assert features.truncated
    assert tokenizer.decode(features.sequences[0]["input_ids"]) == "<s> then anna ben went </s>"
    with pytest.raises(DataError, match=r"the prompt 'then \{text\} went' leaves no room for a text in 4 tokens"):
        task.encode(tokenizer, [{"text": "anna ben"}], 4)


@pytest.mark.parametrize("decoder_only", [False, True])
def test_the_loss_is_the_mean_over_the_answer(decoder_only: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 5)
    targets = torch.tensor([[IGNORED, 1, 2, IGNORED], [IGNORED, 3, 4, 0]])
    expected = []
    for z, row in zip(logits.tolist(), targets.tolist(), strict=True):
        losses = []
        for t, label in enumerate(row):
            at = t - 1 if decoder_only else t
            if label != IGNORED:
                losses.append(math.log(sum(math.exp(v) for v in z[at])) - z[at][label])
        expected.append(sum(losses) / len(losses))
    assert Generation(decoder_only=decoder_only).loss(logits, targets).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prompt": "summarize:"}, "a prompt holds {text} where the text belongs, found 'summarize:'"),
        ({"num_beams": 0}, "num_beams is at least 1, found 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is at least 1, found 0"),
        ({"max_new_tokens": 64}, "max_new_tokens=64 leaves no room; the backbone has 64 positions"),
        ({"metric": "f1"}, "no metric 'f1' for generation; there are bleu, chrf, rouge1, rouge2, rougeL, loss"),
    ],
)
def test_wrong_options(writers: dict[str, Path], tmp_path: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(match)):
        attentune.train(pairs(8), "kernel_mix", tmp_path / "a", str(writers["gpt2"]), **{**QUICK, **options})
    assert not (tmp_path / "a").exists()


def test_what_scores_texts_is_wanted_before_any_is_written(
    writers: dict[str, Path], adapters: dict[str, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    lines: list[str] = []
    with pytest.raises(ConfigError, match=re.escape("pip install 'attentune[generation]'")):
        attentune.train(pairs(8), "kernel_mix", tmp_path / "a", str(writers["gpt2"]), report=lines.append, **QUICK)
    assert not [line for line in lines if "epoch" in line]
    assert list(tmp_path.iterdir()) == []
    adapter = attentune.load(adapters["gpt2"]["mix"], str(writers["gpt2"]))
    monkeypatch.setattr(adapter.predictor, "logits", pytest.fail)
    with pytest.raises(ConfigError, match="sacrebleu"):
        adapter.evaluate(pairs(4))


def test_a_tiny_model_learns_through_the_command_line(
    writers: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    for seed, (name, count) in enumerate({"train": 160, "validation": 16, "test": 16}.items()):
        write_rows(tmp_path / "data" / f"{name}.jsonl", pairs(count, seed))
    common = ("--backbone", writers["gpt2"], "--task", "generation", "--json", "--method", "kernel_mix")
    sets = ("learning_rate=0.01", "max_new_tokens=7", "metric=bleu", "num_beams=2", "epochs=6")
    settings = [part for text in sets for part in ("--set", text)]
    assert run("train", tmp_path / "data", "--output", tmp_path / "a", *common, *settings) == 0
    metrics = json.loads(capsys.readouterr().out)
    log = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    losses, bleus = ([line["validation"][name] for line in log] for name in ("loss", "bleu"))
    assert losses[-1] < 0.5 * losses[0]
    assert bleus[0] < 50 < 80 < max(bleus) == pytest.approx(metrics["validation"]["bleu"])
    assert set(metrics["test"]) == {"bleu", "chrf", "rouge1", "rouge2", "rougeL"} == set(metrics["baseline"])
    assert {f.name for f in (tmp_path / "a").iterdir()} == FOLDER
    assert "what is written may be fluent and wrong." in (tmp_path / "a" / "README.md").read_text()

    assert run("evaluate", tmp_path / "a", tmp_path / "data", "--json") == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(metrics["test"])
    assert run("predict", tmp_path / "a", "ben cara", "eva anna", "--json", "--num-beams", 1) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers == [
        {"text": f"then {a} went with {b}", "truncated": False} for a, b in (("ben", "cara"), ("eva", "anna"))
    ]
    assert run("predict", tmp_path / "a", "ben cara", "--max-new-tokens", 2) == 0
    assert "then ben" in capsys.readouterr().out


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_is_read_back(adapters: dict[str, dict[str, Path]], writers: dict[str, Path], kind: str) -> None:
    folder = adapters[kind]["mix"]
    adapter = attentune.load(folder)
    assert adapter.card.task == Generation(
        decoder_only=kind == "gpt2", prompt="{text}\n" if kind == "gpt2" else "{text}", num_beams=2, max_new_tokens=6
    )
    assert adapter.card.backbone.fingerprint == fingerprint(load_backbone(str(writers[kind])))
    assert adapter.evaluate(pairs(8, 1)).keys() == {"bleu", "chrf", "rouge1", "rouge2", "rougeL"}
    # Plain peft reads it too, and the language head's model gives the same text.
    auto: Any = AutoPeftModelForCausalLM if kind == "gpt2" else AutoPeftModelForSeq2SeqLM
    tokenizer = tokenizer_of(kind)
    model = auto.from_pretrained(str(folder)).eval()
    prompt = adapter.card.task.encode(tokenizer, [{"text": "anna ben"}], 20)[0].sequences[0]
    ids = {name: torch.tensor([value]) for name, value in prompt.items()}
    out = model.generate(**ids, max_new_tokens=6, num_beams=2, pad_token_id=0, eos_token_id=2)
    new = out[0, len(prompt["input_ids"]) :] if kind == "gpt2" else out[0]
    assert adapter.predict(["anna ben"])[0]["text"] == tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_rows_mixed_are_rows_alone(adapters: dict[str, dict[str, Path]], kind: str, num_beams: int) -> None:
    """Two methods that write and one that classifies, in one call, on one copy of the weights."""
    folders = adapters[kind]
    predictor = load_many(folders, num_beams=num_beams)
    assert predictor.writer is not None
    own, others = (
        {p.data_ptr() for n, p in m.named_parameters() if "task" not in n} for m in (predictor.writer, predictor.model)
    )
    assert others <= own
    tasks = ["mix", "names", "prefix", "prefix"]
    mixed = predict_many(predictor, INPUTS, tasks)
    for name, text, answer in zip(tasks, INPUTS, mixed, strict=True):
        alone = attentune.load(folders[name], num_beams=num_beams).predict([text])[0]
        if name == "names":
            assert answer["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
        else:
            assert answer == alone
    every = predict_many(predictor, INPUTS[:2], batch_size=2)
    assert every[0]["mix"] == mixed[0]
    assert every[1]["names"]["label"] == mixed[1]["label"]
    assert every[0]["mix"]["text"] != every[0]["prefix"]["text"]


def test_decoding_is_changed_at_will(adapters: dict[str, dict[str, Path]]) -> None:
    adapter = attentune.load(adapters["t5"]["mix"], max_new_tokens=2)
    assert all(len(answer["text"].split()) <= 2 for answer in adapter.predict(INPUTS))
    with pytest.raises(ConfigError, match="no option beams; texts are written by num_beams and max_new_tokens"):
        attentune.load(adapters["t5"]["mix"], beams=2)


@pytest.mark.parametrize("kind", WRITERS)
def test_merged_is_unmerged(adapters: dict[str, dict[str, Path]], tmp_path: Path, kind: str, capsys: Any) -> None:
    merged = tmp_path / "merged"
    assert run("merge", adapters[kind]["mix"], "--output", merged, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"output": str(merged), "head": None}
    model: Any = load_backbone(str(merged), writes=True)
    tokenizer, task = tokenizer_of(kind), attentune.load(adapters[kind]["mix"]).card.task
    prompt = task.encode(tokenizer, [{"text": "anna ben"}], 20)[0].sequences[0]["input_ids"]
    out = model.generate(torch.tensor([prompt]), max_new_tokens=6, num_beams=2, pad_token_id=0, eos_token_id=2)
    text = tokenizer.decode(out[0, len(prompt) :] if kind == "gpt2" else out[0], skip_special_tokens=True).strip()
    assert text == attentune.load(adapters[kind]["mix"]).predict(["anna ben"])[0]["text"]


@pytest.mark.parametrize("method", ["attempt", "pasta", "tiny_attention"])
@pytest.mark.parametrize("kind", WRITERS)
def test_other_methods_train(writers: dict[str, Path], tmp_path: Path, kind: str, method: str) -> None:
    if (method, kind) == ("pasta", "t5"):
        with pytest.raises(UnsupportedError) as caught:
            attentune.train(pairs(8), method, tmp_path / "a", str(writers[kind]), **QUICK)
        assert "\n" not in str(caught.value)
        return
    result = attentune.train(pairs(16), method, tmp_path / "a", str(writers[kind]), **QUICK)
    before = result.metrics["validation"]
    assert attentune.load(result.folder).evaluate(pairs(16), split="train").keys() == before.keys()


def test_a_baseline_is_the_nearest_row() -> None:
    from attentune.training.baseline import baseline

    rows = [{"text": row["source"], "label": [row["target"]]} for row in pairs(20)]
    assert baseline("generation", rows, rows, ())["bleu"] == pytest.approx(100)
    assert baseline("generation", rows[:1], [{"text": "x", "label": ["nothing at all in common here"]}], ())["bleu"] < 5


def test_the_folder_moves(adapters: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    other = shutil.copytree(adapters["bart"]["prefix"], tmp_path / "other")
    assert attentune.load(other).predict(INPUTS) == attentune.load(adapters["bart"]["prefix"]).predict(INPUTS)


def test_where_texts_are_not_written(adapters: dict[str, dict[str, Path]], writers: dict[str, Path]) -> None:
    with pytest.raises(
        UnsupportedError, match=r"adapter 'a' writes texts, which the bank does not serve; attentune\.predict_many"
    ):
        Bank(str(writers["t5"])).add("a", adapters["t5"]["mix"])
    with pytest.raises(ConfigError, match="abstain"):
        attentune.load(adapters["t5"]["mix"]).predict(INPUTS, abstain_at=0.5)
