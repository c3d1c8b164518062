"""Classes as words in a gap: templates, words, the masked-LM head of every architecture, training, mixed batches."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from byte_tokens import byte_tokenizer
from laws.zoo import ZOO, batch_of
from safetensors.torch import load_file
from test_train import QUICK, rows_of
from transformers import BertForMaskedLM

import attentune
from attentune.backbones import load_backbone
from attentune.errors import ConfigError, UnsupportedError
from attentune.heads import HeadConfig
from attentune.tasks import task_from_card
from attentune.tasks.classify import Classification
from attentune.tasks.verbalise import Cloze, cloze_of
from attentune.training.train import train
from attentune.vocabulary import HEADS, VocabularyHead, vocabulary_head

GOOD_BAD = ("neg=bad", "pos=good")


@pytest.mark.parametrize("kind", HEADS)
def test_the_head_of_every_architecture(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole: Any = transformers.AutoModelForMaskedLM.from_config(ZOO[kind].build().config)
    whole.save_pretrained(tmp_path)
    batch = batch_of(kind)
    with torch.no_grad():
        expected = whole.eval()(**batch).logits
        base = load_backbone(str(tmp_path))
        head = vocabulary_head(str(tmp_path), base)
        assert head is not None
        found = head(base(**batch).last_hidden_state)
    assert torch.allclose(found, expected, atol=1e-6)
    shared = base.get_input_embeddings().weight
    assert any(p is shared for p in head.parameters())
    assert not any(p.requires_grad for p in head.parameters())
    assert not head.train().training


def test_a_file_without_such_a_head(tiny_bert: Path) -> None:
    assert vocabulary_head(str(tiny_bert), load_backbone(str(tiny_bert))) is None


def test_zoo_has_every_head() -> None:
    assert set(HEADS) <= set(ZOO)


def text_of(features: Any, tokenizer: Any) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(features.sequences[0]["input_ids"]))


def test_templates(tokenizer: Any) -> None:
    single = cloze_of(Classification(("bad", "good")), tokenizer)
    assert (single.template, single.words) == ("{text} It was {mask}.", ("bad", "good"))
    (row,) = single.encode(tokenizer, [{"text": "the [MASK] {mask} plot", "label": "good"}], 60)
    assert row.sequences[0]["input_ids"].count(tokenizer.mask_token_id) == 1  # the text opens no gap of its own
    assert text_of(row, tokenizer).endswith("was [MASK] . [SEP]")
    assert row.target == 1
    pair = Cloze(("no", "yes"), True, "{text} ? {mask} , {text_pair}", ("bad", "good"))
    (row,) = pair.encode(tokenizer, [{"text": "the film", "text_pair": "was good"}], 60)
    assert text_of(row, tokenizer) == "[CLS] the film ? [MASK] , was good [SEP]"
    assert pair.word_ids(tokenizer) == tokenizer.convert_tokens_to_ids(["bad", "good"])
    assert task_from_card(json.loads(json.dumps(pair.to_card()))) == pair


def test_long_texts_are_cut_and_the_gap_stays(tokenizer: Any) -> None:
    task = Cloze(("a", "b"), True, "{text} ? {mask} , {text_pair}", ("bad", "good"))
    rows = [{"text": "good " * 30, "text_pair": "the film"}, {"text": "sun", "text_pair": "rain"}]
    long, short = task.encode(tokenizer, rows, 12)
    assert text_of(long, tokenizer) == "[CLS] good good good good good ? [MASK] , the film [SEP]"
    assert (long.truncated, short.truncated) == (True, False)
    with pytest.raises(ConfigError, match="the template alone does not fit into max_length 4"):
        task.encode(tokenizer, rows, 4)


@pytest.mark.parametrize("texts", [("日本日本日本", "東京"), ("a 👩‍👧 b 👩‍👧", "日"), ("good  ", "é" * 9)])
def test_a_cut_inside_of_a_character_takes_it_whole(texts: tuple[str, str]) -> None:
    task, row = Cloze(("a", "b"), True, "{text}?{mask}{text_pair}"), {"text": texts[0], "text_pair": texts[1]}
    tokenizer = byte_tokenizer()
    whole = len(task.encode(tokenizer, [row], 99)[0])
    for length in range(3, whole):
        (found,) = task.encode(tokenizer, [row], length)
        text, _, pair = tokenizer.decode(found.sequences[0]["input_ids"]).partition("?<mask>")
        assert len(found) <= length
        assert found.truncated
        assert texts[0].startswith(text)
        assert texts[1].startswith(pair)


def test_what_cannot_be_a_template(tokenizer: Any) -> None:
    task, pair = Classification(("neg", "pos")), Classification(("bad", "good"), pair=True)
    wrong: list[tuple[Classification, str | None, tuple[str, ...], str]] = [
        (task, "{text} it was", GOOD_BAD, "a template has {text} and {mask} once each"),
        (pair, "{text} {mask}", (), "a template has {text}, {text_pair} and {mask} once each"),
        (task, None, (), "the word of class 'neg' is one token of the backbone, found 'neg'"),
        (task, None, ("neg=bad", "pos=bad"), "classes 'neg' and 'pos' have the same word 'bad'"),
        (task, None, ("good",), "task.words wants class=word of the classes neg, pos, found 'good'"),
        (task, None, ("maybe=good",), "found 'maybe=good'"),
        (Classification(("0", "1")), None, (), "class '0' is a number and says nothing in a sentence"),
    ]
    for one, template, words, message in wrong:
        with pytest.raises(ConfigError) as caught:
            cloze_of(one, tokenizer, template, words)
        assert message in str(caught.value)
    with pytest.raises(ConfigError, match="a masked head needs its mask token and 2 words"):
        HeadConfig(kind="masked")


def test_trained_words(masked_bert: Path, tmp_path: Path) -> None:
    rows = [{"text": row["text"].rsplit(" ", 1)[0] + (" sun" if row["label"] == "pos" else " rain"), **{
        "label": row["label"]}} for row in rows_of("classification", 48)]  # fmt: skip
    options: dict[str, Any] = {**QUICK, "epochs": 8, "learning_rate": 0.05, "words": list(GOOD_BAD)}
    data = {"train": rows, "validation": rows}
    result = train(data, "tiny_attention", tmp_path / "a", str(masked_bert), **options)
    assert result.notes[-1] == "template: '{text} It was {mask}.' with neg = bad, pos = good"
    assert result.metrics["validation"]["accuracy"] > 0.9
    assert not any("head" in key for key in load_file(tmp_path / "a" / "adapter_model.safetensors"))
    card = json.loads((tmp_path / "a" / "task.json").read_text())["task"]
    assert (card["template"], card["words"]) == ("{text} It was {mask}.", ["bad", "good"])
    adapter = attentune.load(result.folder)
    assert adapter.judge(data).scores == pytest.approx(result.metrics["validation"])
    # In one batch with a task of a linear head and another method, each row as if alone.
    other = train(rows_of("pair"), "pasta", tmp_path / "b", str(masked_bert), **QUICK)
    tasks = {"a": result.folder, "b": other.folder}
    texts: list[Any] = ["the film sun", ["rain", "the plot"], "a plot rain"]
    mixed = attentune.predict_many(tasks, texts, ["a", "b", "a"])
    first, last = adapter.predict([texts[0], texts[2]])
    alone = [first, *attentune.load(other.folder).predict([texts[1]]), last]
    for one, single in zip(mixed, alone, strict=True):
        assert one["probabilities"] == pytest.approx(single["probabilities"], abs=1e-5)


def test_the_start_is_the_language_model(masked_bert: Path, tokenizer: Any) -> None:
    """A fresh adapter changes nothing: its answers are the plain model's scores of the words."""
    base = load_backbone(str(masked_bert))
    task = Cloze(("a", "b"), words=("bad", "good"))
    head: Any = HeadConfig(kind="masked", words=task.word_ids(tokenizer), mask=tokenizer.mask_token_id)
    model = attentune.TaskModel(base, vocabulary_head(str(masked_bert), base)).eval()
    model.add_adapter("one", attentune.PrefixPropagationConfig(head=head, length=2))
    model.add_adapter("two", attentune.PastaConfig(head=head))
    whole = BertForMaskedLM.from_pretrained(masked_bert).eval()
    features = task.encode(tokenizer, [{"text": "the film"}], 40)[0]
    ids = torch.tensor([features.sequences[0]["input_ids"]])
    with torch.no_grad():
        at = features.sequences[0]["input_ids"].index(tokenizer.mask_token_id)
        expected = whole(ids).logits[0, at, task.word_ids(tokenizer)]
        assert torch.allclose(model(ids, adapter_names=["two"]).logits[0], expected, atol=1e-6)
        assert model(ids, adapter_names=["one"]).logits.shape == (1, 2)  # read where the text's gap is, prompt or not


def test_backbones_and_classes_without_words_keep_the_linear_head(
    tiny_bert: Path, masked_bert: Path, tmp_path: Path
) -> None:
    rows = rows_of("classification", 16)
    options: dict[str, Any] = {**QUICK, "epochs": 1}
    result = train(rows, "pasta", tmp_path / "a", str(tiny_bert), words=list(GOOD_BAD), **options)
    assert "hold no masked-LM head, which a template needs" in result.notes[-1]
    assert "template" not in json.loads((tmp_path / "a" / "task.json").read_text())["task"]
    result = train(rows, "pasta", tmp_path / "b", str(masked_bert), template="auto", **options)
    assert result.notes[-1].startswith("linear head: the word of class 'neg' is one token")
    with pytest.raises(ConfigError, match="the word of class 'neg' is one token"):
        train(rows, "pasta", tmp_path / "c", str(masked_bert), template="{text} {mask}", **options)
    with pytest.raises(ConfigError, match="a template is for classification, one class a row; this task is regression"):
        train(rows_of("regression"), "pasta", tmp_path / "c", str(masked_bert), template="auto", **options)


def test_a_model_without_the_head_says_so(masked_bert: Path, tokenizer: Any) -> None:
    model = attentune.TaskModel(load_backbone(str(masked_bert)))
    head: Any = HeadConfig(kind="masked", words=[1, 2], mask=tokenizer.mask_token_id)
    model.add_adapter("one", attentune.PastaConfig(head=head))
    with pytest.raises(UnsupportedError, match="its backbone's masked-LM head"):
        model(torch.tensor([[101, 2, 102]]))
    assert VocabularyHead(BertForMaskedLM.from_pretrained(masked_bert))(torch.zeros(3, 32)).shape[0] == 3
