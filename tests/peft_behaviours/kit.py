"""Tiny random models with heads, a batch for each, and every built-in method in each form that peft sees apart."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from packaging.version import Version
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.integrations.peft import MIN_PEFT_VERSION

from attentune import METHODS
from attentune.methods import BUILT_IN

natively = pytest.mark.skipif(
    Version(peft.__version__) < Version(MIN_PEFT_VERSION),
    reason=f"transformers {tf.__version__} adds adapters by peft {MIN_PEFT_VERSION} on, not {peft.__version__}",
)
"""For transformers' own adapter methods."""
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


_START: dict[str, Any] = {"decoder_start_token_id": 0}


def _labels(count: int) -> dict[str, Any]:
    return {"num_labels": count}


def _bert() -> Any:
    return tf.BertForSequenceClassification(tf.BertConfig(vocab_size=140, **_labels(3), **SIZES))


def _roberta() -> Any:
    config = tf.RobertaConfig(vocab_size=140, **_labels(4), pad_token_id=1, bos_token_id=101, eos_token_id=102, **SIZES)
    return tf.RobertaForTokenClassification(config)


def _gpt2() -> Any:
    config = tf.GPT2Config(
        vocab_size=140, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=101, eos_token_id=102,
        pad_token_id=1,
    )  # fmt: skip
    return tf.GPT2LMHeadModel(config)


def _llama() -> Any:
    config = tf.LlamaConfig(
        vocab_size=140, num_key_value_heads=2, pad_token_id=1, bos_token_id=101, eos_token_id=102, **SIZES
    )
    return tf.LlamaForCausalLM(config)


def _t5() -> Any:
    config = tf.T5Config(
        vocab_size=140, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4,
        pad_token_id=1, eos_token_id=102, **_START,
    )  # fmt: skip
    return tf.T5ForConditionalGeneration(config)


KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "bert": (_bert, "SEQ_CLS"),
    "roberta": (_roberta, "TOKEN_CLS"),
    "gpt2": (_gpt2, "CAUSAL_LM"),
    "llama": (_llama, "CAUSAL_LM"),
    "t5": (_t5, "SEQ_2_SEQ_LM"),
}
"""How a model is built, and its task type of peft."""
NATIVE_HEAD = {"bert": "classifier", "roberta": "classifier"}


def model_of(kind: str, seed: int = 0) -> Any:
    """Every weight and bias random and non-zero, in eval mode."""
    torch.manual_seed(seed)
    model = KINDS[kind][0]()
    for name, p in model.named_parameters():
        nn.init.normal_(p, std=0.2 if p.dim() > 1 else 0.1)
        if p.dim() == 1 and "norm" in name.lower() and name.endswith("weight"):
            p.data += 1
    return model.eval()


def batch_of(kind: str, rows: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Texts of unequal length between special tokens, padded where padding is exact: left for generation."""
    g, width = torch.Generator().manual_seed(seed), 8
    tokens, mask = torch.ones(rows, width, dtype=torch.long), torch.zeros(rows, width, dtype=torch.long)
    for i in range(rows):
        n = width - 2 * (i % 3)
        text = torch.randint(103, 139, (n,), generator=g)
        text[0], text[-1] = 101, 102
        here = slice(width - n, width) if kind in ("gpt2", "llama") else slice(0, n)
        tokens[i, here], mask[i, here] = text, 1
    batch = {"input_ids": tokens, "attention_mask": mask}
    if kind == "t5":
        batch["decoder_input_ids"] = torch.randint(103, 139, (rows, 4), generator=g)
    return batch


@dataclass(frozen=True)
class Form:
    """A method with options that make peft see other tensors."""

    label: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)

    def config(self, kind: str | None = None, **more: Any) -> Any:
        """A config with a random start, or what `more` says."""
        task = {} if kind is None else {"task_type": KINDS[kind][1]}
        return METHODS[self.method].config(**{"init_weights": False, **task, **self.options, **more})

    @property
    def widens(self) -> bool:
        """Rows stand in front of the text."""
        return METHODS[self.method].prompt_length(self.config()) > 0

    def fits(self, kind: str) -> bool:
        """T5 has no special tokens in its decoder, and its attention no place for keys and values of a prefix."""
        return kind != "t5" or not (self.method == "pasta" or self.options.get("mode") in ("tune", "combine"))


PREFIX = "prefix_propagation"
FORMS = [
    Form("tiny_attention", "tiny_attention", {"width": 2, "heads": 2, "experts": 2}),
    Form("pasta", "pasta", {"special_ids": [101, 102]}),
    Form("attempt", "attempt", {"length": 3, "sources": 2, "bottleneck": 5}),
    Form("kernel_mix", "kernel_mix"),
    Form("propagate", PREFIX, {"length": 3}),
    Form("tune", PREFIX, {"length": 3, "mode": "tune"}),
    Form("combine-mlp", PREFIX, {"length": 3, "mode": "combine", "mlp": 6}),
    Form("kernel", PREFIX, {"length": 3, "mode": "kernel"}),
    Form("kernel-mlp", PREFIX, {"length": 3, "mode": "kernel", "mlp": 6}),
]
assert {form.method for form in FORMS} == {method.name for method in BUILT_IN}
MERGING = [form for form in FORMS if METHODS[form.method].merge is not None]


def named(forms: Iterable[Form]) -> list[Any]:
    """For pytest.mark.parametrize("form", ...)."""
    return [pytest.param(form, id=form.label) for form in forms]


every_form = pytest.mark.parametrize("form", named(FORMS))
every_cell = pytest.mark.parametrize(
    ("form", "kind"),
    [pytest.param(form, kind, id=f"{form.label}-{kind}") for form in FORMS for kind in KINDS if form.fits(kind)],
)


def wrap(form: Form, kind: str = "bert", seed: int = 1, model: Any = None, **config: Any) -> Any:
    """A tiny model with one adapter "default", in eval mode."""
    base = model_of(kind) if model is None else model
    torch.manual_seed(seed)
    return get_peft_model(base, form.config(kind, **config)).eval()


def add(model: PeftModel, name: str, form: Form, kind: str = "bert", seed: int = 2, **config: Any) -> None:
    """Another adapter, with tensors and native head of its own."""
    torch.manual_seed(seed)
    model.add_adapter(name, form.config(kind, **config))
    for key, p in model.named_parameters():
        if f"modules_to_save.{name}." in key:
            p.data.normal_()
    model.eval()


@torch.no_grad()
def answer(model: Any, batch: dict[str, Tensor], **more: Any) -> Tensor:
    """The logits."""
    return model(**batch, **more).logits


def tensors_of(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """Every tensor of one adapter, native heads included."""
    return {key: p for key, p in model.named_parameters() if name in key.split(".")}


def base_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what is no adapter's; trained copies of a native head are an adapter's."""
    return {
        key.removeprefix("base_model.model.").replace("original_module.", ""): value.clone()
        for key, value in model.state_dict().items()
        if "modules_to_save" not in key and not any(f"_{m}." in key for m in METHODS)
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Equal names, equal bits."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@contextmanager
def unchanged(model: nn.Module) -> Generator[None]:
    """Nothing of a model may change inside."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modules = {key: type(module) for key, module in model.named_modules()}
    grads = {key: p.requires_grad for key, p in model.named_parameters()}
    yield
    assert same(before, model.state_dict())
    assert modules == {key: type(module) for key, module in model.named_modules()}
    assert grads == {key: p.requires_grad for key, p in model.named_parameters()}
