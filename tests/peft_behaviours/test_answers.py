"""ATTEMPT's prompt depends on the text. On language models the answer, which has labels, must not leak into it."""

import pytest
import torch
from peft import get_peft_model

from attentune import AttemptConfig
from attentune.errors import UnsupportedError

from .kit import FORMS, batch_of, model_of, natively

ATTEMPT = next(form for form in FORMS if form.method == "attempt")


def wrapped(way):
    model = model_of("llama")
    torch.manual_seed(1)
    if way == "native":
        model.add_adapter(ATTEMPT.config())
        return model.eval()
    return get_peft_model(model, ATTEMPT.config("llama" if way == "by task" else None)).eval()


def logits(model, tokens, labels=None, positional=False):
    """At the first three positions: what the prompt does to the source."""
    with torch.no_grad():
        out = model(tokens, labels=labels) if positional else model(input_ids=tokens, labels=labels)
    return out.logits[:, :3]


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("way", ["by task", "without a task", pytest.param("native", marks=natively)])
def test_labels_say_what_the_answer_is(way, positional):
    model, tokens = wrapped(way), batch_of("llama", rows=1)["input_ids"]
    other, labels = tokens.clone(), tokens.clone()
    other[:, 4:] = torch.arange(130, 134)
    labels[:, :4] = -100
    seen = logits(model, tokens, labels, positional)
    assert torch.equal(seen, logits(model, other, torch.where(labels == -100, labels, other), positional))
    alone = logits(model, tokens[:, :4])
    torch.testing.assert_close(seen, alone, atol=1e-6, rtol=1e-5)
    without = logits(model, tokens, None, positional)
    assert not torch.allclose(seen, without)
    assert not torch.allclose(without, logits(model, other, None, positional))


@pytest.mark.parametrize("way", ["by task", "without a task", pytest.param("native", marks=natively)])
def test_nothing_is_learned_without_labels(way):
    """Trainer takes them out of the batch where the loss is not the model's own."""
    model, batch = wrapped(way).train(), batch_of("llama")
    with pytest.raises(UnsupportedError, match="no labels tell which it is"):
        model(**batch)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    with torch.no_grad():
        model(**batch)
    model.eval()(**batch)


@pytest.mark.parametrize("attention", ["constant", "none"])
def test_a_prompt_that_sees_no_text_is_learned_without_labels(attention):
    config = AttemptConfig(length=3, sources=2, attention=attention)
    get_peft_model(model_of("llama"), config).train()(**batch_of("llama")).logits.sum().backward()


@pytest.mark.parametrize("way", ["by task", "without a task"])
@pytest.mark.parametrize("call", ["input_ids", "inputs", "positional"])
def test_generated_tokens_are_the_answer_without_a_cache_too(way, call):
    model, tokens = wrapped(way), batch_of("llama", rows=1)["input_ids"]
    out = []
    for cache in (True, False):
        options = {"max_new_tokens": 8, "do_sample": False, "use_cache": cache}
        out.append(
            model.generate(tokens, **options) if call == "positional" else model.generate(**{call: tokens}, **options)
        )
    assert torch.equal(*out)
